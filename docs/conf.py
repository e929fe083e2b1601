"""The documentation's settings: `make docs`."""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

import lightning_overlock

project = "lightning_overlock"
author = "The lightning_overlock developers"
copyright = "The lightning_overlock developers, Apache-2.0"
version = release = lightning_overlock.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "lightning_overlock"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = []
exclude_patterns = []

# The notebooks lie beside the package, Sphinx reads what lies in docs: they are copied anew at
# every build, with the outputs that are stored in them. Nothing is trained here.
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables among the outputs
_here = Path(__file__).parent
_notebooks = _here / "notebooks"
shutil.rmtree(_notebooks, ignore_errors=True)
shutil.copytree(_here.parent / "notebooks", _notebooks)

myst_heading_anchors = 3
# Quotes and ellipses; dashes would make another option of --profile.
smartquotes_action = "qe"

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# As entries of the class's own text: named tuples document their fields a second time.
napoleon_use_ivar = True
# Types of other projects have no pages here; nothing is fetched to look for them.
nitpicky = False


def setup(app: Sphinx) -> None:
    """Links to notebooks, which are right in the checkout, lead to their pages."""

    def link_pages(_app: Sphinx, _page: str, source: list[str]) -> None:
        source[0] = source[0].replace("](../notebooks/", "](notebooks/")

    app.connect("source-read", link_pages)
