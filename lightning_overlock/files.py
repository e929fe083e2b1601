"""Files and folders that a user names: what cannot be read or written is told before any work."""

import contextlib
import tempfile
from pathlib import Path

from lightning_overlock.errors import InputError


def read_text(path: Path, typed: str) -> str:
    """Return a text file's content.

    Args:
        path: The file.
        typed: How the user named it, for messages.

    Raises:
        InputError: The file cannot be read or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{typed}: found a binary file, expected text in UTF-8.") from None
    except OSError as error:
        raise InputError(f"{typed}: this file cannot be read ({error.strerror}).") from None


def require_writable(folder: Path, hint: str) -> None:
    """Make sure that files can be written into a folder, which may not be there yet.

    Args:
        folder: The folder. It is left as it was.
        hint: What to do about it, for the message.

    Raises:
        InputError: It cannot be made or written, or the disk is full.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}.\n{hint}") from None
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def require_file_writable(path: Path, typed: str) -> None:
    """Make sure that a file can be written, without changing one that is there.

    Args:
        path: The file.
        typed: How the user named it, for messages.

    Raises:
        InputError: It is a folder, its folder does not exist, or it cannot be written.
    """
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise InputError(
            f"{typed}: this file cannot be written: {error.strerror}.\nExpected a file in a folder "
            "that is there and can be written to."
        ) from None
    if not there:
        path.unlink()
