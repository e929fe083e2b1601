"""Metrics of each class, as a table, as CSV and as a picture."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich
from lightning.pytorch.utilities import rank_zero_info
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_overlock.runs.disk import replace_file

# With more classes a picture has no room for their names.
NAMED_CLASSES = 40


def write_classes(
    path: Path,
    class_names: Sequence[str],
    shares: Mapping[str, Tensor],
    counts: Mapping[str, Tensor],
) -> None:
    """Print a row per class, and write it to a CSV file.

    Args:
        path: The file.
        class_names: C names.
        shares: (C,) each, between 0 and 1 or NaN, which is left empty.
        counts: (C,) each, whole numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["class", *shares, *counts]
    table = Table(*(name.replace("iou", "IoU") for name in columns))
    rows = [columns]
    for index, name in enumerate(class_names):
        values = [float(column[index]) for column in shares.values()]
        written = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        numbers = [str(int(column[index])) for column in counts.values()]
        rows.append([name, *written, *numbers])
        table.add_row(Text(name), *(value[:6] for value in written), *numbers)
    _write_csv(path, rows)
    rich.print(table)
    rank_zero_info(f"Classes: {path}")


def write_confusion(path: Path, class_names: Sequence[str], confusion: Tensor) -> None:
    """Write a confusion matrix to a CSV file, and as a picture beside it.

    Args:
        path: The CSV file; the picture has the suffix .png.
        class_names: C names.
        confusion: (C, C), images by true class (rows) and predicted class (columns).
    """
    named = zip(class_names, confusion.tolist(), strict=True)
    _write_csv(path, [["true class", *class_names], *([name, *row] for name, row in named)])
    # Neither `fit` nor `predict` needs it.
    from matplotlib.figure import Figure

    count = len(class_names)
    side = min(max(3.0, 0.35 * count), 14.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted class", ylabel="true class")
    if count <= NAMED_CLASSES:
        for axis in (axes.xaxis, axes.yaxis):
            # A user's names are no formulas.
            axis.set_ticks(range(count), [name[:24] for name in class_names], parse_math=False)
        axes.xaxis.set_tick_params(rotation=90)
    figure.colorbar(image, label="share of the true class")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    replace_file(path.with_suffix(".png"), picture.getbuffer())
    rank_zero_info(f"Confusion matrix: {path}, {path.with_suffix('.png').name}")


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    replace_file(path, text.getvalue().encode())
