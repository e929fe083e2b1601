"""Images in LitData's chunks, in a folder or at an s3:// or gs:// address."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.errors import InputError, printable, require_extra
from lightning_overlock.files import is_remote

INDEX_FILE = "index.json"
# The bytes of an image file, its label and its name. LitData writes dictionaries of plain values as
# Arrow's record batches, of which no single one can be read.
Item = tuple[bytes, int, str]


def fetch_text(address: str) -> str | None:
    """Return a text file's content from a folder or a store, None where it is not there.

    Raises:
        InputError: The store cannot be asked.
    """
    if not is_remote(address):
        path = Path(address)
        return path.read_text(encoding="utf-8") if path.is_file() else None
    store = _store(address)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        try:
            if not store.exists(address):
                return None
            store.download_file(address, str(path))
        except Exception as error:  # those of three libraries
            raise _unreachable(address, error) from error
        return path.read_text(encoding="utf-8")


def put_text(address: str, content: str) -> None:
    """Write a text file into a folder or a store.

    Raises:
        InputError: The store does not take it.
    """
    if not is_remote(address):
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        Path(address).write_text(content, encoding="utf-8")
        return
    store = _store(address)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_text(content, encoding="utf-8")
        try:
            store.upload_file(str(path), address)
        except Exception as error:  # those of three libraries
            raise _unreachable(address, error) from error


def _store(address: str) -> Any:
    require_extra("streaming", ["litdata"], "LitData's chunks need")
    from litdata.streaming.fs_provider import _get_fs_provider

    try:
        return _get_fs_provider(address)
    except Exception as error:  # without credentials, or without the library of the store
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> InputError:
    return InputError(
        f"{printable(address)} cannot be reached ({_one_line(error)})\n"
        "expected credentials where the store's own tools look for them, and a bucket they open"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class LitDataChunks:
    """The items of a split as `lightning data optimize` writes them.

    An item is the bytes of an image file, its label and its name. Of a store only the bytes of the
    items that are wanted are read; nothing but the index is kept on a disk.

    Args:
        address: Where index.json and the chunks lie.

    Attributes:
        folder: The same.
        shards: The chunks.
        labels: None, as labels are known when an item is read.

    Raises:
        InputError: There is no index, or a chunk is not there or not whole.
    """

    kind = "chunks"
    labels: NDArray[np.int64] | None = None

    def __init__(self, address: str) -> None:
        require_extra("streaming", ["litdata"], "LitData's chunks need")
        self.folder = address
        text = fetch_text(f"{address}/{INDEX_FILE}")
        if text is None:
            raise InputError(
                f"{printable(address)} has no {INDEX_FILE}\n"
                "expected what `lightning data optimize` writes"
            )
        try:
            index = json.loads(text)
            chunks = [(str(c["filename"]), int(c["chunk_size"])) for c in index["chunks"]]
            sizes = [int(chunk["chunk_bytes"]) for chunk in index["chunks"]]
            packed = index["config"]["compression"] is not None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{printable(address)}/{INDEX_FILE}: no index of LitData ({_one_line(error)})\n"
                "expected what `lightning data optimize` writes"
            ) from error
        self.shards = [f"{address}/{name}" for name, _ in chunks]
        self.ends = np.cumsum([count for _, count in chunks])
        if not is_remote(address):
            for chunk, size in zip(self.shards, sizes, strict=True):
                _check_chunk(Path(chunk), 1 if packed else size)
        self.num_classes = 0
        self._opened: tuple[int, Any] | None = None

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Take the classes; that labels are among them shows when an item is read."""
        self.num_classes = len(class_names)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, index: int) -> tuple[str, bytes, int]:
        """Return the name, the encoded bytes and the label of an item.

        Raises:
            InputError: The chunk cannot be read, or has other items.
        """
        chunk = self.shards[int(np.searchsorted(self.ends, index, side="right"))]
        try:
            item = self._dataset[index]
        except Exception as error:  # LitData's, the store's, or of broken bytes
            raise InputError(
                f"{printable(chunk)}: item {index} cannot be read ({_one_line(error)})\n"
                "expected the chunk as it was written; copy it anew"
            ) from error
        # LitData gives a view of an open file in place of bytes.
        kinds = (bytes | memoryview, int, str)
        if (
            not isinstance(item, tuple)
            or len(item) != len(kinds)
            or not all(map(isinstance, item, kinds))
        ):
            raise InputError(
                f"{printable(chunk)}: item {index} is {_described(item)}\n"
                "expected (bytes of an image file, label, name), as `lightning data optimize` "
                "writes them"
            )
        content, label, name = item
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"{printable(chunk)}: item {index} has the label {label}\n"
                f"expected that of one of {self.num_classes} classes, from 0"
            )
        return f"{chunk}/{name}", bytes(content), label

    @property
    def _dataset(self) -> Any:
        """The reader of this process: a fork shares its parent's place in an open file."""
        if self._opened is None or self._opened[0] != os.getpid():
            from litdata import StreamingDataset

            # Not a window of neighbours, which are wanted at other times.
            self._opened = os.getpid(), StreamingDataset(self.folder, batch_decode=0)
        return self._opened[1]


def _check_chunk(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{printable(path)}: {error.strerror}\nexpected the chunk that {INDEX_FILE} lists"
        ) from error
    if found < size:
        raise InputError(
            f"{printable(path)}: {found:,} bytes of this chunk are there\nexpected {size:,}, as "
            f"{INDEX_FILE} says; copy it anew"
        )


def _described(item: Any) -> str:
    fields = item if isinstance(item, tuple) else [item]
    return f"({', '.join(type(field).__name__ for field in fields)})"
