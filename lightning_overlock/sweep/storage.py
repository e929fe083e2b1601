"""The database of a study: opening it, and the lock of its queue."""

import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.sweep.spec import Sweep

# The format of the studies that this version writes.
FORMAT = 2

DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
EXPECTED = "Expected one as in sqlite:///runs/study.db or postgresql://user@host/database."


def open_storage(url: str) -> RDBStorage:
    """Return the storage behind a URL: SQLite for one machine, PostgreSQL for several.

    Raises:
        InputError: If it is no such database's URL or the database cannot be reached.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(f"--storage {url}: this is no database URL.\n{EXPECTED}") from None
    parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
    shown = parsed.render_as_string(hide_password=True)
    # A thread per worker, each with a connection of its own.
    options: dict[str, Any] = {"max_overflow": -1, "pool_pre_ping": True}
    if parsed.drivername.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    elif parsed.drivername.startswith("postgresql"):
        # psycopg reads no text from a database that was made in the C locale otherwise.
        options["connect_args"] = {"client_encoding": "utf8"}
    else:
        raise InputError(f"--storage {shown}: found a database of another kind.\n{EXPECTED}")
    for attempt in range(5):
        try:
            return RDBStorage(
                parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
                engine_kwargs=options,
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


def own_url(folder: Path) -> str:
    """Return the URL of the database in a sweep's folder.

    Raises:
        InputError: The folder's path has a character that a URL cannot hold.
    """
    file = str(folder / "study.db")
    # From 2.1 SQLAlchemy reads %41 in a URL as A and writes it as %2541; before, both as it is.
    url = sqlalchemy.URL.create("sqlite", database=file).render_as_string()
    if sqlalchemy.make_url(url).database != file:
        raise InputError(
            f"{folder}: found ? or % in a path that becomes a database's URL.\n"
            "Expected another --name, or another folder with --runs."
        )
    return url


@contextmanager
def queue_lock(storage: RDBStorage, name: str) -> Iterator[None]:
    """Let one thread of one runner at a time, on whatever machine, work on a study's queue.

    The lock goes with the process or the connection that holds it.

    Args:
        storage: The storage.
        name: The study's name.
    """
    if storage.engine.dialect.name == "sqlite":
        with Path(f"{storage.engine.url.database}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    # PostgreSQL's own lock on a number of ours; it ends with the transaction.
    key = int.from_bytes(sha256(f"lightning_overlock {name}".encode()).digest()[:8], signed=True)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


def open_study(storage: RDBStorage, name: str, sweep: Sweep | None) -> optuna.Study:
    """Return a study.

    Args:
        storage: Where it is.
        name: Its name.
        sweep: What it is made for, if it is not there; None to make none.

    Raises:
        InputError: If it is not there and is not to be made, or an older version made it.
    """
    with queue_lock(storage, name):
        known = optuna.get_all_study_names(storage)
        if name in known:
            study = optuna.load_study(study_name=name, storage=storage)
        elif sweep is None:
            raise InputError(
                f"{name}: no study of this name has been started.\n"
                f"Start it with `lightning sweep run`. There are: {', '.join(known) or 'none'}."
            )
        else:
            two: list[Literal["minimize"]] = ["minimize"] if sweep.cost else []
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                directions=[sweep.direction, *two],
            )
            study.set_user_attr("format", FORMAT)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names([sweep.metric, *([sweep.cost] if sweep.cost else [])])
    if study.user_attrs.get("format") != FORMAT:
        raise InputError(
            f"{name}: this study was made by another version of the package.\n"
            "Read it with that version (0.1 wrote the first ones), or start a new study with "
            "--name NAME."
        )
    study.sampler, study.pruner = RandomSampler(), NopPruner()
    return study


def find_study(name: str, runs: Path, url: str | None) -> tuple[RDBStorage, optuna.Study, Path]:
    """Return a study that was run, its database, and the folder that its run folders are in.

    Args:
        name: Its name, as FILE-PROFILE; FILE alone where it was run with one profile.
        runs: The folder of the sweeps' folders.
        url: The database's; None for `study.db` in the sweep's folder.

    Raises:
        InputError: If there is no such study.
    """
    if url is None:
        known = sorted(path.parent.name for path in runs.glob("*/study.db"))
        if name not in known:
            same = [study for study in known if study.rpartition("-")[0] == name]
            if len(same) != 1:
                listed = ", ".join(known) or "none"
                raise InputError(
                    f"{runs / name}: no sweep has been run here.{did_you_mean(name, known)}\n"
                    f"There are: {listed}."
                )
            name = same[0]
        url = own_url(runs / name)
    storage = open_storage(url)
    return storage, open_study(storage, name, None), runs / name


# Who runs a trial ---------------------------------------------------------------------------------


def identity() -> str:
    """Return a mark of this process that a runner on the same machine can look up."""
    return f"{_place()} {os.getpid()} {_start(os.getpid())}"


def is_here(runner: str) -> bool:
    """Tell whether a runner is, or was, on this machine since its start."""
    return runner.rsplit(" ", 2)[0] == _place() != "elsewhere"


def is_gone(runner: str) -> bool:
    """Tell whether a runner on this machine has ended; of others only signs of life tell."""
    _, pid, start = runner.rsplit(" ", 2)
    return is_here(runner) and _start(int(pid)) != start


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
