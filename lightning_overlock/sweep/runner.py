"""Runs a sweep's trials in one or more workers, and records what comes out."""

import contextlib
import os
import shlex
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.errors import Interrupted
from lightning_overlock.runs.progress import can_continue, is_finished, seconds_trained
from lightning_overlock.sweep.follow import Follower, TrialFailed
from lightning_overlock.sweep.live import Active, View, clock
from lightning_overlock.sweep.process import INPUT_ERROR, Process, environment
from lightning_overlock.sweep.provenance import checkout, machine
from lightning_overlock.sweep.robustness import measured_robustness, robustness_arguments
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.study import Claim, Study, TrialEnded
from lightning_overlock.sweep.trials import Request
from lightning_overlock.sweep.warm import warmed_up

# Between two looks at a trial's metrics, and at a queue that is empty.
POLL_SECONDS = 1.0
QUEUE_SECONDS = 2.0

# Ctrl-C, a kill, and SLURM's notice that a job's time is nearly over.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
        request: What is to be trained, and how often what fails.
        wait_for_others: Wait for trials of other runners, to take over what they leave.
        warm: Fork the trials from one process that has imported everything, instead of starting an
            interpreter for each. Their environment is this process's own while it runs.
        cost: Returns parameters and multiply-adds of a network by its options, for a search that
            weighs them.
    """

    def __init__(
        self,
        sweep: Sweep,
        storage: RDBStorage,
        name: str,
        folder: Path,
        workers: int = 1,
        devices: list[str] | None = None,
        request: Request | None = None,
        wait_for_others: bool = True,
        warm: bool = False,
        cost: Callable[[dict[str, Any]], dict[str, float]] | None = None,
    ) -> None:
        self.sweep = sweep
        self.storage = storage
        self.name = name
        self.folder = folder
        self.workers = workers
        self.devices = devices
        self.request = request or Request()
        self.wait_for_others = wait_for_others
        self.warm = warm
        self.cost = cost
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        share = max(1, (cores or 1) // workers)
        self.threads = min(share, int(os.environ.get("OMP_NUM_THREADS") or share))
        own = [self._devices_of(worker) for worker in range(workers)]
        self._machines = [machine(self.threads, devices) for devices in own]
        # Now: what this process imports later sets variables of its own.
        self._environments = [environment(folder, self.threads, devices) for devices in own]
        self._view = View(name, sweep, workers)
        self._active: dict[int, Active] = {}
        self._processes: dict[int, Process] = {}
        self._summary = ""
        self._states: dict[str, FrozenTrial | None] = {}
        self._received: list[int] = []
        self._stop = threading.Event()
        # The trials' process can be forked.
        self._ready = threading.Event()

    def _devices_of(self, worker: int) -> str | None:
        if not self.devices:
            return None
        own = self.devices[worker :: self.workers] or [self.devices[worker % len(self.devices)]]
        return ",".join(own)

    def run(self) -> None:
        """Run until nothing is left to do.

        Raises:
            Interrupted: By Ctrl-C, SIGTERM or SIGUSR1, after the trials have saved their state.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._view)
            stack.enter_context(self._signals())
            if self.warm:
                self._ready = stack.enter_context(warmed_up(self._environments[0]))
            pool = stack.enter_context(ThreadPoolExecutor(self.workers))
            workers = [pool.submit(self._work, index) for index in range(self.workers)]
            obeyed = 0
            while True:
                done, pending = wait(workers, POLL_SECONDS, FIRST_EXCEPTION)
                self._view.refresh(list(self._active.values()), self._summary, self._states)
                if not pending:
                    break
                if any(worker.exception() for worker in done) and not self._stop.is_set():
                    self._stop_trials(at_once=False)
                if self._received and not obeyed:
                    self._view.say("Stopping; each trial saves its state. Ctrl-C stops at once.")
                    self._stop_trials(at_once=False)
                elif signal.SIGINT in self._received[obeyed:]:
                    self._stop_trials(at_once=True)
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
        """Note what asks to stop, to be passed on to the trials."""

        def note(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self._received.append(signum)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, note) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # One worker -----------------------------------------------------------------------------------

    def _work(self, index: int) -> None:
        study = Study(self.sweep, self.storage, self.name)
        while not self._stop.is_set():
            claim = study.take(self.request)
            self._states = study.states()
            self._summary = study.summary(self._states)
            if claim is not None:
                self._run_trial(study, index, claim)
                continue
            # What is being tuned will queue its reported seeds.
            wait_for_others = self.wait_for_others or self.sweep.tune is not None
            if not (wait_for_others and study.is_running()):
                return
            self._stop.wait(QUEUE_SECONDS)

    def _run_trial(self, study: Study, index: int, claim: Claim) -> None:
        name = claim.job.folder
        self._active[index] = active = Active(name)
        follow = Follower(study, claim, self.folder / name, self.sweep, active, self._view)
        try:
            found = self._train(index, follow)
            values = [found["value"]]
            if self.sweep.cost is not None:
                if self.cost is not None:
                    found |= self.cost(claim.job.options)
                values.append(found[self.sweep.cost])
            study.finish(claim, TrialState.COMPLETE, found, values)
        except optuna.TrialPruned:
            seconds = seconds_trained(follow.folder)
            with contextlib.suppress(TrialEnded):
                study.finish(claim, TrialState.PRUNED, follow.result(seconds))
            self._view.say(f"{name}  pruned after epoch {active.epoch}")
        except TrialEnded as end:
            self._view.say(f"{name}  {end}")
            attributes = {}
            if isinstance(end, TrialFailed):
                attributes = {"error": end.error, "repeats": end.repeats, "log": f"{name}.log"}
            with contextlib.suppress(TrialEnded):  # taken by another runner
                study.finish(claim, TrialState.FAIL, attributes)
        else:
            follow.clear_checkpoints()
            took = clock(found["seconds"])
            self._view.say(f"{name}  {self.sweep.metric} {found['value']:.4g}  in {took}  done")
            parameters = {"row": claim.job.row, "seed": claim.job.seed}
            write_hparams(
                follow.folder,
                claim.trial.params if self.sweep.search else parameters | (claim.job.point or {}),
                {f"best/{self.sweep.metric}": found["best"]},
            )
        finally:
            del self._active[index]

    def _train(self, index: int, follow: Follower) -> dict[str, Any]:
        """Train a trial, or train it on, and return its result.

        Raises:
            TrialPruned: The pruner stops it.
            TrialEnded: It has no result.
        """
        claim, folder = follow.claim, follow.folder
        arguments = self.sweep.arguments(claim.job.options, claim.job.seed, claim.job.folder)
        if "logger" in self.sweep.options | claim.job.options:
            arguments += ["--group", f"{self.name}/{claim.job.row}"]
        attributes: dict[str, Any] = {
            "command": shlex.join(["lightning", *arguments]),
            "machine": self._machines[index],
            "git": checkout(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempts": len(claim.earlier) + 1,
            "seconds_before": 0.0,
        }
        trained = False
        # Without an earlier trial a folder of this name is not this study's.
        if claim.earlier:
            follow.wait_until_free()
            if can_continue(folder):
                before = claim.earlier[-1].user_attrs.get("seconds_before", 0.0)
                attributes["seconds_before"] = before + seconds_trained(folder)
                trained = is_finished(folder)
                arguments += ["--ckpt_path", "last"]
        for key, value in attributes.items():
            claim.trial.set_user_attr(key, value)
        seconds = attributes["seconds_before"]
        if trained:  # its runner died before it could say so
            follow.report()
        else:
            self._view.say(f"{folder.name}  started")
            self._call(index, arguments, follow, training=True)
            follow.report()
            seconds += seconds_trained(folder)
        found = follow.result(seconds)
        if self.sweep.report == "test":
            found["validation"] = found["value"]
            words = ["test", "--ckpt_path", str(follow.checkpoint(found))]
            self._call(index, words, follow, training=False)
            found["value"] = follow.test_result()
        if self.sweep.robustness and claim.job.point is None:
            words = robustness_arguments(self.sweep, follow.checkpoint(found), folder)
            self._call(index, words, follow, training=False)
            found["robustness"] = measured_robustness(self.sweep, folder)
        return found

    def _call(self, index: int, arguments: list[str], follow: Follower, training: bool) -> None:
        """Run a process to its end.

        Raises:
            TrialPruned: The pruner stops it.
            TrialEnded: It was stopped or has failed.
        """
        log = self.folder / f"{follow.folder.name}.log"
        while self.warm and not self._ready.wait(POLL_SECONDS):
            follow.beat()
        own = self._environments[index]
        self._processes[index] = process = Process(arguments, own, log, self.warm)
        try:
            if self._stop.is_set():
                process.interrupt()
            while (code := process.wait(POLL_SECONDS)) is None:
                if training:
                    follow.report(process)
                else:
                    follow.beat()
            # A cluster's SIGTERM may reach the trial before this thread hears of it.
            if code != 0 and (self._stop.is_set() or self._received):
                raise TrialEnded("interrupted")
            if code != 0:
                raise TrialFailed(process.failure(code), repeats=code == INPUT_ERROR)
        finally:
            process.kill()
            del self._processes[index]


def write_hparams(folder: Path, parameters: dict[str, Any], metrics: dict[str, float]) -> None:
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
