"""Files and folders that a user names: what cannot be read or written is told before any work."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_overlock.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


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


def is_remote(address: str) -> bool:
    """Tell whether an address is that of a store of objects, not of a folder."""
    return address.startswith(("s3://", "gs://"))


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


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file, or leave none: half of one would be taken for whole.

    Args:
        path: The file.
        content: All of it.

    Raises:
        OSError: It cannot be written, with the file's name, which the system leaves out where the
            disk is full.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        error.filename = str(path)
        raise


def save_image(image: "Image", path: Path, kind: str = "PNG", **options: Any) -> None:
    """Write an image; where Pillow writes the file itself, it does not say why it could not.

    Args:
        image: The image.
        path: The file.
        kind: Pillow's name of the format.
        options: Those of Pillow for this format.

    Raises:
        OSError: As `write_whole` says.
    """
    content = io.BytesIO()
    image.save(content, kind, **options)
    write_whole(path, content.getbuffer())
