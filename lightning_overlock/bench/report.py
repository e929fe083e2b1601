"""Measured rows as tables, each figure with its ratio to that of the first row."""

import re
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from lightning_overlock.tables import format_figure

Row = dict[str, str | float | None]


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Figures to print, each with its ratio to that of the first row of the same size.

    Different operations are not compared.
    """
    first: dict[object, Row] = {}
    cells = []
    for row in rows:
        base = first.setdefault(row.get("operation", row.get("size")), row)
        line = []
        for key, value in row.items():
            if not isinstance(value, float):
                line.append("-" if value is None else value)
                continue
            text = format_figure(value)
            reference = base[key]
            if row is not base and isinstance(reference, float) and value and reference:
                # A time's ratio is turned round: how many times as fast.
                ratio = reference / value if key.endswith(" ms") else value / reference
                text += f" ({ratio:.3g}x)"
            line.append(text)
        cells.append(line)
    return cells


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *_cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(rows: Sequence[Row], title: str) -> None:
    """Print rows with the same keys as a table on the terminal."""
    table = Table(title=title, title_justify="left")
    for key, value in rows[0].items():
        heading = re.sub(r" (peak MiB|\S+)$", r"\n\1", key)  # the unit below the quantity
        side: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for line in _cells(rows):
        table.add_row(*line)
    # A pipe or a narrow window gets the whole table too: cut figures are of no use.
    width = Console(width=1000).measure(table).maximum
    Console(width=max(width, Console().width)).print(table)
