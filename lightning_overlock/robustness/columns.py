"""The columns of robustness figures, which the command's table and a sweep's have alike."""

from collections.abc import Iterable

# Of each corruption, which the CSV has and tables do not.
ONE_CORRUPTION = "C: CE "


def shown(headings: Iterable[str]) -> list[str]:
    """Return those that a table has."""
    return [heading for heading in headings if not heading.startswith(ONE_CORRUPTION)]


def droppable(headings: Iterable[str]) -> list[str]:
    """Return those that a narrow terminal does without, the first ones first."""
    headings = list(headings)
    return [name for name in headings if "NLL" in name] + [n for n in headings if "ECE" in n]


def text(heading: str, value: float) -> str:
    """Return a figure as tables print it."""
    return f"{value:.3f}" if "NLL" in heading else f"{value:.2f}"
