"""The command on small folders: checkpoints, timm's models, and what it refuses."""

import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from shared import csv_rows, write_checkpoint

from lightning_overlock.cli.main import main
from lightning_overlock.data import ImageFolderDataModule
from lightning_overlock.robustness.folders import imagenet_ids
from lightning_overlock.tasks import ClassificationTask

IDS = imagenet_ids()


def write_images(folder, names, count=2, side=40, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of three classes with a checkpoint, and folders like ImageNet's relatives."""
    root = tmp_path_factory.mktemp("robustness")
    names = [IDS[i] for i in (4, 2, 9)]
    for split in ("train", "val"):
        write_images(root / "photos" / split, names)
    write_images(root / "v2", ["2", "4", "9", "500"], seed=1)
    write_images(root / "r", [IDS[2], IDS[9]], seed=2)
    for severity in (1, 4):
        write_images(root / "c" / "fog" / str(severity), names, seed=3 + severity, side=32)
    data = ImageFolderDataModule(str(root / "photos"), batch_size=2, image_size=32, num_workers=0)
    task = ClassificationTask(data.class_names, backbone="test_convnext")
    config = {
        "model": {"class_path": "lightning_overlock.tasks.ClassificationTask"},
        "data": {
            "class_path": "lightning_overlock.data.ImageFolderDataModule",
            "init_args": {"root": "photos", "image_size": 32, "predict_dir": None},
        },
    }
    path = root / "runs" / "small" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    write_checkpoint(path, task, data, config)
    return root


def test_a_run_on_every_kind_of_folder(place, tmp_path, capsys):
    run = place / "runs" / "small"
    arguments = ["--ckpt_path", str(run), "--data.num_workers", "0"]
    for name in ("v2", "r", "c"):
        arguments += [f"--data.imagenet_{name}", str(place / name)]
    assert main(["robustness", *arguments, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 images of 1 classes that the model does not know" in printed
    assert "fog at severities 1, 4" in printed
    assert "which are for ImageNet" in printed
    assert "Published figures are left out" in printed
    (row,) = csv_rows(tmp_path / "out" / "robustness.csv")
    assert row["model"] == "small"
    assert (tmp_path / "out" / "robustness.tex").is_file()
    assert not (run / "robustness.csv").exists()
    # The network itself, by hand: classes are sorted by folder.
    import lightning_overlock

    task = lightning_overlock.load(run)
    for column, folder, names in (
        ("V2: top-1 (%)", place / "v2", {"2": 0, "4": 1, "9": 2}),
        ("R: top-1 (%)", place / "r", {IDS[2]: 0, IDS[9]: 2}),
    ):
        allowed, right = sorted(names.values()), []
        for name, label in names.items():
            for path in (folder / name).iterdir():
                with torch.inference_mode():
                    logits = task(task.image_transform(Image.open(path))[None])[0]
                right.append(allowed[int(logits[allowed].argmax())] == label)
        assert float(row[column]) == pytest.approx(100 * np.mean(right)), column


def test_corrupted_images_are_not_cropped_again(place):
    from lightning_overlock.robustness.classifier import from_checkpoint

    found = from_checkpoint(str(place / "runs" / "small"), torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    config = found.task.data_config
    normal = (pixels / 255 - config["mean"]) / config["std"]
    whole = found.whole(Image.fromarray(pixels)).permute(1, 2, 0)
    np.testing.assert_allclose(whole.numpy(), normal, atol=1e-5)
    assert not torch.allclose(found.transform(Image.fromarray(pixels)).permute(1, 2, 0), whole)


def test_a_timm_model_is_held_beside_published_figures(place, tmp_path, capsys):
    torch.manual_seed(0)
    weights = timm.create_model("test_convnext").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    code = main(
        [
            "robustness", "--model.backbone", "test_convnext",
            "--model.init_from", str(tmp_path / "weights.pth"), "--data.num_workers=0",
            f"--data.imagenet_v2={place / 'v2'}", "--output", str(tmp_path),
        ]
    )  # fmt: skip
    assert code == 0
    assert "Published figures: timm" in capsys.readouterr().out
    rows = {row["model"]: row for row in csv_rows(tmp_path / "robustness.csv")}
    assert rows["resnet18.tv_in1k"]["V2: top-1 (%)"] == "57.35"
    assert rows["test_convnext"]["from"] == "measured"
    # Its four classes by hand.
    model = timm.create_model("test_convnext").eval()
    model.load_state_dict(weights)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config)
    right = []
    for label, name in enumerate(("2", "4", "9", "500")):
        for path in (place / "v2" / name).iterdir():
            with torch.inference_mode():
                logits = model(transform(Image.open(path).convert("RGB"))[None])[0]
            right.append(int(logits[[2, 4, 9, 500]].argmax()) == label)
    expected = pytest.approx(100 * np.mean(right))
    assert float(rows["test_convnext"]["V2: top-1 (%)"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.imagenet_r r", "--ckpt_path FILE|RUN"),
        ("--ckpt_path runs/small", "found no images"),
        ("--ckpt_path runs/small --data.imagenet_r nowhere", "nowhere: this is no folder"),
        ("--ckpt_path runs/small --data.imagenet_q r", "--data.imagenet_q"),
        ("--ckpt_path runs/smal --data.imagenet_r r", "does not exist"),
        ("--ckpt_path runs --data.imagenet_r r", "holds no checkpoints/last.ckpt"),
        ("--ckpt_path runs/small --data.imagenet_r photos", "the model knows 0 of the 2 classes"),
        ("--ckpt_path runs/small --data.imagenet_c r", "expected folders of corruptions"),
        ("--ckpt_path runs/small --data.imagenet_r r --data.batch_size 0", "data.batch_size"),
        ("--ckpt_path runs/small --data.imagenet_r r --device nowhere", "--device nowhere"),
        ("--model.backbone convnxt_tiny --data.imagenet_r r", "timm has no model 'convnxt_tiny'"),
        ("--model.backbone resnet18 --model.init_from x --data.imagenet_r r", "does not exist"),
        ("--model.init_from x --ckpt_path runs/small --data.imagenet_r r", "--model.backbone NAME"),
        ("--ckpt_path runs/small --data.imagenet_r broken", "is empty"),
    ],
)
def test_mistakes_are_told_before_anything_is_evaluated(
    place, arguments, message, capsys, monkeypatch
):
    monkeypatch.chdir(place)
    if "broken" in arguments:
        shutil.rmtree(place / "broken", ignore_errors=True)
        write_images(place / "broken", [IDS[2], IDS[9], IDS[4]])
        for path in (place / "broken" / IDS[4]).iterdir():
            path.unlink()

    def never(*_):
        raise AssertionError("something was evaluated")

    monkeypatch.setattr("lightning_overlock.robustness.command.measure", never)
    monkeypatch.setattr("lightning_overlock.robustness.command.measure_corrupted", never)
    assert main(["robustness", *arguments.split()]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) <= 3


def test_weights_of_another_heads_classes_are_refused(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    model = timm.create_model("test_convnext", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    code = main(
        [
            "robustness", "--model.backbone=test_convnext",
            f"--model.init_from={tmp_path / 'seven.pth'}", "--data.imagenet_r=r",
        ]
    )  # fmt: skip
    assert code == 2
    assert "a head for 7 classes" in capsys.readouterr().err
