"""Segmentation as it is typed: a folder of images and label PNGs, trained, continued, applied."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_overlock.cli.main import main

SMALL = [
    "--model=SegmentationTask",
    "--model.backbone=test_overlock",
    "--model.decoder_width=8",
    "--model.auxiliary_width=8",
    "--model.test_size=64",
    "--data=SegmentationFolderDataModule",
    "--data.root=photos",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--data.crop_size=64",
    "--data.resize=[128,64]",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
]


@pytest.fixture(autouse=True)
def plots(workplace):
    random = np.random.default_rng(0)
    sizes = {"train": [(64, 80)] * 6, "val": [(50, 70), (64, 64), (33, 101), (64, 64), (90, 45)]}
    for split, shapes in sizes.items():
        for index, shape in enumerate(shapes):
            name = f"{split}/day{index % 2}/{index}"
            save(f"photos/images/{name}.jpg", random.integers(0, 255, (*shape, 3), dtype=np.uint8))
            label = random.choice(np.array([0, 1, 2, 3, 255], np.uint8), shape)
            save(f"photos/labels/{name}.png", label)


def save(name, pixels):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read(path):
    with Image.open(path) as file:
        return np.array(file)


def row(path, stage):
    with Path(path).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["stage"] == stage][-1]


def plain_iou(predictions, labels, classes):
    both = [np.concatenate([x.ravel() for x in each]) for each in (predictions, labels)]
    prediction, label = (each[both[1] != 255] for each in both)
    iou = []
    for index in classes:
        a, b = prediction == index, label == index
        iou.append((a & b).sum() / (a | b).sum() if (a | b).any() else np.nan)
    return np.nanmean(iou), (prediction == label).mean()


@pytest.mark.parametrize("reduced", [pytest.param(False, marks=pytest.mark.slow), True])
def test_miou_is_a_plain_count_on_the_pngs_that_predict_writes(reduced):
    """Trained, validated and applied from the checkpoint; values are those of the data's files."""
    reduce = [f"--data.reduce_zero_label={str(reduced).lower()}"]
    assert main(["fit", *SMALL, *reduce, "--name=a", "--trainer.max_epochs=1"]) == 0
    checkpoint = "--ckpt_path=runs/a/checkpoints/last.ckpt"
    assert main(["validate", checkpoint]) == 0
    assert main(["predict", checkpoint]) == 0
    labels = sorted(Path("photos/labels/val").rglob("*.png"))
    written = sorted(Path("runs/a/segmentation").rglob("*.png"))
    assert [path.relative_to("runs/a/segmentation") for path in written] == [
        path.relative_to("photos/labels/val") for path in labels
    ]
    wanted = [read(path) for path in labels]
    if reduced:  # 0 in the files is no class
        wanted = [np.where(label == 0, 255, label) for label in wanted]
    classes = range(int(reduced), 4)
    miou, accuracy = plain_iou([read(path) for path in written], wanted, classes)
    found = row("runs/a/metrics.csv", "validate")
    assert float(found["val/miou"]) == pytest.approx(miou, rel=1e-5)
    assert float(found["val/pixel_accuracy"]) == pytest.approx(accuracy, rel=1e-5)
    with Path("runs/a/per_class_val.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [entry["class"] for entry in table] == [str(value) for value in classes]


@pytest.mark.slow
def test_a_run_continues_as_if_nothing_had_happened():
    constant = ["--model.schedule=poly", "--model.power=0"]
    assert main(["fit", *SMALL, *constant, "--name=whole", "--trainer.max_epochs=2"]) == 0
    assert main(["fit", *SMALL, *constant, "--name=parts", "--trainer.max_epochs=1"]) == 0
    continued = ["fit", "--name=parts", "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert main(continued) == 0
    whole, parts = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][name], value), name


@pytest.mark.slow
def test_inference_options_are_free_to_differ_from_the_checkpoint_s(capsys):
    assert main(["fit", *SMALL, "--name=a", "--trainer.max_epochs=1"]) == 0
    checkpoint = "--ckpt_path=runs/a/checkpoints/last.ckpt"
    other = [
        "--model.inference=slide",
        "--model.window=32",
        "--model.stride=24",
        "--model.test_scales=[0.5,1.0]",
        "--model.test_flip=true",
        "--model.boundary_metrics=true",
        "--model.test_size=96",
    ]
    assert main(["validate", checkpoint, *other]) == 0
    found = row("runs/a/metrics.csv", "validate")
    for name in ("miou", "boundary_f1", "trimap_miou", "hausdorff"):
        assert float(found[f"val/{name}"]) >= 0
    assert main(["predict", checkpoint, "--model.save_overlays=true"]) == 0
    assert len(list(Path("runs/a/segmentation").rglob("*.overlay.png"))) == 5
    # What the network is made of is not.
    assert main(["validate", checkpoint, "--model.decoder=semantic_fpn"]) == 2
    assert "--model.decoder: found semantic_fpn" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_anywhere_are_given_labels(capsys):
    assert main(["fit", *SMALL, "--name=a", "--trainer.max_epochs=1"]) == 0
    save("holiday/beach/1.png", np.zeros((40, 90, 3), np.uint8))
    save("holiday/2.jpg", np.zeros((70, 30, 3), np.uint8))
    checkpoint = "--ckpt_path=runs/a/checkpoints/last.ckpt"
    assert main(["predict", checkpoint, "--data.predict_dir=holiday"]) == 0
    assert read("runs/a/segmentation/beach/1.png").shape == (40, 90)
    assert read("runs/a/segmentation/2.png").shape == (70, 30)
    save("holiday/2.png", np.zeros((8, 8, 3), np.uint8))
    assert main(["predict", checkpoint, "--data.predict_dir=holiday"]) == 2
    assert "holiday has 2.jpg and 2.png, whose label PNGs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_segmenter_starts_from_a_classifier_s_weights(capsys):
    classifier = [
        "--config=quickstart",
        "--model.backbone=test_overlock",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(["fit", *classifier, "--name=classifier"]) == 0
    weights = "runs/classifier/checkpoints/last.ckpt"
    frozen = ["--model.lr=0", "--model.min_lr=0", "--trainer.max_epochs=1", "--name=a"]
    assert main(["fit", *SMALL, *frozen, f"--model.init_from={weights}"]) == 0
    given, found = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("classifier", "a")
    )
    same = {
        name: value
        for name, value in given.items()
        if "head" not in name and f"model.features.backbone.{name[6:]}" in found
    }
    assert len(same) > 50
    for name, value in same.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[f"model.features.backbone.{name[6:]}"], value), name
