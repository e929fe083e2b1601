"""Files of predictions: there as soon as a row is made, and never written over."""

import json
from types import SimpleNamespace

import pytest

from lightning_overlock.errors import InputError
from lightning_overlock.tasks.predictions import Rows, keep_earlier, tell_unreadable


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
