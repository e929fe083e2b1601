"""The metrics of a run as one CSV file: a row per trained epoch and a row per evaluation."""

import csv
import fcntl
import io
import math
from pathlib import Path
from typing import Any

from lightning_overlock.runs.layout import METRICS


def write_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row; an epoch that is trained again replaces its earlier row and later ones.

    Args:
        path: The CSV file.
        row: "stage" (fit, validate or test), "epoch", "step" and the metrics.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a validation may run beside the training
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
        if row["stage"] == "fit" and row["epoch"] is not None:
            rows = [r for r in rows if r["stage"] != "fit" or int(r["epoch"]) < row["epoch"]]
        rows.append(row)
        columns = list(dict.fromkeys(name for r in rows for name in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        # Shortened only afterwards, so that a kill leaves no empty file.
        file.seek(0)
        file.write(text.getvalue())
        file.truncate()


def read_curve(folder: Path, stage: str = "fit") -> list[dict[str, float]]:
    """Return the rows of a run's metrics file, as far as they are written.

    Args:
        folder: The run folder.
        stage: "fit" for the trained epochs, "validate" or "test" for evaluations.
    """
    try:
        with (folder / METRICS).open(newline="") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the writer holds it exclusively
            text = file.read()
    except OSError:
        return []
    # A run that was killed amid a line has half a number at its end.
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = [row for row in csv.DictReader(lines) if row.pop("stage") == stage]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def best_of(curve: list[dict[str, float]], metric: str, direction: str) -> dict[str, float] | None:
    """Return the first of the best rows by a metric; None if none has a finite value of it.

    Args:
        curve: The rows.
        metric: The metric's name.
        direction: "maximize" or "minimize".
    """
    rows = [row for row in curve if math.isfinite(row.get(metric, math.nan))]
    if not rows:
        return None
    return (max if direction == "maximize" else min)(rows, key=lambda row: row[metric])
