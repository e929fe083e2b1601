"""Files of predictions: there as soon as a row is made, and never written over."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shared import small_files

from lightning_overlock.errors import InputError
from lightning_overlock.tasks.per_class import write_classes, write_confusion
from lightning_overlock.tasks.predictions import (
    Rows,
    keep_earlier,
    tell_unreadable,
    write_prediction,
)


def trainer(folder, rank=0, world_size=1, **more):
    return SimpleNamespace(
        default_root_dir=folder,
        global_rank=rank,
        world_size=world_size,
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(barrier=lambda: None),
        **more,
    )


def test_what_an_earlier_prediction_left_is_moved_and_kept(tmp_path):
    run = trainer(tmp_path / "run")
    for text in ("one", "two", "three"):
        path = keep_earlier(run, "predictions.csv")
        assert not path.exists()
        path.write_text(text)
    found = {file.name: file.read_text() for file in path.parent.iterdir()}
    assert found == {
        "predictions.csv": "three",
        "predictions.csv.1": "one",
        "predictions.csv.2": "two",
    }


def test_rows_are_in_the_file_before_the_next_one_is_made(tmp_path):
    path = tmp_path / "detections.json"
    rows = Rows(trainer(tmp_path), path, "[\n", ",\n")
    for count in range(1, 4):
        rows.add(json.dumps({"n": count}))
        assert len(json.loads(path.read_text() + "]")) == count
    rows.close("\n]\n")
    assert json.loads(path.read_text()) == [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize("counts", [(2, 1, 2), (0, 2, 1), (0, 0, 0), (1, 0, 0)])
def test_the_parts_of_all_processes_become_one_file(tmp_path, counts):
    path = tmp_path / "detections.json"
    parts = [Rows(trainer(tmp_path, rank, 3), path, "[\n", ",\n") for rank in range(3)]
    for rank, count in enumerate(counts):
        for number in range(count):
            parts[rank].add(json.dumps([rank, number]))
    for part in reversed(parts):
        part.close("\n]\n")
    expected = [[rank, n] for rank, count in enumerate(counts) for n in range(count)]
    assert json.loads(path.read_text()) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["detections.json"]


def test_line_ends_within_a_row_stay(tmp_path):
    path = tmp_path / "predictions.csv"
    parts = [Rows(trainer(tmp_path, rank, 2), path, "item\r\n") for rank in range(2)]
    parts[1].add('"a\nb"\r\n')
    for part in reversed(parts):
        part.close()
    assert path.read_bytes() == b'item\r\n"a\nb"\r\n'


def test_unreadable_images_are_told_and_all_of_them_are_an_error(tmp_path):
    loader = SimpleNamespace(unreadable=["a.png is broken"], source=range(2))
    tell_unreadable(trainer(tmp_path, predict_dataloaders=loader))
    loader.source = range(1)
    with pytest.raises(InputError, match=r"none of 1 images.*\na.png is broken"):
        tell_unreadable(trainer(tmp_path, predict_dataloaders=loader))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_row_that_does_not_fit_on_the_disk_leaves_the_whole_ones(tmp_path, rank):
    path = tmp_path / "predictions.csv"
    rows = Rows(trainer(tmp_path, rank, 2), path, "item\r\n")
    rows.add("a,cat\r\n")
    own = path if rank == 0 else tmp_path / "predictions.csv.of1"
    before = own.read_bytes()
    with small_files(len(before) + 3), pytest.raises(InputError) as caught:
        rows.add("b,dog\r\n")
    assert str(caught.value).splitlines() == [
        f"{own} cannot be written: File too large.",
        "What is already written is good. Make room, then predict again.",
    ]
    assert own.read_bytes() == before
    rows.add("b,dog\r\n")
    assert own.read_bytes() == before + b"b,dog\r\n"


def test_a_head_and_an_end_that_do_not_fit_are_told_as_well(tmp_path):
    path = tmp_path / "detections.json"
    with small_files(1), pytest.raises(InputError, match=r"detections\.json cannot be written"):
        Rows(trainer(tmp_path), path, "[\n")
    rows = Rows(trainer(tmp_path), path, "[\n")
    with small_files(4), pytest.raises(InputError, match=r"detections\.json cannot be written"):
        rows.close("\n]\n")
    assert path.read_text() == "[\n"


@pytest.mark.parametrize("name", ["deep/a.png", "deep/a.JPG", "deep/a.webp", "a.overlay.png"])
def test_a_picture_that_does_not_fit_leaves_no_half(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    with small_files(500), pytest.raises(InputError) as caught:
        write_prediction(Image.fromarray(pixels), path)
    assert str(caught.value).startswith(f"{path} cannot be written: File too large.\n")
    assert not path.exists()
    write_prediction(Image.fromarray(pixels), path)
    with Image.open(path) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize("name", ["a.psd", "a.fli", "a.strange", "a"])
def test_a_picture_whose_format_pillow_does_not_write_is_a_png(tmp_path, name):
    write_prediction(Image.new("RGB", (8, 8)), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


@pytest.mark.parametrize(("limit", "broken"), [(20, ".csv"), (2000, ".png")])
def test_tables_and_pictures_of_classes_that_do_not_fit_leave_the_old_ones(tmp_path, limit, broken):
    names, confusion = ["a", "b"], torch.eye(2).long()
    paths = [tmp_path / "confusion.csv", tmp_path / "confusion.png"]
    write_confusion(paths[0], names, confusion)
    before = [path.read_bytes() for path in paths]
    with small_files(limit), pytest.raises(InputError, match=rf"confusion\{broken} cannot be wr"):
        write_confusion(paths[0], names, confusion)
    assert [path.read_bytes() for path in paths] == before
    with small_files(5), pytest.raises(InputError, match=r"classes\.csv cannot be written"):
        write_classes(tmp_path / "classes.csv", names, {"iou": torch.ones(2)}, {"n": torch.ones(2)})
    assert not (tmp_path / "classes.csv").exists()
