"""Runs a sweep's trials in one or more workers, and records what comes out."""

import math
import os
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from lightning_overlock.errors import InputError, Interrupted
from lightning_overlock.runs.checkpoint import checkpoint_of
from lightning_overlock.runs.config import total_epochs
from lightning_overlock.runs.layout import CONFIG, METRICS
from lightning_overlock.runs.lock import claim_run_folder
from lightning_overlock.runs.metrics_file import best_of, read_curve
from lightning_overlock.runs.progress import can_continue, is_finished, seconds_trained
from lightning_overlock.sweep.live import Active, View, clock
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.study import HEARTBEAT, Ended, Study
from lightning_overlock.sweep.trial import Process, environment, machine

# Between two looks at a trial's metrics, and at a queue that is empty.
POLL_SECONDS = 1.0
QUEUE_SECONDS = 2.0


class Runner:
    """Takes trials from a study until none is left.

    Args:
        sweep: The sweep.
        storage: Where its study is.
        name: The study's name.
        folder: The sweep's folder, which the run folders go into.
        workers: How many trials run at the same time.
        devices: The GPUs' names as in CUDA_VISIBLE_DEVICES, shared out among the workers; none to
            let every trial see what this process sees.
        retries: How often a failed trial is run again.
        since: Failures of trials before this number do not count.
        patient: Wait for trials of other runners, to take over what they leave.
    """

    def __init__(
        self,
        sweep: Sweep,
        storage: RDBStorage,
        name: str,
        folder: Path,
        workers: int = 1,
        devices: list[str] | None = None,
        retries: int = 1,
        since: int = 0,
        patient: bool = True,
    ) -> None:
        self.sweep = sweep
        self.storage = storage
        self.name = name
        self.folder = folder
        self.workers = workers
        self.devices = devices
        self.retries = retries
        self.since = since
        self.patient = patient
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = max(1, (cores or 1) // workers)
        self.threads = min(share, int(os.environ.get("OMP_NUM_THREADS") or share))
        self._machines = [machine(self.threads, self._devices_of(i)) for i in range(workers)]
        self._view = View(name, sweep.metric)
        self._active: dict[int, Active] = {}
        self._processes: dict[int, Process] = {}
        self._summary = ""
        self._received: list[int] = []
        self._stop = threading.Event()

    def _devices_of(self, worker: int) -> str | None:
        if not self.devices:
            return None
        own = self.devices[worker :: self.workers] or [self.devices[worker % len(self.devices)]]
        return ",".join(own)

    def run(self) -> None:
        """Run until nothing is left to do.

        Raises:
            Interrupted: By Ctrl-C or SIGTERM, after the trials have saved their state.
        """
        with self._view, self._signals(), ThreadPoolExecutor(self.workers) as pool:
            workers = [pool.submit(self._work, index) for index in range(self.workers)]
            obeyed = 0
            while True:
                done, pending = wait(workers, POLL_SECONDS, FIRST_EXCEPTION)
                self._view.refresh(list(self._active.values()), self._summary)
                if not pending:
                    break
                if any(worker.exception() for worker in done) and not self._stop.is_set():
                    self._stop_trials(at_once=False)
                if len(self._received) > obeyed:
                    self._view.say("Stopping; each trial saves its state. Once more stops at once.")
                    self._stop_trials(at_once=obeyed > 0)
                    obeyed = len(self._received)
        for worker in workers:
            worker.result()
        if self._received:
            raise Interrupted(self._received[0])

    def _stop_trials(self, at_once: bool) -> None:
        self._stop.set()
        for process in list(self._processes.values()):
            process.kill() if at_once else process.interrupt()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM, to be passed on to the trials."""

        def note(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self._received.append(signum)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # One worker -----------------------------------------------------------------------------------

    def _work(self, index: int) -> None:
        study = Study(self.sweep, self.storage, self.name)
        while not self._stop.is_set():
            with ExitStack() as taking:
                taking.enter_context(study.alone())
                if study.prepare(self.retries, self.since):
                    self._summary = study.summary()
                    objective = partial(self._objective, study, index, taking)
                    self._optimize(study, objective)
                    continue
                self._summary = study.summary()
                left = study.is_running()
            if not (self.patient and left):
                return
            self._stop.wait(QUEUE_SECONDS)

    def _optimize(self, study: Study, objective: Any) -> None:
        try:
            study.optuna.optimize(objective, n_trials=1, catch=(Ended,))
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            # Without a sign of life for too long, another runner has taken the trial: no loss.
            if not study.has_lost():
                raise

    def _objective(self, study: Study, index: int, taking: ExitStack, trial: optuna.Trial) -> float:
        try:
            options, seed, name = study.claim(trial)
        finally:
            taking.close()
        folder = self.folder / name
        arguments = self.sweep.arguments(options, seed, name)
        earlier = study.earlier(trial, name)
        self._active[index] = active = Active(name)
        attributes: dict[str, Any] = {
            "command": shlex.join(["lightning", *arguments]),
            "machine": self._machines[index],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempts": len(earlier) + 1,
            "seconds_before": 0.0,
        }
        try:
            trained = False
            # Without an earlier trial a folder of this name is not this study's.
            if earlier:
                _wait_until_free(folder)
            if earlier and can_continue(folder):
                before = earlier[-1].user_attrs.get("seconds_before", 0.0)
                attributes["seconds_before"] = before + seconds_trained(folder)
                trained = is_finished(folder)
                arguments += ["--ckpt_path", "last"]
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            follow = _Follower(study, trial, folder, self.sweep, active, self._view)
            if trained:
                # Its runner died before it could say so.
                follow.report()
                seconds = attributes["seconds_before"]
            else:
                self._train(index, arguments, follow)
                seconds = attributes["seconds_before"] + seconds_trained(folder)
            best = follow.record(seconds)
            self._view.say(f"{name}  {self.sweep.metric} {best:.4g}  in {clock(seconds)}  done")
            return best
        except optuna.TrialPruned:
            self._view.say(f"{name}  pruned after epoch {active.epoch}")
            raise
        except Ended as end:
            self._view.say(f"{name}  {end}")
            raise
        finally:
            del self._active[index]

    def _train(self, index: int, arguments: list[str], follow: "_Follower") -> None:
        """Run a trial's process to its end."""
        threads, devices = self.threads, self._devices_of(index)
        log = self.folder / f"{follow.folder.name}.log"
        process = Process(arguments, environment(self.folder, threads, devices), log)
        self._processes[index] = process
        try:
            if self._stop.is_set():
                process.interrupt()
            self._view.say(f"{follow.folder.name}  started")
            while (code := process.wait(POLL_SECONDS)) is None:
                follow.report(process)
            if code != 0 and self._stop.is_set():
                raise Ended("interrupted")
            if code != 0:
                follow.fail(f"{_ending(code)}\n{process.last_lines()}".strip())
            follow.report()
        finally:
            process.kill()
            del self._processes[index]


class _Follower:
    """Carries what a run folder tells over to the study.

    Args:
        study: The study.
        trial: The trial.
        folder: Its run folder.
        sweep: The sweep.
        active: What is shown of it.
        view: Where it is shown.
    """

    def __init__(
        self,
        study: Study,
        trial: optuna.Trial,
        folder: Path,
        sweep: Sweep,
        active: Active,
        view: View,
    ) -> None:
        self.study = study
        self.trial = trial
        self.folder = folder
        self.sweep = sweep
        self.active = active
        self.view = view
        self._config = _stamp(folder / CONFIG)
        self._metrics: tuple[int, int] | None = None
        self._asked = time.monotonic()
        self._reported = -1

    def report(self, process: Process | None = None) -> None:
        """Report epochs that are new.

        Args:
            process: The trial's, as long as it runs; what it has not begun is an earlier run's.

        Raises:
            TrialPruned: The pruner stops the trial.
            Ended: Another runner has taken it.
        """
        if process is not None:
            begun = _stamp(self.folder / CONFIG) not in {None, self._config}
            if self.active.since is None and not begun:
                return
            if time.monotonic() - self._asked > HEARTBEAT:
                self._asked = time.monotonic()
                if self.study.trials()[self.trial.number].state != TrialState.RUNNING:
                    raise Ended("taken by another runner")
        if (stamp := _stamp(self.folder / METRICS)) == self._metrics and self.active.since:
            return
        curve = read_curve(self.folder)
        if self.active.since is None:
            self.active.since = time.monotonic()
            self.active.begun_with = len(curve)
            self.active.epochs = total_epochs(self.folder)
        self._metrics = stamp
        for row in curve:
            epoch, value = int(row["epoch"]), row.get(self.sweep.metric)
            if epoch <= self._reported:
                continue
            self._reported = epoch
            self.active.advance(epoch + 1, value)
            if value is None:
                continue
            self.trial.report(value, epoch)
            if not self.view.interactive:
                of = f"{epoch + 1}/{self.active.epochs or '?'}"
                left = clock(self.active.seconds_left())
                self.view.say(
                    f"{self.folder.name}  epoch {of}  {self.sweep.metric} {value:.4g}"
                    + (f"  {left} left" if left else "")
                )
            if process is not None and self.trial.should_prune():
                self.record(seconds_trained(self.folder))
                raise optuna.TrialPruned

    def record(self, seconds: float) -> float:
        """Store the result, and return the best of the metric.

        Raises:
            Ended: There is none.
        """
        metric = self.sweep.metric
        curve = read_curve(self.folder)
        measured = [row for row in curve if metric in row]
        best = best_of(curve, metric, self.sweep.direction)
        if best is None or not math.isfinite(measured[-1][metric]):
            what = f"is {measured[-1][metric]}" if measured else "was not logged"
            self.fail(f"{metric} {what} at the end of epoch {self.active.epoch}")
        assert best is not None
        # The file's digits may hide which of several epochs was the best.
        epochs = {int(row["epoch"]) for row in curve if row.get(metric) == best[metric]}
        found = checkpoint_of(self.folder, epochs)
        attributes: dict[str, Any] = {
            "best": best[metric],
            "best_epoch": found[1] if found else int(best["epoch"]),
            "checkpoint": f"{self.folder.name}/{found[0]}" if found else None,
            "metrics": {name: v if math.isfinite(v) else str(v) for name, v in curve[-1].items()},
            "epochs": len(curve),
            "seconds": round(seconds, 3),
        }
        for key, value in attributes.items():
            self.trial.set_user_attr(key, value)
        _write_hparams(self.folder, self.trial.params, {f"best/{metric}": best[metric]})
        return best[metric]

    def fail(self, error: str) -> None:
        """Record a failure.

        Raises:
            Ended: Always.
        """
        self.trial.set_user_attr("error", error)
        raise Ended("failed: " + error.splitlines()[-1][:200])


def _ending(code: int) -> str:
    """Return in words how a process ended, by its exit code or that of its guard."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name}"
    return f"exit code {code}"


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _wait_until_free(folder: Path) -> None:
    """Wait for an earlier process to leave its run folder, a minute at most.

    After that `fit` says what is wrong.
    """
    for _ in range(60):
        try:
            with claim_run_folder(folder, continued=True):
                return
        except InputError:
            time.sleep(1)


def _write_hparams(folder: Path, parameters: dict[str, Any], metrics: dict[str, float]) -> None:
    """Write the trial into its TensorBoard log, for the HParams tab."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        with SummaryWriter(str(folder)) as writer:
            # `add_hparams` would make a run of its own in a folder below.
            for summary in hparams(parameters, metrics):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            for name, value in metrics.items():
                writer.add_scalar(name, value)
