"""Detection in two processes and to the end of a training: what takes its time."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tasks.coco_layout import write_layout
from tasks.test_detection import FIT, assert_validation_is_pycocotools_own

from lightning_overlock.cli.main import main

SCRIPT = Path(__file__).with_name("two_processes_detection.py")

pytestmark = [
    pytest.mark.slow,
    # pycocotools 2.0 decodes masks by an interface that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the script once: a process that has used OpenMP must not be forked."""
    folder = tmp_path_factory.mktemp("ddp")
    tests = str(SCRIPT.parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], check=True, env=environment, timeout=900
    )
    return folder


def read(path):
    return json.loads(path.read_text())


class TestTwoProcesses:
    # With 2, the second process has images and no detection.
    @pytest.mark.parametrize("empty", [0, 2])
    def test_measure_the_average_precision_of_one(self, folder, empty):
        one, two = (read(folder / count / f"metrics{empty}.json") for count in ("1", "2"))
        assert 0 < one["val/map"] < 1
        assert 0 < one["val/mask_map"] < 1
        assert two == pytest.approx(one, abs=1e-6, nan_ok=True)

    def test_write_the_detections_of_one(self, folder):
        one, two = (read(folder / count / "detections.json") for count in ("1", "2"))
        assert read(folder / "1/images.json") == read(folder / "2/images.json")
        assert len(one) == len(two) > 20
        for expected, found in zip(one, two, strict=True):
            assert found["image_id"] == expected["image_id"]
            assert found["category_id"] == expected["category_id"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert found["bbox"] == pytest.approx(expected["bbox"], abs=1e-2)

    def test_train_together(self, folder):
        values = read(folder / "fit.json")
        assert math.isfinite(values["train/loss"])


def test_a_detector_overfits_two_scenes(workplace, capsys):
    write_layout("coco", train=3)
    annotations = Path("coco/annotations")
    content = json.loads((annotations / "instances_train2017.json").read_text())
    content["images"] = content["images"][:2]
    (annotations / "instances_val2017.json").write_text(json.dumps(content))
    # The same two twenty times over: an epoch of twenty steps.
    two, objects = content["images"], content["annotations"]
    copies = range(1000, 21000, 1000)
    content["images"] = [{**image, "id": image["id"] + copy} for copy in copies for image in two]
    content["annotations"] = [
        {**entry, "id": entry["id"] + copy, "image_id": entry["image_id"] + copy}
        for copy in copies
        for entry in objects
    ]
    (annotations / "instances_train2017.json").write_text(json.dumps(content))
    words = ["--data.val_images=coco/train2017", "--data.group_by_shape=false", "--data.hflip=0"]
    words += ["--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=6"]
    words += ["--model.lr=2e-3", "--model.weight_decay=0", "--name=mine"]
    assert main([*FIT, *words]) == 0
    last = "--ckpt_path=runs/mine/checkpoints/last.ckpt"
    assert main(["validate", last]) == 0
    assert main(["predict", last]) == 0
    with Path("runs/mine/metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["val/map50"]) > 0.9
    assert float(row["val/mask_map50"]) > 0.9
    assert_validation_is_pycocotools_own(row, "runs/mine/detections.json")
