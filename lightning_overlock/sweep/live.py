"""What `lightning sweep run` shows while it runs."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_overlock.sweep.spec import Sweep


@dataclass
class Active:
    """A trial in hand.

    Attributes:
        name: Its run folder's name.
        epochs: How many it was asked for, None as long as it is not known.
        epoch: How many are trained.
        value: The metric after the last of them.
        values: The metric after each.
        since: When its training (on) began, on the monotonic clock.
        begun_with: How many epochs it had then.
    """

    name: str
    epochs: int | None = None
    epoch: int = 0
    value: float | None = None
    since: float | None = None
    begun_with: int = 0
    values: list[float] = field(default_factory=list)

    def seconds_left(self) -> float | None:
        """Return how long it will take at the pace so far; None before its first epoch."""
        trained = self.epoch - self.begun_with
        if self.since is None or self.epochs is None or trained <= 0:
            return None
        # An epoch comes as a whole, so time since the last one must not count as a slower pace.
        pace = (self.at - self.since) / trained
        return max(0.0, pace * (self.epochs - self.epoch) - (time.monotonic() - self.at))

    def advance(self, epoch: int, value: float | None) -> None:
        """Note that an epoch is trained."""
        self.epoch, self.at = epoch, time.monotonic()
        if value is not None:
            self.value = value
            self.values.append(value)

    def __post_init__(self) -> None:
        self.at = time.monotonic()


class View:
    """A live table in a terminal, lines anywhere else.

    Args:
        title: The study's name.
        sweep: The sweep.
        workers: How many trials run at the same time.
    """

    def __init__(self, title: str, sweep: Sweep, workers: int) -> None:
        self.title = title
        self.sweep = sweep
        self.workers = workers
        self.console = Console(highlight=False, soft_wrap=True)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self.interactive = sys.stdout.isatty()

    def __enter__(self) -> "View":
        if self.interactive:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.interactive:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self.console.print(text, markup=False)

    def refresh(
        self, trials: Sequence[Active], summary: str, states: Mapping[str, FrozenTrial | None]
    ) -> None:
        """Show how far the sweep is.

        Args:
            trials: The trials that run here.
            summary: How far the sweep is, in words.
            states: The trial that counts for each run folder; None where there is none yet.
        """
        if self.interactive:
            self._live.update(self.picture(trials, summary, states), refresh=True)

    def picture(
        self, trials: Sequence[Active], summary: str, states: Mapping[str, FrozenTrial | None]
    ) -> Group:
        """Return what `refresh` shows: the rows and seeds as a grid, and the trials in hand."""
        left = total_left(self.sweep, self.workers, trials, states)
        words = f"{self.title}: {summary}" + (f", about {clock(left)} left" if left else "")
        table = Table(box=None, pad_edge=False, show_header=bool(trials))
        for column in ("trial", "epoch", self.sweep.metric, "", "left"):
            table.add_column(column, justify="left" if column in {"trial", ""} else "right")
        for trial in trials:
            table.add_row(
                Text(trial.name),
                "starting" if trial.since is None else f"{trial.epoch}/{trial.epochs or '?'}",
                "" if trial.value is None else f"{trial.value:.4g}",
                sparkline(trial.values),
                clock(trial.seconds_left()),
            )
        return Group(Text(words), *self._grid(trials, states), table)

    def _grid(
        self, trials: Sequence[Active], states: Mapping[str, FrozenTrial | None]
    ) -> list[Table]:
        """Return rows and seeds as a grid; nothing of a search."""
        if not self.sweep.rows:
            return []
        here = {trial.name for trial in trials}
        grid = Table(box=None, pad_edge=False, show_header=False)
        for row in self.sweep.runnable:
            tuning = [job.folder for job in self.sweep.tuning_jobs(row)]
            reported = [self.sweep.reported_job(row, s, {}).folder for s in self.sweep.seeds]
            parts = [
                Text.assemble(*(_mark(name in here, states.get(name)) for name in folders))
                for folders in (tuning, reported)
            ]
            grid.add_row(Text(self.sweep.label(row)), *(part for part in parts if part.plain))
        return [grid]


# State -> its mark in the grid and its colour.
MARKS = {
    TrialState.COMPLETE: ("█", "green"),
    TrialState.RUNNING: ("▶", "yellow"),
    TrialState.FAIL: ("x", "red"),
    TrialState.PRUNED: ("-", "default"),
    TrialState.WAITING: ("·", "dim"),
}


def _mark(here: bool, trial: FrozenTrial | None) -> tuple[str, str]:
    state = TrialState.RUNNING if here else trial.state if trial else TrialState.WAITING
    return MARKS[state]


def sparkline(values: Sequence[float]) -> str:
    """Return the last twelve values as bars of eight heights, low to high."""
    shown = [value for value in values if math.isfinite(value)][-12:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[round((v - low) / (high - low or 1) * 7)] for v in shown)


def total_left(
    sweep: Sweep,
    workers: int,
    trials: Sequence[Active],
    states: Mapping[str, FrozenTrial | None],
) -> float | None:
    """Return about how many seconds all trials will take; None before anything is known.

    What has not begun is expected to take as long as what has ended, or is in hand, on average.

    Args:
        sweep: The sweep.
        workers: How many trials run at the same time.
        trials: The trials that run here.
        states: The trial that counts for each run folder; None where there is none yet.
    """
    here = {trial.name for trial in trials}
    known = [t.user_attrs["seconds"] for t in states.values() if t and "seconds" in t.user_attrs]
    lefts = []
    for trial in trials:
        left = trial.seconds_left()
        if left is not None and trial.since is not None:
            lefts.append(left)
            known.append(left + trial.at - trial.since)
    if not known:
        return None
    mean = sum(known) / len(known)
    open_ = [
        name
        for name, trial in states.items()
        if name not in here and (trial is None or trial.state == TrialState.WAITING)
    ]
    waiting = len(open_)
    if sweep.search is not None:
        waiting = max(0, sweep.search.trials - len(states.keys() | here)) + len(open_)
    begun = sum(lefts) + mean * (len(trials) - len(lefts))
    return max([(begun + mean * waiting) / workers, *lefts])


def clock(seconds: float | None) -> str:
    """Return seconds as 1:02:03 or 2:03, "" for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
