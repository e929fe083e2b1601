"""Plugin for timm's own tests: this package's backbones are among the models that they try.

    python -m pytest -p register_backbones tests/test_models.py

timm's tests choose their models by lists of patterns. Two of those gain our names: the modules
whose models have `forward_intermediates`, and what `torch.jit.script` cannot take (timm is giving
scripting up; tracing works and has a test of its own here). Every other model is left out.
"""

from collections.abc import Generator
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import timm

import lightning_overlock  # noqa: F401 (registers the backbones)

MODULES = ["overlock", "convneur"]
OURS = ("overlock", "convneur", "test_overlock", "test_convneur")
every_model = timm.list_models


def list_models(
    *args: Any, module: Any = "", exclude_filters: Any = "", **kwargs: Any
) -> list[str]:
    """Return timm's list, with our names in the two lists of patterns."""
    if isinstance(module, list):
        module = [*module, *MODULES]
    if "hiera_*" in exclude_filters and "*naflex*" in exclude_filters:
        exclude_filters = [*exclude_filters, "*overlock*", "*convneur*"]
    return every_model(*args, module=module, exclude_filters=exclude_filters, **kwargs)


timm.list_models = list_models


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of our models."""
    kept = [item for item in items if name_of(item).startswith(OURS)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test that wants weights from a host that cannot be reached."""
    try:
        yield
    except URLError as error:
        if isinstance(error, HTTPError):
            raise  # reached, and refused
        pytest.skip(f"no network: {error.reason}")


def name_of(item: pytest.Item) -> str:
    """Return the name of the model that a test tries, "" if it tries none."""
    call = getattr(item, "callspec", None)
    return str(call.params.get("model_name", "")) if call else ""
