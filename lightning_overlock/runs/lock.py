"""One process at a time trains into a run folder."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_overlock.errors import InputError
from lightning_overlock.runs.disk import writing
from lightning_overlock.runs.layout import CHECKPOINTS, LOCK, METRICS


def is_rank_zero() -> bool:
    """Tell whether this process is the first of all, which alone writes and speaks."""
    # Lightning sets the attribute when it is imported; before that there are no other processes
    # but those of a launcher, which says so in the environment.
    known = [
        os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ
    ]
    rank = getattr(rank_zero_only, "rank", None)
    return int(known[0] if rank is None and known else rank or 0) == 0


@contextmanager
def claim_run_folder(
    folder: Path, continued: bool, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Keep other processes out of a run folder while training writes to it.

    Only rank zero touches the folder. Unless the run is continued, what an earlier run of the same
    name left is first moved to the next free `NAME.1`, `NAME.2`, …: nothing is overwritten. A run
    that an input error ends before its first epoch leaves everything as it was.

    Args:
        folder: The run folder.
        continued: Whether the run goes on with what is in it.
        say: Tells what was moved.

    Raises:
        InputError: If another process is training into the folder, or it cannot be written.
    """
    if not is_rank_zero():
        yield
        return
    lock = _lock(folder)
    moved: Path | None = None
    try:
        if not continued and any(entry.name != LOCK for entry in folder.iterdir()):
            with writing(folder):
                moved = _move_aside(folder)
            os.close(lock)
            lock = _lock(folder)
            say(f"{folder} held an earlier run; it is now {moved}.")
        yield
    except InputError:
        trained = (folder / CHECKPOINTS).exists() or (folder / METRICS).exists()
        if not continued and not trained:
            shutil.rmtree(folder, ignore_errors=True)
            if moved is not None:
                moved.rename(folder)
                say(f"{moved} is {folder} again: nothing was trained.")
        raise
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The kernel drops the lock with the process, so a killed run leaves nothing to clean up.
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(
            f"{folder} is in use: another process is training into it.\n"
            "Wait for it, or give this run a name of its own with --name."
        ) from None
    return lock


def _move_aside(folder: Path) -> Path:
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(moved)
