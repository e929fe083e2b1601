"""What `lightning sweep run` shows while it runs."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table


@dataclass
class Active:
    """A trial in hand.

    Attributes:
        name: Its run folder's name.
        epochs: How many it was asked for, None as long as it is not known.
        epoch: How many are trained.
        value: The metric after the last of them.
        since: When its training (on) began, on the monotonic clock.
        begun_with: How many epochs it had then.
    """

    name: str
    epochs: int | None = None
    epoch: int = 0
    value: float | None = None
    since: float | None = None
    begun_with: int = 0

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
        self.value = self.value if value is None else value

    def __post_init__(self) -> None:
        self.at = time.monotonic()


class View:
    """A live table in a terminal, lines anywhere else.

    Args:
        title: The study's name.
        metric: The metric's name.
    """

    def __init__(self, title: str, metric: str) -> None:
        self.title = title
        self.metric = metric
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

    def refresh(self, trials: Iterable[Active], summary: str) -> None:
        """Show the trials in hand."""
        if not self.interactive:
            return
        table = Table(title=f"{self.title}: {summary}", title_justify="left")
        for column in ("trial", "epoch", self.metric, "left"):
            table.add_column(column, justify="left" if column == "trial" else "right")
        for trial in trials:
            table.add_row(
                trial.name,
                "starting" if trial.since is None else f"{trial.epoch}/{trial.epochs or '?'}",
                "" if trial.value is None else f"{trial.value:.4g}",
                clock(trial.seconds_left()),
            )
        self._live.update(table, refresh=True)


def clock(seconds: float | None) -> str:
    """Return seconds as 1:02:03 or 2:03, "" for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
