"""A sweep's results in a notebook."""

from functools import cached_property
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.runs.layout import runs_root
from lightning_overlock.runs.metrics_file import read_curve
from lightning_overlock.sweep.plots import row_figure
from lightning_overlock.sweep.results import Results, results
from lightning_overlock.sweep.statistics import Comparison, compare
from lightning_overlock.sweep.storage import find_study
from lightning_overlock.sweep.table import sheet
from lightning_overlock.sweep.trials import metric_of


def load(name: str, runs: str | Path | None = None, storage: str | None = None) -> "Loaded":
    """Return what a study has measured, as it was run; the sweep file is not needed.

    Args:
        name: The study's name, as FILE-PROFILE; FILE alone where it was run with one profile.
        runs: The folder of the sweeps' folders; None for OVERLOCK_RUNS or `runs`.
        storage: The database's URL; None for `study.db` in the sweep's folder.

    Raises:
        InputError: If there is no such study.
    """
    parent = Path(runs) if runs else runs_root()
    _, study, folder = find_study(name, parent, storage)
    return Loaded(results(study, None, folder))


class Loaded:
    """What a study has measured; shows itself as the table.

    Args:
        results: The results.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    @cached_property
    def table(self) -> pandas.DataFrame:
        """One row per row of the sweep, metrics as they were logged."""
        return sheet(self.results).dataframe()

    @cached_property
    def trials(self) -> pandas.DataFrame:
        """One row per trial that counts: its row, seed, state, result and where they come from."""
        rows = []
        for trial in self.results.frozen:
            attributes = dict(trial.user_attrs)
            for nested in ("options", "machine", "git", "metrics", "tuning"):
                inner = attributes.pop(nested, None) or {}
                attributes |= {f"{nested}.{key}": value for key, value in inner.items()}
            figures = attributes.pop("robustness", {}).get("figures", {})
            attributes |= {f"robustness.{heading}": value for heading, value in figures.items()}
            state = {"trial": trial.number, "state": trial.state.name.lower()}
            rows.append(state | {"value": metric_of(trial)} | attributes)
        return pandas.DataFrame(rows)

    @cached_property
    def curves(self) -> pandas.DataFrame:
        """Every epoch of every trial: row, seed, epoch, metric, value; one row per value."""
        rows = [
            {"row": t.user_attrs.get("row", f"trial {t.number}"), "seed": t.user_attrs["seed"]}
            | {"folder": folder, "epoch": int(epoch["epoch"]), "metric": name, "value": value}
            for t in self.results.frozen
            if (folder := t.user_attrs.get("folder")) is not None
            for epoch in read_curve(self.results.folder / folder)
            for name, value in epoch.items()
            if name not in {"epoch", "step"}
        ]
        return pandas.DataFrame(rows)

    def figure(self) -> Figure:
        """Return every row's mean with its interval, the seeds as dots."""
        return row_figure(self.results)

    def compare(self, row: str, other: str) -> Comparison:
        """Compare two rows seed by seed; p is not adjusted for other comparisons.

        Raises:
            InputError: If there is no such row.
        """
        for name in (row, other):
            if name not in self.results.lines:
                hint = did_you_mean(name, self.results.lines)
                known = ", ".join(self.results.lines)
                raise InputError(f"'{name}' is no row.{hint}\nExpected two of {known}.")
        values = {name: line.values for name, line in self.results.lines.items()}
        return compare(values, [(row, other)], self.results.sweep.direction, self.results.margin)[0]

    def _repr_markdown_(self) -> str:
        return sheet(self.results).markdown()
