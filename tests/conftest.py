"""What tests of several rooms share; functions they share are in shared.py."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Begin with the test that takes eight minutes, or one process waits for it at the end."""
    longest = "test_every_command_runs_in_the_order_of_the_pages"
    items.sort(key=lambda item: item.name != longest)


@pytest.fixture(autouse=True)
def deterministic_is_off_again():
    """What a Trainer with `deterministic=True` leaves on in its process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in; seeds and the place of runs are the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVERLOCK_RUNS", raising=False)
    # Set by seed_everything; other tests must not see them.
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    return tmp_path
