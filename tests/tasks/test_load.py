"""A trained task from Python: as `lightning predict` says it, from paths, PIL images and arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import csv_rows, write_checkpoint

import lightning_overlock
from lightning_overlock.cli.main import main
from lightning_overlock.data import DigitsDataModule, ImageFolderDataModule, PathfinderDataModule
from lightning_overlock.data.digits import DigitImages
from lightning_overlock.data.loading import Key
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it, of a classifier that was not trained."""
    folder = tmp_path_factory.mktemp("trained") / "runs/insects"
    data = ImageFolderDataModule(predict_dir=[], image_size=32)
    data.class_names = ["beetle", "moth"]
    task = ClassificationTask(data.class_names, backbone="test_convnext")
    config = {
        "model": {
            "class_path": "lightning_overlock.tasks.ClassificationTask",
            "init_args": {"backbone": "test_convnext"},
        },
        "data": {
            "class_path": "lightning_overlock.data.ImageFolderDataModule",
            "init_args": {"root": "gone", "predict_dir": None, "image_size": [32, 32]},
        },
    }
    write_checkpoint(folder / "checkpoints/last.ckpt", task, data, config)
    return folder


def test_predict_takes_files_and_folders_among_its_options(run, monkeypatch, tmp_path, capsys):
    for name in ("a/x.png", "a/y.png", "b/x.png", "z.png"):
        save(tmp_path / name, photo(len(name)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERLOCK_RUNS", str(run.parent))
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    options = "--data.batch_size 2 --data.num_workers=0 --trainer.accelerator=cpu"
    command = f"predict a --ckpt_path={run} {options} b/x.png z.png a/x.png"
    assert main(command.split()) == 0, capsys.readouterr().err
    found = csv_rows(run / "predictions.csv")
    assert [row["item"] for row in found] == ["a/x.png", "a/y.png", "b/x.png", "z.png"]
    task = lightning_overlock.load(run)
    for row, each in zip(found, task.predict_images([row["item"] for row in found]), strict=True):
        assert each.class_name == row["class1"]
        assert each.probabilities.max() == pytest.approx(float(row["probability1"]), abs=1e-6)


def test_a_single_image_and_none_are_fine_and_the_mode_is_left_as_it_was(run):
    task = lightning_overlock.load(run)
    assert len(task.predict_images(photo(1))) == 1
    assert task.predict_images([]) == []
    task.train()
    task.predict_images([photo(1)])
    assert task.training


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4)), "image 0 is an array of float64 and shape (4, 4)"),
        (np.zeros((3, 4, 5), np.uint8), "shape (3, 4, 5)"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (torch.zeros(3), "image 0 is a Tensor"),
        ("nowhere.png", "nowhere.png"),
        (Image.new("F", (4, 4)), "image 0 cannot be read: floating-point"),
    ],
    ids=["floats", "channels first", "empty", "tensor", "no file", "float image"],
)
def test_what_is_no_image_is_refused_in_a_line(run, image, words):
    task = lightning_overlock.load(run)
    with pytest.raises(InputError) as refusal:
        task.predict_images([image])
    assert words in str(refusal.value)


def test_what_is_no_run_is_refused_in_a_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        lightning_overlock.load(tmp_path / "nothing.ckpt")
    with pytest.raises(InputError, match=r"holds no checkpoints/last\.ckpt"):
        lightning_overlock.load(tmp_path)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"pytorch-lightning_version": "2.6.0", "state_dict": {}}, foreign)
    with pytest.raises(InputError, match="no configuration inside"):
        lightning_overlock.load(foreign)


def test_a_task_that_nobody_loaded_says_what_it_lacks():
    task = ClassificationTask(["a", "b"], backbone="test_convnext")
    with pytest.raises(InputError, match="does not know how an image becomes a tensor"):
        task.predict_images([photo(1)])


def test_drawn_data_see_a_canvas_as_they_draw_it():
    data = DigitsDataModule(image_size=48)
    drawn = DigitImages("test", 48, augment=False, seed=0, named=False)[Key(0, 5)][0]
    ink = (drawn * DigitImages.std + DigitImages.mean).mul(255).round().to(torch.uint8)
    seen = data.image_transform({})(Image.fromarray(ink.permute(1, 2, 0).numpy()))
    assert (seen - drawn).abs().max() < 0.51 / 255 / DigitImages.std
    curves = PathfinderDataModule(train_images=2, eval_images=2)
    drawn = curves.source("test")[Key(0, 1)][0]
    ink = (drawn * curves.std + curves.mean).mul(255).round().to(torch.uint8)
    seen = curves.image_transform({})(Image.fromarray(ink.permute(1, 2, 0).numpy()))
    assert torch.allclose(seen, drawn, atol=1e-5)
