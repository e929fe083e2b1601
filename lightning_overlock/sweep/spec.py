"""What a sweep is: rows of options or a search space, and how they are trained and compared."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from lightning_overlock.sweep.parts import Row, Search, Settings

# Metrics that are shares of 1: accuracies, average precision and recall, overlaps.
SHARES = re.compile(r"top\d+|\w*accuracy|\w*(map|mar|iou|f1|dice|boundary)(_\w*)?", re.I)


@dataclass(frozen=True)
class Job:
    """What one trial is to train: a row with a seed, a point of its tuning, or one of a search.

    Attributes:
        folder: The run folder's name, which no two jobs of a sweep share.
        options: The options that are its own.
        seed: The seed.
        row: The row's name; "" in a search.
        point: The point of the grid, of a trial that tunes; None of any other.
    """

    folder: str
    options: dict[str, Any]
    seed: int
    row: str = ""
    point: dict[str, Any] | None = None


class Sweep(Settings):
    """A sweep file, read for one of its profiles.

    Attributes:
        name: The file's name without suffix.
        title: The table's title.
        profile: The profile's name.
        data: The data in words, for the table.
        configs: What goes after `--config`, in this order.
        options: Options of all rows.
        metric: What counts, as it is logged.
        direction: Which end of it is good.
        seeds: Each row is trained once with each; a search with the first.
        rows: The rows in the table's order; empty in a search.
        baseline: Name of the row that the others are compared with; "" in a search.
        columns: The columns of the table.
        search: The search space instead of rows.
        select: Which epoch's metric counts: the best one's or the last one's.
        report: Which split is reported; "test" is evaluated at the selected epoch.
        unit: "percent" for a share of 1; None to tell by the metric's name.
        margin: Differences below this are none that matters, in the table's unit.
        comparisons: Lists of rows; in each list every row is compared with the one before it.
        factors: Factor -> level -> options, of rows that are a product.
        tune: What is tuned for each row before its reported seeds.
        keep: Which checkpoints a finished trial keeps.
        robustness: Folders that reported trials are measured on besides, by the names of
            `lightning robustness`.
        path: The file.
        shipped: Whether the file is a shipped one, known by its name.
        overrides: What was typed after --set.
    """

    name: str
    title: str
    profile: str
    configs: list[str]
    rows: dict[str, Row] = Field(default_factory=dict)
    search: Search | None = None
    path: Path
    shipped: bool = False
    overrides: list[str] = Field(default_factory=list)

    @property
    def command(self) -> str:
        """What a person types to run it."""
        words = ["lightning", "sweep", "run", self.name if self.shipped else str(self.path)]
        words += ["--profile", self.profile]
        return shlex.join([*words, *(w for change in self.overrides for w in ("--set", change))])

    @property
    def runnable(self) -> list[str]:
        """Names of the rows that can be run."""
        return [name for name, row in self.rows.items() if not row.missing]

    @property
    def cost(self) -> str | None:
        """What a search weighs against its metric; None where there is one objective."""
        return self.search.cost if self.search is not None else None

    def label(self, name: str) -> str:
        """Return how the table calls a row."""
        return self.rows[name].label or name

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, which tables print in percent as papers do."""
        if self.unit is not None:
            return self.unit == "percent"
        return SHARES.fullmatch(self.metric.split("/")[-1]) is not None

    def tuning_jobs(self, row: str) -> Iterator[Job]:
        """Return the trials that tune a row; none without `tune`."""
        if self.tune is None:
            return
        for point in self.tune.points:
            words = [f"{option.split('.')[-1]}={as_word(v)}" for option, v in point.items()]
            name = re.sub(r"[^\w.=+-]", "_", "-".join([row, *words]))
            for seed in self.tune.seeds:
                options = self.rows[row].options | point
                yield Job(f"{name}-seed{seed}", options, seed, row, point)

    def reported_job(self, row: str, seed: int, chosen: dict[str, Any]) -> Job:
        """Return the trial of a row and a reported seed.

        Args:
            row: The row.
            seed: The seed.
            chosen: The options that tuning chose for it.
        """
        return Job(f"{row}-seed{seed}", self.rows[row].options | chosen, seed, row)

    def arguments(self, options: dict[str, Any], seed: int, name: str) -> list[str]:
        """Return what a person would type after `lightning` to train once.

        Args:
            options: Those of a row or of a trial of the search; they override the sweep's.
            seed: The seed.
            name: The run's name.
        """
        words = ["fit"]
        for config in self.configs:
            words += ["--config", config]
        words += ["--name", name, "--seed_everything", str(seed)]
        # One key of a dictionary (model.backbone_args.gate) is merged by the command's parser with
        # what the configurations and earlier words set.
        merged = self.options | options
        return words + [f"--{option}={as_word(value)}" for option, value in merged.items()]


def as_word(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
