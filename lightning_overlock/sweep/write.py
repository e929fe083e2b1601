"""Writing and printing what a sweep has measured."""

from pathlib import Path

from lightning_overlock.sweep import plots
from lightning_overlock.sweep.report import write_report
from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.table import comparison_sheet, factor_sheet, sheet


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
        page.write(folder, name)
    plots.write(results, folder)
    for page in found.values():
        page.print()


def track(results: Results, folder: Path, logger: str | list[str]) -> None:
    """Hand tables and report of a sweep to the trackers that its trials have used.

    Args:
        results: What was measured.
        folder: Where the files are; the report is written there.
        logger: The option of the trials.
    """
    # Lightning, which a table alone does not need.
    from lightning_overlock.callbacks.trackers import TrackedRun, log_results, tracker_names

    write_report(results, folder / "report.html")
    files = [*sorted(folder.glob("*.csv")), *sorted(folder.glob("*.md")), folder / "report.html"]
    run = TrackedRun(results.name, folder / "results", results.name, {})
    log_results(tracker_names(logger), run, files)
