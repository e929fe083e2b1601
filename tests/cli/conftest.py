"""What the tests of the command share."""

import pytest
from shared_run import QUICK

from lightning_overlock.cli import (
    training as training,  # Lightning logs to the stderr of its import
)
from lightning_overlock.cli.main import main


@pytest.fixture(autouse=True)
def in_workplace(workplace):
    """Every test of the command works in an empty folder."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run: two steps of test_overlock on the digits."""
    runs = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERLOCK_RUNS", str(runs))
        patch.setenv("PL_GLOBAL_SEED", "42")
        patch.setenv("PL_SEED_WORKERS", "1")
        assert main(["fit", "--config", "quickstart", *QUICK]) == 0
    return runs / "quickstart"
