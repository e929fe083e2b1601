"""Writing and printing what a sweep has measured."""

from pathlib import Path

from rich.console import Console

from lightning_overlock.sweep import plots
from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.table import comparison_sheet, factor_sheet, sheet
from lightning_overlock.tables import Table


def write(results: Results, folder: Path) -> None:
    """Write the tables (Markdown, CSV, LaTeX) and the figures of a sweep, and print the tables.

    Args:
        results: What was measured.
        folder: Where the files go.
    """
    pages = {
        "table": sheet(results),
        "comparisons": comparison_sheet(results),
        "factors": factor_sheet(results) if results.lines else None,
    }
    found = {name: page for name, page in pages.items() if page is not None}
    for name, page in found.items():
        write_table(page, folder, name)
    plots.write(results, folder)
    for page in found.values():
        print_table(page)


def write_table(table: Table, folder: Path, name: str) -> None:
    """Write a table as Markdown, CSV and LaTeX into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    forms = {"md": table.markdown() + "\n", "csv": table.csv(), "tex": table.latex()}
    for suffix, text in forms.items():
        (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")


def print_table(page: Table) -> None:
    """Print a table: whole into a pipe, into a terminal what it has room for."""
    console = Console(highlight=False, markup=False)
    table = page.terminal(console.width if console.is_terminal else None)
    width = Console(width=1000).measure(table).maximum
    Console(width=max(width, console.width)).print(table)
    for note in page.notes:
        console.print(f"- {note}", soft_wrap=True)
