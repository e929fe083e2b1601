"""`predict` needs a checkpoint and images: the training data are gone, some images are broken."""

import contextlib
import csv
import io
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from shared import small_files

from lightning_overlock import load
from lightning_overlock.cli.main import main
from lightning_overlock.tasks import ClassificationTask

NAMES = ["[b] null", "tree [dead]"]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a run whose training data are gone."""
    folder = tmp_path_factory.mktemp("classifier")
    for split, count in (("train", 2), ("val", 1)):
        for name in NAMES:
            for number in range(count):
                save(folder / "photos" / split / name / f"{number}.png", photo(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "42")
        options = "--data.image_size=32 --data.batch_size=2 --data.num_workers=0"
        command = (
            "fit --model=ClassificationTask --model.backbone=test_convnext --name=photos "
            f"--data=ImageFolderDataModule --data.root=photos {options} "
            "--trainer.max_epochs=1 --trainer.accelerator=cpu --trainer.log_every_n_steps=1"
        )
        assert main(command.split()) == 0
    shutil.rmtree(folder / "photos")
    return folder


def predict(folder: Path, given: Path, *more: str) -> int:
    checkpoint = folder / "runs/photos/checkpoints/last.ckpt"
    return main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={given}", *more])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/photos/predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_checkpoint_holds_what_prediction_needs_in_plain_types(classifier):
    path = classifier / "runs/photos/checkpoints/last.ckpt"
    assert torch.load(path, weights_only=True)["data"] == {"class_names": NAMES}


@pytest.mark.parametrize(
    ("command", "word", "reason"),
    [
        ("predict", "--data.root=photos", "The checkpoint and data.predict_dir say all"),
        ("predict", "--data.hflip=0.1", "Only fit does"),
        ("validate", "--data.re_prob=0.1", "Only fit does"),
        ("validate", "--data.predict_dir=new", "Only predict does"),
        ("test", "--data.init_args.predict_dir=new", "Only predict does"),
    ],
)
def test_options_of_the_data_that_a_command_does_not_use_are_refused(
    classifier, command, word, reason, capsys
):
    (classifier / "new").mkdir(exist_ok=True)
    words = [f"--ckpt_path={classifier / 'runs/photos'}", word]
    images = [f"--data.predict_dir={classifier / 'new'}"] if command == "predict" else []
    assert main([command, *words, *images]) == 2
    answer = capsys.readouterr().err
    assert f"{word.partition('=')[0]}: {command} makes no use of this option." in answer
    assert f"{reason}; leave it out." in answer


def test_every_image_has_a_row_and_a_broken_one_costs_a_line(
    classifier, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.chdir(classifier)
    for name in ("a.jpg", "b.jfif", "c.jpe", "deep/d.GIF"):
        path = tmp_path / "new" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(1)).save(path, format="GIF" if name.endswith("GIF") else "JPEG")
    Image.fromarray(photo(1)).save(tmp_path / "new" / os.fsdecode(b"caf\xe9.jpg"), format="JPEG")
    (tmp_path / "new/empty.png").touch()
    (tmp_path / "new/html.png").write_text("<html>")
    save(tmp_path / "new/large.png", np.zeros((100, 100), np.uint8))
    (tmp_path / "new/notes.txt").touch()
    # Lightning's logger has a handler of its own where none was there when it was imported.
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level("INFO"):
        assert predict(classifier, tmp_path / "new", "--data.max_image_pixels=9999") == 0
    found = rows(classifier)
    assert [Path(row["item"]).name for row in found] == [
        "a.jpg",
        "b.jfif",
        "c.jpe",
        "caf\\udce9.jpg",
        "d.GIF",
    ]
    assert {row["class1"] for row in found} <= set(NAMES)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "predict: used 8 of 9 files, 1 left out: 1 with the suffix .txt (notes.txt)" in said
    assert "empty.png: no intact image (the file is empty)" in said
    assert "html.png: no intact image (no known format)" in said
    assert "large.png: 100 x 100 pixels are more than 9,999" in said
    assert "3 of 8 images could not be read" in said


def test_a_single_file_is_predicted_and_one_that_cannot_be_read_is_an_error(
    classifier, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(classifier)
    save(tmp_path / "one.png", photo(3))
    save(tmp_path / "other.png", photo(3))
    assert predict(classifier, tmp_path / "one.png") == 0
    assert [row["item"] for row in rows(classifier)] == [str(tmp_path / "one.png")]
    (tmp_path / "one.png").write_bytes(b"")
    assert predict(classifier, tmp_path / "one.png") == 2
    lines = capsys.readouterr().err.strip().splitlines()[-2:]
    assert lines[0].endswith("none of 1 images could be read, the first:")
    assert lines[1] == f"{tmp_path}/one.png: no intact image (the file is empty)"


def three_kinds(path: Path) -> list[object]:
    """An image as a path, a PIL image and an array."""
    with Image.open(path) as image:
        image.load()
        return [path, image, np.asarray(image)]


def test_python_says_what_predict_writes_of_a_classifier(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(classifier)
    save(tmp_path / "new/one.png", photo(3))
    assert predict(classifier, tmp_path / "new") == 0
    (row,) = rows(classifier)
    task = load("runs/photos/checkpoints/last.ckpt")
    assert task.class_names == NAMES
    assert not task.training
    for found in task.predict_images(three_kinds(tmp_path / "new/one.png"), batch_size=2):
        assert found.class_name == row["class1"]
        assert found.probabilities.max() == pytest.approx(float(row["probability1"]), abs=1e-6)
        assert found.probabilities.sum() == pytest.approx(1, abs=1e-6)


# Segmentation.

COLOURS = np.array([[10, 200, 30], [250, 0, 0]], np.uint8)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A folder with a run that was trained on palette files of 0 and 255; they are gone."""
    folder = tmp_path_factory.mktemp("segmenter")
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            save(folder / f"plots/images/{split}/{number}.png", photo(number))
            label = Image.fromarray((photo(number)[..., 0] > 128).astype(np.uint8) * 255, "L")
            label.putpalette([*COLOURS[0], *[0] * 3 * 254, *COLOURS[1]])
            (folder / f"plots/labels/{split}").mkdir(parents=True, exist_ok=True)
            label.save(folder / f"plots/labels/{split}/{number}.png")
    (folder / "plots/classes.txt").write_text("[/b] soil\ntree [dead]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "42")
        command = (
            "fit --model=SegmentationTask --model.backbone=test_convnext --model.decoder_width=8 "
            "--model.auxiliary_width=8 --model.test_size=32 --data=SegmentationFolderDataModule "
            "--data.root=plots --data.batch_size=2 --data.num_workers=0 --data.crop_size=32 "
            "--data.resize=[48,40] --data.label_values=[0,255] --name=photos "
            "--trainer.max_epochs=1 --trainer.accelerator=cpu --trainer.log_every_n_steps=1"
        )
        assert main(command.split()) == 0
        checkpoint = folder / "runs/photos/checkpoints/last.ckpt"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main(["validate", f"--ckpt_path={checkpoint}"]) == 0
    (folder / "validate.txt").write_text(said.getvalue(), encoding="utf-8")
    shutil.rmtree(folder / "plots")
    return folder


def test_a_segmenter_needs_no_training_data_either(segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(segmenter)
    state = torch.load(segmenter / "runs/photos/checkpoints/last.ckpt", weights_only=True)["data"]
    assert state == {
        "class_names": ["[/b] soil", "tree [dead]"],
        "label_values": [0, 255],
        "reduce_zero_label": False,
        "palette": COLOURS.tolist(),
    }
    save(tmp_path / "new/a.png", photo(5))
    (tmp_path / "new/b.png").write_bytes(b"")
    assert predict(segmenter, tmp_path / "new", "--model.save_overlays=true") == 0
    written = segmenter / "runs/photos/segmentation"
    assert sorted(path.name for path in written.iterdir()) == ["a.overlay.png", "a.png"]
    with Image.open(written / "a.png") as labels, Image.open(written / "a.overlay.png") as drawn:
        values, overlaid = np.asarray(labels), np.asarray(drawn)
    assert set(np.unique(values)) <= {0, 255}
    expected = 0.4 * photo(5) + 0.6 * COLOURS[(values == 255).astype(int)]
    assert np.abs(overlaid - expected).max() <= 2


def test_python_says_what_predict_writes_of_a_segmenter(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(segmenter)
    save(tmp_path / "new/a.png", photo(5))
    assert predict(segmenter, tmp_path / "new/a.png") == 0
    with Image.open("runs/photos/segmentation/a.png") as written:
        expected = np.asarray(written) == 255
    task = load("runs/photos/checkpoints/last.ckpt")
    assert task.class_names == ["[/b] soil", "tree [dead]"]
    for found in task.predict_images(three_kinds(tmp_path / "new/a.png")):
        assert found.labels.dtype == np.int64
        np.testing.assert_array_equal(found.labels, expected)


def test_a_signal_ends_a_prediction_after_its_batch(classifier, tmp_path, monkeypatch):
    """Lightning would predict for all others, and say that all went well."""
    for number in range(6):
        save(tmp_path / f"new/{number}.png", photo(number))
    monkeypatch.chdir(classifier)
    step = ClassificationTask.predict_step

    def interrupted(self, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "predict_step", interrupted)
    found = predict(classifier, tmp_path / "new", "--data.batch_size=1")
    assert found == 128 + signal.SIGTERM
    assert len(rows(classifier)) == 3


def test_a_signal_ends_an_evaluation_with_the_code_of_one(monkeypatch):
    """Lightning's exception for it has none, as if all went well."""

    def terminated(arguments):
        raise SIGTERMException

    monkeypatch.setattr("lightning_overlock.cli.main._run", terminated)
    assert main(["validate"]) == 128 + signal.SIGTERM


def test_a_full_disk_ends_a_prediction_in_words(
    classifier, segmenter, tmp_path, monkeypatch, capsys
):
    """The rows and pictures until then are whole."""
    # The disk is not full yet when the command begins.
    monkeypatch.setattr("lightning_overlock.cli.training.require_writable", lambda *_: None)
    for number in range(6):
        save(tmp_path / f"new/{number}.png", photo(number))
    monkeypatch.chdir(classifier)
    with small_files(500):
        assert predict(classifier, tmp_path / "new", "--data.batch_size=1") == 2
    written = rows(classifier)
    assert 1 <= len(written) < 6
    assert all(row["probability2"] and len(row) == 5 for row in written)
    answer = capsys.readouterr().err.splitlines()
    assert "predictions.csv cannot be written: File too large." in answer[-2]
    assert answer[-1].startswith("What is already written is good.")
    monkeypatch.chdir(segmenter)
    with small_files(60):
        assert predict(segmenter, tmp_path / "new") == 2
    assert "0.png cannot be written: File too large." in capsys.readouterr().err
    assert not list(Path("runs/photos/segmentation").rglob("*.png"))


def test_names_with_brackets_are_unharmed_in_the_table_per_class(segmenter):
    with (segmenter / "runs/photos/per_class_val.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["[/b] soil", "tree [dead]"]
    said = (segmenter / "validate.txt").read_text(encoding="utf-8")
    assert "│ [/b] soil " in said
    assert "│ tree [dead] " in said
