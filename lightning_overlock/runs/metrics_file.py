"""The metrics of a run as one CSV file.

A row is written for every trained epoch (stage "fit"), every validation amid an epoch
("fit/validate") and every evaluation afterwards ("validate", "test").
"""

import csv
import fcntl
import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_overlock.runs.disk import replace_file, writing
from lightning_overlock.runs.layout import METRICS, METRICS_LOCK

EPOCH = "fit"
AMID_EPOCH = "fit/validate"
ALL_OF_TRAINING = (EPOCH, AMID_EPOCH)


def write_row(folder: Path, row: dict[str, Any]) -> None:
    """Append a row.

    Args:
        folder: The run folder.
        row: "stage", "epoch", "step" and the metrics.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _write(folder / METRICS, [*_rows(folder / METRICS), row])


def revise_rows(
    folder: Path, revise: Callable[[int, dict[str, str]], dict[str, str] | None]
) -> None:
    """Drop what a continued run will write anew.

    Args:
        folder: The run folder.
        revise: Returns the row to keep, or None, by its number among those of training and the row.
    """
    if not (folder / METRICS).is_file():
        return
    with _locked(folder):
        before, after, number = _rows(folder / METRICS), [], 0
        for row in before:
            kept: dict[str, str] | None = row
            if row["stage"] in ALL_OF_TRAINING:
                kept = revise(number, row)
                number += 1
            if kept is not None:
                after.append(kept)
        if after != before:
            _write(folder / METRICS, after)


def format_value(value: float, double: bool = False) -> str:
    """Return the shortest text that reads as the same number.

    Args:
        value: The number.
        double: Whether it is a double; else its digits are those of a float32.
    """
    texts = [repr(value)]
    if not double:
        single = np.float32(value)
        texts = [str(single), f"{single:.9g}", repr(float(single))]
    same = (text.removesuffix(".0") for text in texts)
    return min(same, key=len)


def read_curve(folder: Path, *stages: str) -> list[dict[str, float]]:
    """Return rows of a run's metrics file, none if there is no such file.

    Args:
        folder: The run folder.
        stages: Those of the rows; the trained epochs' if none is given. `ALL_OF_TRAINING` are all
            rows of the training, every validation among them.
    """
    wanted = stages or (EPOCH,)
    rows = [row for row in _rows(folder / METRICS) if row.pop("stage") in wanted]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def best_of(curve: list[dict[str, float]], metric: str, direction: str) -> dict[str, float] | None:
    """Return the first of the best rows by a metric; None if none has a finite value of it.

    Args:
        curve: The rows, validations amid epochs included: then it is the row of `best.ckpt`.
        metric: The metric's name.
        direction: "maximize" or "minimize".
    """
    rows = [row for row in curve if math.isfinite(row.get(metric, math.nan))]
    if not rows:
        return None
    return (max if direction == "maximize" else min)(rows, key=lambda row: row[metric])


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    # A file that was copied while it was written, or by an older version, may end amid a line.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if row.get("stage")]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write another file and put it in the place of this one: whoever reads it finds it whole."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let other processes wait: a validation may run beside the training."""
    with writing(folder / METRICS_LOCK):
        lock = os.open(folder / METRICS_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
