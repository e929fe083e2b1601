"""Rows of figures as text."""

from collections.abc import Sequence
from typing import Any

from lightning_overlock.bench.report import digits


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows as a Markdown table that also reads well as plain text.

    Args:
        rows: with the same keys, as the functions of this package return them.
        columns: the keys to show and their order; None shows all.

    Returns:
        A heading, a rule and a line per row, columns padded to one width. Floats have three
        significant digits (all their digits before the point), None is "-".

    Raises:
        ValueError: no rows.

    Example:
        >>> print(markdown([{"model": "a", "error %": 12.345}, {"model": "b", "error %": None}]))
        | model | error % |
        | ----- | ------: |
        | a     |    12.3 |
        | b     |       - |
    """
    if not rows:
        raise ValueError("found no rows to make a table of")
    keys = list(rows[0] if columns is None else columns)
    lines = [keys, *([_cell(row[key]) for key in keys] for row in rows)]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(keys))]
    words = [any(isinstance(row[key], str) for row in rows) for key in keys]
    padded = [
        [
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ]
        for line in lines
    ]
    rule = [
        "-" * width if word else "-" * (width - 1) + ":"
        for width, word in zip(widths, words, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return digits(value) if isinstance(value, float) else str(value)
