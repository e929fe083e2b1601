"""Files that cannot be written, told as what they are."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_overlock.errors import InputError

# What keeps a file from being written and is no mistake of the program.
REASONS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}
# Those that are the disk's matter wherever they are met.
DISK_ERRORS = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explain(error: OSError, path: Path | str, what_now: str = "") -> InputError:
    """Return an input error that says which file cannot be written, and why.

    Args:
        error: What the system said.
        path: What was to be written.
        what_now: What else to say; by default what to do about it.
    """
    reason = error.strerror or str(error)
    advice = (
        "Free some space" if error.errno in FULL else "Expected a folder that files can be put into"
    )
    advice += ", or move the runs with the environment's OVERLOCK_RUNS."
    return InputError(f"{path} cannot be written: {reason}.\n{what_now or advice}")


@contextmanager
def writing(path: Path, what_now: str = "") -> Iterator[None]:
    """Turn the system's refusal to write a file into an input error.

    Raises:
        InputError: The file cannot be written: a full disk, a folder without permission, …
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REASONS:
            raise
        raise explain(error, path, what_now) from error


def replace_file(path: Path, content: bytes | memoryview, what_now: str = "") -> None:
    """Write a file that is whole at every moment: the old one, or the new one.

    Args:
        path: The file.
        content: All of it.
        what_now: What an error message says to do.

    Raises:
        InputError: It cannot be written; the old one is as it was.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(path, what_now):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
