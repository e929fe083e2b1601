"""Detection from jsons as people have them: the same result, or a few words before training."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from tasks.coco_layout import write_layout

from lightning_overlock.cli.main import main

FIT = [
    "fit",
    "--model=DetectionTask",
    "--model.backbone=test_convnext",
    "--model.min_size=[64]",
    "--model.max_size=96",
    "--model.fpn_width=16",
    "--model.box_head_width=32",
    "--model.mask_head_width=16",
    "--model.anchor_scale=4",
    "--model.proposals=50",
    "--model.rpn_batch_size=32",
    "--model.roi_batch_size=32",
    "--model.score_threshold=0",
    "--data=CocoDataModule",
    "--data.root=coco",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=1",
]
ONLY_BOXES = [*FIT, "--model.masks=false"]


pytestmark = pytest.mark.usefixtures("coco")


def change(how, splits=("train", "val")):
    for split in splits:
        path = Path(f"coco/annotations/instances_{split}2017.json")
        content = json.loads(path.read_text())
        for place, annotation in enumerate(content["annotations"]):
            how(place, annotation)
        path.write_text(json.dumps(content))


def last_row(name):
    with Path(f"runs/{name}/metrics.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    return {key: v for key, v in row.items() if key.startswith(("val/", "train/loss"))}


def no_segmentation(place, annotation):
    del annotation["segmentation"]


def empty_segmentation(place, annotation):
    annotation["segmentation"] = []


def broken_code(place, annotation):
    size = annotation["segmentation"]["size"] if place % 2 else [96, 128]
    annotation["segmentation"] = {"size": size, "counts": "PPYo0b0"}


@pytest.mark.parametrize(
    ("how", "splits", "words", "more"),
    [
        (no_segmentation, ["train", "val"], "10 without a segmentation (annotation 1: null)", []),
        (empty_segmentation, ["val"], "6 without a segmentation (annotation 1: [])", []),
        (broken_code, ["train"], "RLE", []),
        (broken_code, ["val"], "RLE", ["--data.skip_invalid=true"]),
    ],
)
def test_masks_that_are_none_are_told_before_training(how, splits, words, more, capsys):
    change(how, splits)
    assert main([*FIT, *more, "--name=refused"]) == 2
    _, message = capsys.readouterr().err.split("lightning: ")  # after Lightning's own lines
    assert words in message
    assert f"instances_{splits[0]}2017.json" in message
    assert "model.masks false" in message
    assert len(message.splitlines()) <= 3
    assert not Path("runs/refused/metrics.csv").exists()


def as_other_programs_write(place, annotation):
    """Rectangles among polygons, one id for all, nulls, and numbers of other types."""
    annotation["id"] = 0
    annotation["iscrowd"] = annotation["iscrowd"] or None
    annotation["image_id"] = float(annotation["image_id"])
    annotation["category_id"] = str(annotation["category_id"])
    if place % 2:
        annotation["segmentation"] = []
        annotation["area"] = str(annotation["area"])
    else:
        annotation["area"] = None


def test_what_does_not_matter_to_boxes_changes_nothing():
    assert main([*ONLY_BOXES, "--name=whole"]) == 0
    change(as_other_programs_write)
    assert main([*ONLY_BOXES, "--name=changed"]) == 0
    assert last_row("changed") == last_row("whole")


def test_prediction_needs_no_training_data_to_name_its_categories():
    once = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--name=mine"]
    assert main([*ONLY_BOXES, *once]) == 0
    shutil.move("coco/val2017", "photos")
    shutil.rmtree("coco")
    checkpoint = "--ckpt_path=runs/mine/checkpoints/last.ckpt"
    assert main(["predict", checkpoint, "--data.predict_dir=photos"]) == 0
    results = json.loads(Path("runs/mine/detections.json").read_text())
    assert results
    assert {entry["category_id"] for entry in results} <= {3, 17, 90}
    content = json.loads(Path("runs/mine/images.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["box", "disc", "unicorn"]
    # Other data in their place have no say.
    write_layout("coco")
    path = Path("coco/annotations/instances_val2017.json")
    path.write_text(path.read_text().replace('"id": 17,', '"id": 18,'))
    for text in (path.read_text(), "broken"):
        path.write_text(text)
        assert main(["predict", checkpoint, "--data.predict_dir=photos"]) == 0
        again = json.loads(Path("runs/mine/detections.json").read_text())
        assert again == results
