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
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "table": sheet(results),
        "comparisons": comparison_sheet(results),
        "factors": factor_sheet(results) if results.lines else None,
    }
    for name, page in pages.items():
        if page is not None:
            (folder / f"{name}.md").write_text(page.markdown() + "\n", encoding="utf-8")
            (folder / f"{name}.csv").write_text(page.csv(), encoding="utf-8")
            (folder / f"{name}.tex").write_text(page.latex(), encoding="utf-8")
    plots.write(results, folder)
    for page in pages.values():
        if page is not None:
            _print(page)


def _print(page: Table) -> None:
    console = Console(highlight=False, markup=False)
    # A pipe gets the whole table; a terminal what it has room for.
    table = page.terminal(console.width if console.is_terminal else None)
    width = Console(width=1000).measure(table).maximum
    Console(width=max(width, console.width)).print(table)
    for note in page.notes:
        console.print(f"- {note}", soft_wrap=True)
