"""Tables of classes and confusion matrices, whatever the classes are named."""

import csv

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from lightning_overlock.tasks.per_class import write_classes, write_confusion

NAMES = ["[red]cat[/red]", r"$\\ours$", "null", "a,b", "\u0643\u0644\u0628", "x" * 200]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_row_per_class_is_written_and_printed_as_it_is(tmp_path, capsys):
    shares = {"accuracy": torch.tensor([1.0, 0.5, float("nan"), 0.25, 0, 1])}
    counts = {"images": torch.tensor([3, 2, 0, 4, 1, 1])}
    write_classes(tmp_path / "new" / "classes.csv", NAMES, shares, counts)
    rows = read(tmp_path / "new" / "classes.csv")
    assert rows[0] == ["class", "accuracy", "images"]
    assert [row[0] for row in rows[1:]] == NAMES
    assert [row[1] for row in rows[1:4]] == ["1.000000", "0.500000", ""]
    assert "[red]cat[/red]" in capsys.readouterr().out


def test_the_confusion_matrix_is_that_of_scikit_learn_and_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    true, found = rng.integers(0, 6, 100), rng.integers(0, 6, 100)
    expected = confusion_matrix(true, found, labels=range(6))
    write_confusion(tmp_path / "confusion_val.csv", NAMES, torch.from_numpy(expected))
    head, *rows = read(tmp_path / "confusion_val.csv")
    assert head == ["true class", *NAMES]
    assert [[int(value) for value in row[1:]] for row in rows] == expected.tolist()
    picture = np.asarray(Image.open(tmp_path / "confusion_val.png").convert("RGB"))
    assert picture.std() > 10
