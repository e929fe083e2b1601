"""Two processes (gloo) must measure what one does alone, and write the same predictions."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).with_name("two_processes_segmentation.py")


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
    def test_measure_every_image_of_uneven_shares_once(self, folder):
        one, two = (
            torch.load(folder / count / "metrics.pt", weights_only=True) for count in ("1", "2")
        )
        names = {"miou", "pixel_accuracy", "boundary_f1", "trimap_miou", "hausdorff"}
        assert one.keys() == {f"val/{name}" for name in names}
        # Images share a forward pass with others, which may round otherwise.
        assert two == pytest.approx(one, rel=1e-3)

    def test_predict_every_image(self, folder):
        one, two = (sorted((folder / count / "segmentation").rglob("*.png")) for count in "12")
        assert len(one) == len(two) == 7
        for expected, found in zip(one, two, strict=True):
            assert found.relative_to(folder / "2") == expected.relative_to(folder / "1")
            with Image.open(expected) as a, Image.open(found) as b:
                assert (np.array(a) != np.array(b)).mean() < 0.01

    def test_train_together_when_one_has_no_labels(self, folder):
        assert 0 <= torch.load(folder / "2" / "trained.pt", weights_only=True) <= 1
