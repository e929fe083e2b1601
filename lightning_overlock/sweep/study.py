"""The Optuna study of a sweep: its queue, who works on what, and what must be run again.

A study is shared by any number of runners. Each looks at the queue and takes from it only while it
is `alone`, and so no (row, seed) is ever trained twice at the same time, none is queued twice, and
no trial is started that nobody has asked for.
"""

import fcntl
import json
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import yaml
from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import StudyDirectionModel, TrialModel, TrialParamModel
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.spec import PRUNERS, SAMPLERS, Sweep

# Seconds between two signs of life of a running trial, and without any until it is given up.
HEARTBEAT = 10
GRACE = 60

# What decides the results of all trials. The rest of a sweep file may change at any time.
DECISIVE = ("configs", "options", "metric", "direction", "search")


class Ended(Exception):
    """A trial is over without a result."""


# Opening ------------------------------------------------------------------------------------------


def open_storage(url: str) -> RDBStorage:
    """Return the storage behind a URL, with heartbeats.

    Raises:
        InputError: If it is no database's URL or the database cannot be reached.
    """
    # Optuna calls heartbeats experimental.
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(
            f"--storage {url}: this is no database URL.\n"
            "Expected one as in sqlite:///runs/study.db or postgresql://user@host/database."
        ) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    # A thread per worker and one for its heartbeat, each with a connection of its own.
    options: dict[str, Any] = {"max_overflow": -1, "pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 60}
    elif parsed.get_backend_name() == "postgresql":
        # psycopg reads no text from a database that was made in the C locale otherwise.
        options["connect_args"] = {"client_encoding": "utf8"}
    shown = parsed.render_as_string(hide_password=True)
    for attempt in range(5):
        try:
            return RDBStorage(
                parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
            )
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise InputError(
                f"--storage {shown}: the driver of this database is not installed.\n"
                "For PostgreSQL: pip install 'lightning-overlock[postgres]'."
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            # Runners that start together create the tables of an empty database together.
            if attempt == 4:
                reason = str(error.__cause__ or error).strip().splitlines()[0]
                raise InputError(f"--storage {shown}: cannot be opened.\n{reason[:200]}") from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError


@contextmanager
def alone(storage: RDBStorage, study_id: int) -> Iterator[None]:
    """Let one thread of one runner at a time, on whatever machine, work on the study's queue.

    The lock goes with the process or the connection that holds it.
    """
    if storage.engine.dialect.name == "sqlite":
        with Path(f"{storage.engine.url.database}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    # A row that Optuna never changes.
    row = sqlalchemy.select(StudyDirectionModel).filter_by(study_id=study_id).with_for_update()
    with storage.engine.begin() as connection:
        connection.execute(row)
        yield


class Study:
    """The study of one sweep, as one thread of a runner sees it.

    Args:
        sweep: The sweep.
        storage: Where the study is.
        name: Its name.
        create: Make it if it is not there.

    Raises:
        InputError: If it is not there and is not to be made.
    """

    def __init__(self, sweep: Sweep, storage: RDBStorage, name: str, create: bool = False) -> None:
        self.sweep = sweep
        self.storage = storage
        self.name = name
        # Optuna's cache of finished trials, of which a long sweep has many.
        cached = optuna.storages.get_storage(storage)
        try:
            if create:
                self.optuna = optuna.create_study(
                    study_name=name,
                    storage=cached,
                    direction=sweep.direction,
                    load_if_exists=True,
                )
            else:
                self.optuna = optuna.load_study(study_name=name, storage=cached)
        except KeyError:
            known: list[str] = optuna.get_all_study_names(storage)
            raise InputError(
                f"{name}: no study of this name has been started.\n"
                f"Start it with `lightning sweep run`. There are: {', '.join(known) or 'none'}."
            ) from None
        self.optuna.sampler, self.optuna.pruner = RandomSampler(), NopPruner()
        self.id = self.optuna._study_id
        self._claimed = 0

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number; not to be changed."""
        return self.optuna.get_trials(deepcopy=False)

    def alone(self) -> Any:
        """Return the context in which the queue may be looked at and taken from."""
        return alone(self.storage, self.id)

    # Agreeing on the sweep ------------------------------------------------------------------------

    def settle(self) -> None:
        """Hold the sweep against what the study was started with, and take up what is new.

        Call it `alone`.

        Raises:
            InputError: If results so far were made with other settings.
        """
        content = _content(self.sweep)
        stored = self.optuna.user_attrs.get("sweep")
        if stored is not None:
            self._compare(stored, content)
            content["rows"] = stored["rows"] | content["rows"]
        if self.sweep.search is None:
            choices: dict[str, list[Any]] = self.optuna.user_attrs.get("choices", {})
            wanted: dict[str, list[Any]] = {"row": self.rows(), "seed": self.sweep.seeds}
            for name, values in wanted.items():
                old = choices.get(name, [])
                choices[name] = old + [value for value in values if value not in old]
                if old and choices[name] != old:
                    self._widen(name, choices[name])
            if choices != self.optuna.user_attrs.get("choices"):
                self.optuna.set_user_attr("choices", choices)
        if content != stored:
            self.optuna.set_user_attr("sweep", content)

    def _compare(self, stored: dict[str, Any], content: dict[str, Any]) -> None:
        decisive: dict[str, tuple[Any, Any]] = {
            key: (stored.get(key), content.get(key)) for key in DECISIVE
        }
        if self.sweep.search is not None:
            decisive["seeds"] = (stored["seeds"][:1], content["seeds"][:1])
            # More trials continue a search.
            old, new = ({**part["search"], "trials": 0} for part in (stored, content))
            decisive["search"] = (old, new)
        started = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
        tried = {_parameters(trial).get("row") for trial in started}
        for name in tried & set(content["rows"]) & set(stored["rows"]):
            old, new = (part["rows"][name]["options"] for part in (stored, content))
            decisive[f"rows.{name}.options"] = (old, new)
        for key, pair in decisive.items():
            if different := _difference(*pair, key):
                where, old, new = different
                raise InputError(
                    f"{self.sweep.path}, {where}: found {new}, but the study {self.name} was "
                    f"started with {old}.\nChange it back, or start a study of another name with "
                    "--name NAME."
                )

    def _widen(self, name: str, choices: list[Any]) -> None:
        """Add choices to a parameter of all trials, which Optuna wants to be the same in all."""
        if any(trial.state == TrialState.RUNNING for trial in self.trials()):
            raise InputError(
                f"{self.sweep.path}: has new {name}s, {choices}, while trials of {self.name} "
                "are running.\nStop the other runners, or wait for them to end."
            )
        trials = sqlalchemy.select(TrialModel.trial_id).filter_by(study_id=self.id)
        text = distribution_to_json(CategoricalDistribution(choices))
        with self.storage.engine.begin() as connection:
            connection.execute(
                sqlalchemy.update(TrialParamModel)
                .where(TrialParamModel.param_name == name, TrialParamModel.trial_id.in_(trials))
                .values(distribution_json=text)
            )
        # What Optuna has cached is out of date.
        self.optuna = optuna.load_study(
            study_name=self.name,
            storage=optuna.storages.get_storage(self.storage),
            sampler=self.optuna.sampler,
            pruner=self.optuna.pruner,
        )

    # The queue ------------------------------------------------------------------------------------

    def prepare(self, retries: int, since: int = 0) -> bool:
        """Give up stale trials, queue what must be run (again), and tell whether to start a trial.

        Call it `alone`, and stay so until the trial is claimed.

        Args:
            retries: How often a failed trial is run again.
            since: Failures of trials before this number do not count.
        """
        self._give_up_stale()
        trials = self.trials()
        if any(trial.state == TrialState.WAITING for trial in trials):
            return self._choose(len(trials))
        tried: dict[str, list[FrozenTrial]] = defaultdict(list)
        for trial in trials:
            if (folder := folder_of(trial)) is not None:
                tried[folder].append(trial)
        search = self.sweep.search
        queued = False
        if search is None:
            for seed in self.sweep.seeds:
                for row in self.rows():
                    if _is_due(tried[f"{row}-seed{seed}"], retries, since):
                        self.optuna.enqueue_trial({"row": row, "seed": seed})
                        queued = True
            return queued and self._choose(len(trials))
        for folder, found in tried.items():
            if _is_due(found, retries, since):
                self.optuna.enqueue_trial(_parameters(found[-1]), user_attrs={"folder": folder})
                queued = True
        return (queued or len(tried) < search.trials) and self._choose(len(trials))

    def _choose(self, count: int) -> bool:
        """Set sampler and pruner of the next trial of a search."""
        search = self.sweep.search
        if search is not None:
            # Samplers start with the same numbers in every process: each trial has its own seed,
            # but for quasi-random numbers, which are counted in the study.
            seed = self.sweep.seeds[0] + (0 if search.sampler == "qmc" else count)
            sampler: type[Any] = SAMPLERS[search.sampler]
            self.optuna.sampler = sampler(seed=seed)
            self.optuna.pruner = PRUNERS[search.pruner]()
        return True

    def is_running(self) -> bool:
        """Tell whether any runner has a trial in hand."""
        return any(trial.state == TrialState.RUNNING for trial in self.trials())

    def rows(self) -> list[str]:
        """Return the names of the rows that can be run."""
        return [row.name for row in self.sweep.rows.values() if not row.missing]

    def states(self) -> dict[str, FrozenTrial | None]:
        """Return the trial that counts for each run folder; None where there is none yet."""
        found: dict[str, FrozenTrial | None] = {}
        if self.sweep.search is None:
            found = {f"{row}-seed{seed}": None for row in self.rows() for seed in self.sweep.seeds}
        for trial in self.trials():
            folder = folder_of(trial)
            known = found.get(folder) if folder is not None else None
            if folder is None or "duplicate_of" in trial.user_attrs:
                continue
            if folder not in found and self.sweep.search is None:
                continue  # a row or seed that the file no longer has
            if known is None or known.state == TrialState.FAIL:
                found[folder] = trial
        return found

    def summary(self) -> str:
        """Return in words how far the sweep is."""
        search, states = self.sweep.search, self.states()
        counts = Counter(trial.state.name.lower() for trial in states.values() if trial)
        total = len(states) if search is None else search.trials
        words = [f"{counts['complete']} of {total} complete"]
        named = {"pruned": "pruned", "running": "running", "waiting": "waiting", "fail": "failed"}
        return ", ".join(words + [f"{counts[k]} {word}" for k, word in named.items() if counts[k]])

    def is_complete(self) -> bool:
        """Tell whether every row and seed has a result, or the search has had all its trials."""
        states = self.states().values()
        done = [t for t in states if t and t.state in {TrialState.COMPLETE, TrialState.PRUNED}]
        return len(done) >= (self.sweep.search.trials if self.sweep.search else len(states))

    def _give_up_stale(self) -> None:
        """End trials whose runner is gone; they have no `error` and count as no failure."""
        optuna.storages.fail_stale_trials(self.optuna)
        for trial in self.trials():
            if trial.state != TrialState.RUNNING:
                continue
            runner = trial.user_attrs.get("runner")
            if runner is None:
                # Its runner died before its first sign of life.
                started = trial.datetime_start
                gone = started is not None and datetime.now() - started > timedelta(seconds=GRACE)
            else:
                gone = _is_gone(runner)
            if gone:
                self.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def claim(self, trial: optuna.Trial) -> tuple[dict[str, Any], int, str]:
        """Take up a trial that Optuna has started, if it is to be run.

        Call it in the same `alone` as `prepare`.

        Returns:
            Its options, its seed and its run folder's name.

        Raises:
            Ended: If nobody has asked for it, or another trial holds the same row and seed.
        """
        trials = self.trials()
        self._claimed = trial.number
        frozen = trials[trial.number]
        search = self.sweep.search
        if search is None:
            queued = _parameters(frozen)
            if not {"row", "seed"} <= queued.keys():
                raise Ended("no row was queued")
            choices = self.optuna.user_attrs["choices"]
            row, seed = (trial.suggest_categorical(name, choices[name]) for name in ("row", "seed"))
            # The study's own list also knows what another runner has added since.
            options = self.optuna.user_attrs["sweep"]["rows"][row]["options"]
            folder = f"{row}-seed{seed}"
        else:
            options = {name: trial._suggest(name, space) for name, space in search.space.items()}
            seed = self.sweep.seeds[0]
            folder = frozen.user_attrs.get("folder", f"trial-{trial.number}")
        for other in trials:
            # Stale trials were given up before, in the same `alone`.
            held = other.state in {TrialState.RUNNING, TrialState.COMPLETE}
            if held and other.number != trial.number and folder_of(other) == folder:
                trial.set_user_attr("duplicate_of", other.number)
                raise Ended(f"a duplicate of trial {other.number}")
        trial.set_user_attr("runner", identity())
        trial.set_user_attr("folder", folder)
        return options, seed, folder

    def has_lost(self) -> bool:
        """Tell whether another runner has given up the trial that was claimed last."""
        return self.trials()[self._claimed].state.is_finished()

    def earlier(self, trial: optuna.Trial, folder: str) -> list[FrozenTrial]:
        """Return the trials before this one that had the same run folder."""
        before = self.trials()[: trial.number]
        return [t for t in before if folder_of(t) == folder and "duplicate_of" not in t.user_attrs]


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters, also while it still waits."""
    queued: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    return queued | trial.params


def folder_of(trial: FrozenTrial) -> str | None:
    """Return the name of a trial's run folder, which tells what it is a trial of."""
    parameters = _parameters(trial)
    if {"row", "seed"} <= parameters.keys():
        return f"{parameters['row']}-seed{parameters['seed']}"
    found: str | None = trial.user_attrs.get("folder")
    return found


def _is_due(trials: Sequence[FrozenTrial], retries: int, since: int) -> bool:
    """Tell whether one more trial is needed after these of the same row and seed."""
    if any(trial.state != TrialState.FAIL for trial in trials):
        return False
    return sum("error" in t.user_attrs and t.number >= since for t in trials) <= retries


def _content(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep for the study, with what its own configuration files say."""
    content = sweep.content()
    content["configs"] = {
        Path(config).name: yaml.safe_load(Path(config).read_text())
        for config in sweep.configs
        if Path(config).suffix
    } | {config: None for config in sweep.configs if not Path(config).suffix}
    found: dict[str, Any] = json.loads(json.dumps(content | {"path": sweep.path.name}))
    return found


def _difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return the first key that differs, and both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (key, before, now)
    for name in [*before, *(name for name in now if name not in before)]:
        missing = "nothing"
        below = f"{key}.{name}"
        if found := _difference(before.get(name, missing), now.get(name, missing), below):
            return found
    return None


# Who runs a trial ---------------------------------------------------------------------------------


def identity() -> str:
    """Return a mark of this process that a runner on the same machine can look up."""
    return f"{_place()} {os.getpid()} {_start(os.getpid())}"


def _place() -> str:
    """Return a mark of this boot of this machine, and of its container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return sha256(f"{boot} {Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:16]
    except OSError:
        return "elsewhere"


def _start(pid: int) -> str | None:
    """Return when a process started, in ticks; None if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def _is_gone(runner: str) -> bool:
    """Tell whether a runner on this machine has ended; of others only heartbeats tell."""
    place, pid, start = runner.rsplit(" ", 2)
    return place == _place() != "elsewhere" and _start(int(pid)) != start
