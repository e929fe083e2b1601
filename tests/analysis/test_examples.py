"""Every example in the docstrings of the analysis runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import lightning_overlock.analysis

NAMES = [module.name for module in pkgutil.iter_modules(lightning_overlock.analysis.__path__)]


def module_of(name):
    return importlib.import_module(f"lightning_overlock.analysis.{name}")


# ConvNeur's published sizes build every network at its full size.
SLOW = {"convneur_published"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)
def test_examples_print_what_they_say(name):
    torch.manual_seed(0)
    result = doctest.testmod(module_of(name))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", NAMES)
def test_every_public_function_has_an_example(name):
    module = module_of(name)
    functions = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and key[0] != "_"
    }
    assert functions
    assert [key for key, value in functions.items() if ">>>" not in (value.__doc__ or "")] == []


@pytest.mark.parametrize("name", NAMES)
def test_pyplot_and_its_global_state_stay_out(name):
    assert "pyplot" not in inspect.getsource(module_of(name)).replace("not pyplot's", "")
