"""What running the notebooks does not show: how they read without being run."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def test_notebook_is_valid_with_an_id_for_each_cell(path):
    notebook = json.loads(path.read_text())
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_outputs_are_of_one_run_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_stored_and_clean(path):
    kinds = [output["output_type"] for output in outputs(path)]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for output in outputs(path))
    noise = [o["text"] for o in outputs(path) if o.get("name") == "stderr"]
    assert noise == []
    assert path.stat().st_size <= LARGEST


def test_no_cell_hides_its_errors(path):
    for cell in code_cells(path):
        # IPython's capture magic goes on after an error, and so would the tests.
        assert not "".join(cell["source"]).startswith("%%capture"), cell["id"]
        assert "raises-exception" not in cell["metadata"].get("tags", [])


def shows_something(source):
    if source.startswith("%%"):  # of another language
        return False
    tree = ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    last = tree.body[-1] if tree.body else None
    ends_in_name = isinstance(last, ast.Expr) and isinstance(last.value, ast.Name)
    return ends_in_name or bool(names & {"print", "display"})


def test_every_cell_that_shows_something_has_it_stored(path):
    for cell in code_cells(path):
        source = "".join(cell["source"])
        if shows_something(source):
            assert cell["outputs"], cell["id"]


def test_nothing_of_the_machine_is_stored(path):
    text = path.read_text()
    found = re.findall(r"(?:/home|/root|/tmp|/work|/Users|/opt|/mnt)/[\w./-]*", text)
    found += re.findall(r"https?://(?!arxiv\.org|github\.com)[\w.-]+", text)
    assert found == []


def test_readme_links_the_notebook_beside_a_picture(path):
    lines = (ROOT / "README.md").read_text().splitlines()
    (line,) = [line for line in lines if f"](notebooks/{path.name})" in line]
    (picture,) = re.findall(r"!\[[^\]]+\]\((notebooks/pictures/[\w.]+)\)", line)
    assert (ROOT / picture).stat().st_size <= 150_000
