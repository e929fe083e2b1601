"""The run folder: one fixed place per run name, held by one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_overlock.errors import InputError, did_you_mean


def is_rank_zero() -> bool:
    """Tell whether this process is the first of all, which alone writes and speaks."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def run_folder(name: str) -> Path:
    """Return the folder of the run `name`; the environment's OVERLOCK_RUNS moves `runs`."""
    if not name or name in {".", ".."} or "/" in name or os.sep in name:
        raise InputError(f"--name {name!r}: expected a plain folder name, without slashes.")
    return Path(os.environ.get("OVERLOCK_RUNS", "runs")) / name


def last_checkpoint(name: str) -> Path:
    """Return the checkpoint that `--ckpt_path last` means for the run `name`.

    Raises:
        InputError: If the run has none.
    """
    path = run_folder(name) / "checkpoints" / "last.ckpt"
    if path.is_file():
        return path
    runs = [file.parts[-3] for file in path.parents[2].glob("*/checkpoints/last.ckpt")]
    known = f"Runs that can be continued: {', '.join(sorted(runs))}." if runs else ""
    raise InputError(
        f"--ckpt_path last: the run '{name}' has no {path}.{did_you_mean(name, runs)}\n"
        f"Start it without --ckpt_path, or name another run with --name. {known}".rstrip()
    )


def run_of(checkpoint: Path) -> str | None:
    """Return the name of the run that a checkpoint file lies in, None if it lies elsewhere."""
    folder = checkpoint.resolve().parent.parent
    here = run_folder(folder.name) if folder.name else None
    return folder.name if here is not None and here.resolve() == folder else None


@contextmanager
def hold(folder: Path, continued: bool) -> Iterator[None]:
    """Hold a run folder while training writes to it; only rank zero touches it.

    Unless the run is continued, what an earlier run of the same name left is first moved to the
    next free `NAME.1`, `NAME.2`, …: nothing is overwritten. A run that an input error ends before
    its first checkpoint leaves everything as it was.

    Raises:
        InputError: If another process is training into the folder.
    """
    if not is_rank_zero():
        yield
        return
    lock = _lock(folder)
    moved: Path | None = None
    try:
        if not continued and any(entry.name != ".lock" for entry in folder.iterdir()):
            moved = _move_aside(folder)
            os.close(lock)
            lock = _lock(folder)
            print(f"{folder} held an earlier run; it is now {moved}.")
        yield
    except InputError:
        if not continued and not (folder / "checkpoints").exists():
            shutil.rmtree(folder)
            if moved is not None:
                moved.rename(folder)
                print(f"{moved} is {folder} again: nothing was trained.")
        raise
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    # The kernel drops the lock with the process, so a killed run leaves nothing to clean up.
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
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
