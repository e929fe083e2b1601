"""The Optuna study of a sweep: its queue, who works on what, and what must be run again.

A study is shared by any number of runners. Each looks at the queue and takes from it only while it
holds the queue's lock, and so no (row, seed) is ever trained twice at the same time, none is queued
twice, and no trial is started that nobody has asked for. Row and seed are attributes of a trial;
Optuna's parameters of the same names are for those who look at the study with Optuna's dashboard.
"""

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import optuna
from optuna import samplers
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.sweep.agreement import compare, content_of
from lightning_overlock.sweep.spec import Job, Sweep
from lightning_overlock.sweep.storage import (
    identity,
    is_gone,
    is_here,
    open_study,
    queue_lock,
)
from lightning_overlock.sweep.trials import Request, by_folder, choose, counting

SAMPLERS: dict[str, Any] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    "qmc": samplers.QMCSampler,
    "gp": samplers.GPSampler,
    "cmaes": samplers.CmaEsSampler,
    # Trials come one by one, so small generations learn earlier.
    "nsga2": partial(samplers.NSGAIISampler, population_size=10),
}
PRUNERS: dict[str, Any] = {
    "median": MedianPruner,
    "halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "none": NopPruner,
}

# Seconds between two signs of life of a running trial, and without any until it is given up.
HEARTBEAT = 10
GRACE = 60


class TrialEnded(Exception):
    """A trial is over without a result."""


@dataclass(frozen=True)
class Claim:
    """A trial that this runner has taken from the queue.

    Attributes:
        trial: Optuna's trial.
        job: What is to be trained.
        earlier: The trials before it that had the same run folder.
    """

    trial: optuna.Trial
    job: Job
    earlier: list[FrozenTrial]


@dataclass
class Study:
    """The study of one sweep, as one thread of a runner sees it.

    Args:
        sweep: The sweep.
        storage: Where the study is.
        name: Its name.
        create: Make it if it is not there.

    Raises:
        InputError: If it is not there and is not to be made, or an older version made it.
    """

    sweep: Sweep
    storage: RDBStorage
    name: str
    create: bool = False
    # The last sign of life of each foreign trial, and when it was seen first, on this clock.
    _signs: dict[int, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optuna = open_study(self.storage, self.name, self.sweep if self.create else None)

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def lock(self) -> Any:
        """Return the context in which the queue may be looked at and taken from."""
        return queue_lock(self.storage, self.name)

    def reconcile(self) -> None:
        """Hold the sweep against what the study was started with, and take up what is new.

        Raises:
            InputError: If results so far were made with other settings.
        """
        with self.lock():
            content = content_of(self.sweep)
            stored = self.optuna.user_attrs.get("sweep")
            if stored is not None:
                compare(self.sweep, stored, self.name, self.trials())
                content["rows"] = stored["rows"] | content["rows"]
                seeds = [s for s in self.sweep.seeds if s not in stored["seeds"]]
                content["seeds"] = stored["seeds"] + seeds
            if "choices" not in self.optuna.user_attrs:
                # Optuna wants a parameter's choices to be the same in all trials.
                self.optuna.set_user_attr("choices", list(self.sweep.rows))
            if content != stored:
                self.optuna.set_user_attr("sweep", content)
            commands = self.optuna.user_attrs.get("commands", [])
            if self.sweep.command not in commands:
                self.optuna.set_user_attr("commands", [*commands, self.sweep.command])

    # The queue ------------------------------------------------------------------------------------

    def take(self, request: Request) -> Claim | None:
        """Give up stale trials, queue what is due, and take the first of the queue.

        Returns:
            The trial, which is now this runner's; None if nothing is due.
        """
        with self.lock():
            self._give_up_stale()
            self._enqueue_due(request)
            while True:
                trials = self.trials()
                draws = self._draws(trials)
                if not draws and not any(t.state == TrialState.WAITING for t in trials):
                    return None
                if (claim := self._claim(trials, request)) is not None:
                    return claim

    def _enqueue_due(self, request: Request) -> None:
        trials = self.trials()
        tried = by_folder(trials)
        for job in self.jobs(trials, request):
            if not request.is_due(tried.get(job.folder, [])):
                continue
            attributes = _attributes(job)
            parameters: dict[str, Any] = job.options
            if self.sweep.search is None:
                attributes["label"] = self.sweep.label(job.row)
                parameters = {"row": job.row, "seed": job.seed}
            self.optuna.enqueue_trial(parameters, attributes)

    def jobs(self, trials: Sequence[FrozenTrial], request: Request) -> Iterator[Job]:
        """Return what is wanted, seeds first so that every row is there early.

        A row that is tuned has its reported seeds once its tuning is complete; a search has the
        points that were drawn so far.
        """
        if self.sweep.search is not None:
            for folder, found in by_folder(trials).items():
                yield Job(folder, found[-1].params, self.sweep.seeds[0])
            return
        rows = self.sweep.runnable
        jobs = [job for row in rows for job in self.sweep.tuning_jobs(row)]
        chosen = {row: choose(self.sweep, row, trials, request) for row in rows}
        jobs += [
            self.sweep.reported_job(row, seed, options)
            for seed in self.sweep.seeds
            for row in rows
            if (options := chosen[row]) is not None
        ]
        yield from (job for job in jobs if request.wants(job))

    def _draws(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether a search wants one more trial, and set sampler and pruner for it."""
        search = self.sweep.search
        if search is None:
            return False
        # Samplers start with the same numbers in every process: each trial has its own seed.
        first = self.sweep.seeds[0]
        options: dict[str, Any] = {"seed": first + len(trials)}
        if search.sampler == "qmc":
            # Quasi-random numbers are counted in the study. Until a trial has ended there are none.
            options = {"seed": first, "independent_sampler": samplers.RandomSampler(**options)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.optuna.sampler = SAMPLERS[search.sampler](**options)
        self.optuna.pruner = PRUNERS[search.pruner]()
        return len(by_folder(trials)) < search.trials

    def _claim(self, trials: Sequence[FrozenTrial], request: Request) -> Claim | None:
        """Take the next trial of the queue; None if it is not wanted (any more)."""
        search = self.sweep.search
        if search is not None:
            trial = self.optuna.ask(search.distributions)
            folder = trial.user_attrs.get("folder", f"trial-{trial.number}")
            job: Job | None = Job(folder, trial.params, self.sweep.seeds[0])
        else:
            trial = self.optuna.ask()
            jobs = {job.folder: job for job in self.jobs(trials, request)}
            job = jobs.get(trial.user_attrs.get("folder", ""))
        before = [] if job is None else by_folder(trials).get(job.folder, [])
        before = [t for t in before if t.number != trial.number]
        held = [t for t in before if t.state in {TrialState.RUNNING, TrialState.COMPLETE}]
        if job is None or held:
            reason = held[0].number if held else "nobody"
            trial.set_user_attr("duplicate_of", reason)
            self.optuna.tell(trial, state=TrialState.FAIL)
            return None
        if search is None:
            self._show_parameters(trial, job)
        marks = _attributes(job) | {"runner": identity(), "heartbeat": _now()}
        for key, value in marks.items():
            trial.set_user_attr(key, value)
        return Claim(trial, job, [t for t in before if "duplicate_of" not in t.user_attrs])

    def _show_parameters(self, trial: optuna.Trial, job: Job) -> None:
        """Give a trial its row, seed and tuned options as Optuna's parameters, for dashboards."""
        choices = self.optuna.user_attrs["choices"]
        if job.row in choices:  # a row that came later has the attribute only
            trial.suggest_categorical("row", choices)
        trial.suggest_int("seed", 0, 2**32 - 1)

    def _give_up_stale(self) -> None:
        """End trials whose runner is gone; they have no `error` and count as no failure."""
        for trial in self.trials():
            if trial.state != TrialState.RUNNING:
                continue
            runner = trial.user_attrs.get("runner")
            # Whoever takes a trial gives it a runner before letting go of the lock.
            gone = runner is None or is_gone(runner)
            if runner is not None and not gone and not is_here(runner):
                sign, now = str(trial.user_attrs.get("heartbeat")), time.monotonic()
                seen, since = self._signs.setdefault(trial.number, (sign, now))
                if seen != sign:
                    self._signs[trial.number] = (sign, now)
                gone = seen == sign and now - since > GRACE
            if gone:
                self.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    # A trial that was taken -----------------------------------------------------------------------

    def beat(self, claim: Claim) -> None:
        """Give a sign of life.

        Raises:
            TrialEnded: Another runner has taken the trial.
        """
        with self.lock():
            self._check_held(claim)
            claim.trial.set_user_attr("heartbeat", _now())

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        attributes: dict[str, Any],
        values: float | list[float] | None = None,
    ) -> None:
        """End a trial.

        Args:
            claim: The trial.
            state: How it ended.
            attributes: What is to be remembered of it.
            values: Its result, of a complete one: the metric, and the cost where that counts too.

        Raises:
            TrialEnded: Another runner has taken the trial.
        """
        with self.lock():
            self._check_held(claim)
            for key, found in attributes.items():
                claim.trial.set_user_attr(key, found)
            self.optuna.tell(claim.trial, values, state)

    def _check_held(self, claim: Claim) -> None:
        trial = self.trials()[claim.trial.number]
        if trial.state.is_finished() or trial.user_attrs.get("runner") != identity():
            raise TrialEnded("taken by another runner")

    # How far it is --------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Tell whether any runner has a trial in hand."""
        return any(trial.state == TrialState.RUNNING for trial in self.trials())

    def states(self) -> dict[str, FrozenTrial | None]:
        """Return the trial that counts for each run folder; None where there is none yet."""
        trials = self.trials()
        found: dict[str, FrozenTrial | None] = {}
        if self.sweep.search is None:
            for row in self.sweep.runnable:
                jobs = list(self.sweep.tuning_jobs(row))
                jobs += [self.sweep.reported_job(row, seed, {}) for seed in self.sweep.seeds]
                found |= {job.folder: None for job in jobs}
        for folder, same in by_folder(trials).items():
            if folder in found or self.sweep.search is not None:
                found[folder] = counting(same)
        return found

    def summary(self, states: Mapping[str, FrozenTrial | None]) -> str:
        """Return in words how far the sweep is.

        Args:
            states: What `states` has returned.
        """
        search = self.sweep.search
        counts = Counter(trial.state.name.lower() for trial in states.values() if trial)
        total = len(states) if search is None else search.trials
        words = [f"{counts['complete']} of {total} complete"]
        named = {"pruned": "pruned", "running": "running", "waiting": "waiting", "fail": "failed"}
        return ", ".join(words + [f"{counts[k]} {word}" for k, word in named.items() if counts[k]])

    def is_complete(self, only: list[str] | None = None) -> bool:
        """Tell whether every row and seed has a result, or the search has had all its trials.

        Args:
            only: The rows that count; None for all. What tuning tried counts for itself.
        """
        if self.sweep.search is not None:
            ended = {TrialState.COMPLETE, TrialState.PRUNED}
            done = [t for t in self.states().values() if t and t.state in ended]
            return len(done) >= self.sweep.search.trials
        states = self.states()
        rows = self.sweep.runnable if only is None else only
        wanted = [states[f"{row}-seed{seed}"] for row in rows for seed in self.sweep.seeds]
        return all(trial is not None and trial.state == TrialState.COMPLETE for trial in wanted)


def _attributes(job: Job) -> dict[str, Any]:
    """Return what the study remembers of a job, before and after it is trained."""
    found: dict[str, Any] = {"folder": job.folder, "seed": job.seed, "options": job.options}
    if job.row:
        found["row"] = job.row
    return found if job.point is None else found | {"tuning": job.point}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
