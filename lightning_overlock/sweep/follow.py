"""Carries what a trial's run folder tells over to the study."""

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError

from lightning_overlock.errors import InputError
from lightning_overlock.runs.checkpoint import checkpoint_of
from lightning_overlock.runs.config import config_hash, total_epochs
from lightning_overlock.runs.layout import BEST, CONFIG, LAST, METRICS
from lightning_overlock.runs.lock import claim_run_folder
from lightning_overlock.runs.metrics_file import ALL_OF_TRAINING, best_of, read_curve
from lightning_overlock.sweep.live import Active, View, clock
from lightning_overlock.sweep.process import Process
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.study import HEARTBEAT, Claim, Study, TrialEnded


class TrialFailed(TrialEnded):
    """A trial has failed.

    Args:
        error: Why: the cause in the first line.
        repeats: Whether it would fail in the same way again.
    """

    def __init__(self, error: str, repeats: bool) -> None:
        super().__init__(f"failed: {error.splitlines()[0][:200]}")
        self.error = error
        self.repeats = repeats


class Follower:
    """Follows one trial while it trains, and reads its result.

    Args:
        study: The study.
        claim: The trial.
        folder: Its run folder.
        sweep: The sweep.
        active: What is shown of it.
        view: Where it is shown.
    """

    def __init__(
        self, study: Study, claim: Claim, folder: Path, sweep: Sweep, active: Active, view: View
    ) -> None:
        self.study = study
        self.claim = claim
        self.folder = folder
        self.sweep = sweep
        self.active = active
        self.view = view
        self._config = _stamp(folder / CONFIG)
        self._metrics: tuple[int, int] | None = None
        self._beaten = time.monotonic()
        self._reported = -1

    def beat(self) -> None:
        """Give the study a sign of life, if it is time for one.

        Raises:
            TrialEnded: Another runner has taken the trial.
        """
        if time.monotonic() - self._beaten > HEARTBEAT:
            self._beaten = time.monotonic()
            # A database that is away for a moment costs a sign of life, not the trial.
            with contextlib.suppress(sqlalchemy.exc.OperationalError, StorageInternalError):
                self.study.beat(self.claim)

    def wait_until_free(self) -> None:
        """Wait for an earlier process to leave the run folder, a minute at most.

        After that `fit` says what is wrong.
        """
        for _ in range(60):
            try:
                with claim_run_folder(self.folder, continued=True):
                    return
            except InputError:
                time.sleep(1)
                self.beat()

    def report(self, process: Process | None = None) -> None:
        """Report epochs that are new.

        Args:
            process: The trial's, as long as it runs; what it has not begun is an earlier run's.

        Raises:
            TrialPruned: The pruner stops the trial.
            TrialEnded: Another runner has taken it.
        """
        if process is not None:
            self.beat()
            begun = _stamp(self.folder / CONFIG) not in {None, self._config}
            if self.active.since is None and not begun:
                return
        if (stamp := _stamp(self.folder / METRICS)) == self._metrics and self.active.since:
            return
        curve = read_curve(self.folder)
        if self.active.since is None:
            self.active.since = time.monotonic()
            self.active.begun_with = len(curve)
            self.active.epochs = total_epochs(self.folder)
        self._metrics = stamp
        for row in curve:
            self._report_epoch(int(row["epoch"]), row.get(self.sweep.metric), process)

    def _report_epoch(self, epoch: int, value: float | None, process: Process | None) -> None:
        if epoch <= self._reported:
            return
        self._reported = epoch
        self.active.advance(epoch + 1, value)
        if value is None:
            return
        # With two objectives Optuna takes nothing in between, and prunes nothing.
        prunes = self.sweep.cost is None
        if prunes:
            self.claim.trial.report(value, epoch)
        if not self.view.interactive:
            of = f"{epoch + 1}/{self.active.epochs or '?'}"
            left = clock(self.active.seconds_left())
            self.view.say(
                f"{self.folder.name}  epoch {of}  {self.sweep.metric} {value:.4g}"
                + (f"  {left} left" if left else "")
            )
        if process is not None and prunes and self.claim.trial.should_prune():
            raise optuna.TrialPruned

    def result(self, seconds: float) -> dict[str, Any]:
        """Return what the run's files tell of its result, for the study.

        Args:
            seconds: How long it was trained.

        Returns:
            `value`, the selected epoch's metric, and where it comes from.

        Raises:
            TrialFailed: There is none.
        """
        metric = self.sweep.metric
        curve = read_curve(self.folder, *ALL_OF_TRAINING)
        measured = [row for row in curve if metric in row]
        best = best_of(curve, metric, self.sweep.direction)
        if best is None or not math.isfinite(measured[-1][metric]):
            what = f"is {measured[-1][metric]}" if measured else "was not logged"
            raise TrialFailed(f"{metric} {what} at the end of epoch {self.active.epoch}", True)
        selected = measured[-1] if self.sweep.select == "last" else best
        checkpoint = checkpoint_of(self.folder, int(selected["step"]))
        return {
            "value": selected[metric],
            "best": best[metric],
            "last": measured[-1][metric],
            "epoch": int(selected["epoch"]),
            "step": int(selected["step"]),
            "checkpoint": f"{self.folder.name}/{checkpoint}" if checkpoint else None,
            "metrics": {name: v if math.isfinite(v) else str(v) for name, v in curve[-1].items()},
            "epochs": len(read_curve(self.folder)),
            "seconds": round(seconds, 3),
            "config_hash": config_hash(self.folder),
        }

    def checkpoint(self, result: dict[str, Any]) -> Path:
        """Return the checkpoint of the selected epoch.

        Raises:
            TrialFailed: The run keeps none.
        """
        if result["checkpoint"] is None:
            raise TrialFailed(
                f"no checkpoint of epoch {result['epoch'] + 1}, the selected one, is kept", True
            )
        return self.folder.parent / str(result["checkpoint"])

    def test_result(self) -> float:
        """Return the metric that the run's last test has measured.

        Raises:
            TrialFailed: There is none.
        """
        metric = "test/" + self.sweep.metric.partition("/")[2]
        rows = [row for row in read_curve(self.folder, "test") if metric in row]
        if not rows or not math.isfinite(rows[-1][metric]):
            raise TrialFailed(f"the test has logged no {metric}", True)
        return rows[-1][metric]

    def clear_checkpoints(self) -> None:
        """Delete the checkpoints that the sweep does not keep of a finished trial."""
        best, last = self.folder / BEST, self.folder / LAST
        if self.sweep.keep == "best" and best.is_file():
            last.unlink(missing_ok=True)
        elif self.sweep.keep == "last" and last.is_file():
            best.unlink(missing_ok=True)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
