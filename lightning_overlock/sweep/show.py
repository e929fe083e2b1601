"""What `lightning sweep status`, `best`, `report` and `list` show."""

from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import changed_rows, compare_settings
from lightning_overlock.sweep.live import clock
from lightning_overlock.sweep.read import shipped
from lightning_overlock.sweep.study import Study


def show_study(
    action: str, name: str, runs: Path, storage: str | None, output: Path | None
) -> None:
    """Write a study's report, or print its best trial; the sweep file is not needed.

    Args:
        action: "report" or "best".
        name: The study's name.
        runs: The folder of the sweeps' folders.
        storage: The database's URL; None for the folder's own.
        output: Where the report goes; None for the sweep's folder.

    Raises:
        InputError: If there is no such study, or no trial of it is complete.
    """
    from lightning_overlock.sweep.notebook import load
    from lightning_overlock.sweep.report import write_report
    from lightning_overlock.sweep.trials import metric_of

    results = load(name, runs, storage).results
    if action == "report":
        path = (output or results.folder) / "report.html"
        write_report(results, path)
        print(str(path))
        return
    best = results.best
    if best is None:
        raise InputError(f"{results.name}: no trial is complete yet.")
    marks = best.user_attrs
    print(f"{marks['folder']}: {results.metric} {results.text(metric_of(best) or 0.0)}")
    print(marks.get("command", ""))
    if marks.get("checkpoint"):
        print(str(results.folder / marks["checkpoint"]))


def print_list(runs: Path) -> None:
    """Print the shipped sweeps and the studies below a folder."""
    print("shipped sweeps:")
    for name, path in shipped().items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
        print(f"  {name:22} {first}")
    studies = sorted(path.parent.name for path in runs.glob("*/study.db"))
    print(f"studies in {runs}: {', '.join(studies) or 'none'}")


def print_status(study: Study, folder: Path) -> None:
    """Print the state of every trial, and why trials have failed."""
    console = Console(highlight=False, markup=False)
    stored = study.optuna.user_attrs.get("sweep")
    if stored is not None:
        compare_settings(study.sweep, stored, study.name)
        for key, old, new in changed_rows(study.sweep, stored, study.trials()).values():
            console.print(f"{key}: the file now says {new}, but it was trained with {old}.")
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "state", "epochs", study.sweep.metric, "time", "tries", ""):
        justify: Any = "left" if column in {"trial", "state", ""} else "right"
        # A narrow terminal takes its room from the reasons, not from names.
        table.add_column(column, justify=justify, no_wrap=column != "")
    failed = []
    states = study.states()
    for name, trial in states.items():
        attributes: dict[str, Any] = trial.user_attrs if trial is not None else {}
        value = attributes.get("value")
        error = attributes.get("error", "").splitlines()
        if trial is not None and trial.state == TrialState.FAIL and error:
            failed.append((name, attributes))
        reported = trial.intermediate_values if trial is not None else {}
        table.add_row(
            name,
            "missing" if trial is None else trial.state.name.lower(),
            str(attributes.get("epochs") or (max(reported) + 1 if reported else "")),
            "" if value is None else f"{value:.4g}",
            clock(attributes.get("seconds")),
            str(attributes.get("attempts", "")),
            error[0][:80] if error else "",
        )
    console.print(table)
    for name, attributes in failed:
        console.print(f"\n{name} failed: {folder / attributes.get('log', name + '.log')}")
        for line in attributes["error"].splitlines()[:1] + attributes["error"].splitlines()[-6:]:
            console.print(f"  {line}", soft_wrap=True)
        if attributes.get("repeats"):
            console.print("  It would fail in the same way again: `run --retry-failed` tries.")
    console.print(study.summary(states))
