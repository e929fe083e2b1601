"""Two processes (gloo) must do together what one does alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the script once: a process that has used OpenMP must not be forked."""
    folder = tmp_path_factory.mktemp("ddp")
    tests = str(SCRIPT.parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], check=True, env=environment, timeout=300
    )
    return folder


@pytest.mark.slow
class TestTwoProcesses:
    def test_train_to_the_weights_and_the_average_of_one(self, folder):
        one, two = (
            torch.load(folder / count / "run.ckpt", weights_only=True) for count in ("1", "2")
        )
        assert one["global_step"] == two["global_step"] == 4
        for part in ("state_dict", "current_model_state"):
            for name, expected in one[part].items():
                torch.testing.assert_close(two[part][name], expected, atol=1e-5, rtol=1e-4)

    def test_measure_every_image_of_uneven_shares_once(self, folder):
        one, two = (
            torch.load(folder / count / "metrics.pt", weights_only=True) for count in ("1", "2")
        )
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=1e-4)

    def test_predict_every_image_in_order(self, folder):
        one, two = (
            (folder / count / "predictions.csv").read_text().splitlines() for count in ("1", "2")
        )
        assert len(two) == 8
        for expected, found in zip(one, two, strict=True):
            assert found.split(",")[:6] == expected.split(",")[:6]

    def test_stop_together_when_one_has_a_loss_that_is_not_finite(self, folder):
        said = (folder / "stopped.txt").read_text()
        assert re.search(r"InputError: the loss is (nan|not finite on another process) at", said)
        assert "at step 0 (epoch 0)" in said
