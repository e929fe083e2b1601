"""Columns of `lightning robustness` in a sweep, of the trials that are reported."""

import csv
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from lightning_overlock.robustness.columns import shown, text
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.statistics import spread_of

# What the command writes, without suffix, and the trial's attribute that holds its figures.
NAME = "robustness"


def robustness_arguments(sweep: Sweep, checkpoint: Path, folder: Path) -> list[str]:
    """Return what a person would type after `lightning` to measure a trial.

    Args:
        sweep: The sweep.
        checkpoint: The trial's, of the selected epoch.
        folder: Its run folder, where the figures go.
    """
    words = [NAME, "--ckpt_path", str(checkpoint), "--output", str(folder)]
    for name, images in sweep.robustness.items():
        words += [f"--data.{name}", images]
    workers = sweep.options.get("data.num_workers")
    return words if workers is None else [*words, "--data.num_workers", str(workers)]


def measured_robustness(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Return what was measured of a trial, for the study: its figures by heading, and on what.

    Args:
        sweep: The sweep.
        folder: The run folder.
    """
    with (folder / f"{NAME}.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    figures = {heading: float(text) for heading, text in row.items() if ": " in heading and text}
    return {"folders": sweep.robustness, "figures": figures}


def figures_of(sweep: Sweep, trials: list[FrozenTrial]) -> dict[str, list[float]]:
    """Return what trials have on the sweep's folders, a list by heading.

    Trials that were measured on other folders, or not at all, are left out.
    """
    found: dict[str, list[float]] = {}
    for trial in trials:
        measured = trial.user_attrs.get(NAME, {})
        if measured.get("folders") == sweep.robustness:
            for heading, value in measured["figures"].items():
                found.setdefault(heading, []).append(value)
    return found


def robustness_columns(sweep: Sweep, rows: list[list[FrozenTrial]]) -> dict[str, list[str]]:
    """Return the columns of a table.

    Args:
        sweep: The sweep.
        rows: The trials with a result, of each row of the table.

    Returns:
        Cells by heading: mean and standard deviation over the trials.
    """
    figures = [figures_of(sweep, trials) for trials in rows]
    headings = dict.fromkeys(heading for found in figures for heading in found)
    return {
        heading: [_cell(heading, found.get(heading, [])) for found in figures]
        for heading in shown(headings)
    }


def _cell(heading: str, values: list[float]) -> str:
    if not values:
        return ""
    spread = spread_of(values)
    parts = [spread.mean] if spread.std is None else [spread.mean, spread.std]
    return " ± ".join(text(heading, part) for part in parts)


def robustness_record(sweep: Sweep, trials: list[FrozenTrial]) -> dict[str, float | None]:
    """Return mean and standard deviation of each figure, as a table's CSV has them."""
    record: dict[str, float | None] = {}
    for heading, values in figures_of(sweep, trials).items():
        spread = spread_of(values)
        record |= {heading: spread.mean, f"{heading} std": spread.std}
    return record


def robustness_notes(sweep: Sweep, labels: list[str], rows: list[list[FrozenTrial]]) -> list[str]:
    """Return what must be known beside the columns, a sentence each.

    Args:
        sweep: The sweep.
        labels: What the table's rows are called.
        rows: The trials with a result, of each.
    """
    if not sweep.robustness:
        return []
    where = ", ".join(f"{name} {folder}" for name, folder in sweep.robustness.items())
    notes = [
        f"Robustness, of the {sweep.select} epoch: {where}. Classes that compete, images and how "
        f"each figure is computed are in {NAME}.md of every run folder."
    ]
    for label, trials in zip(labels, rows, strict=True):
        counts = [len(values) for values in figures_of(sweep, trials).values()]
        lacking = len(trials) - max(counts, default=0)
        if lacking:
            notes.append(
                f"{label}: {lacking} of {len(trials)} trained before the file named these folders, "
                "so not measured on them; `lightning robustness --ckpt_path` takes their run "
                "folders."
            )
    return notes
