"""Files of predictions: written row by row, beside those of earlier predictions."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from lightning_overlock.errors import InputError
from lightning_overlock.files import save_image
from lightning_overlock.runs.disk import writing

ROWS_ARE_GOOD = "What is already written is good. Make room, then predict again."


def keep_earlier(trainer: Trainer, name: str) -> Path:
    """Move what an earlier prediction has left to the next free NAME.1, NAME.2, …, and say so.

    Args:
        trainer: The trainer, in whose `default_root_dir` predictions go.
        name: Name of a file or folder there.

    Returns:
        The path, at which there is nothing now; its folder exists. Every process calls this.
    """
    path = Path(trainer.default_root_dir) / name
    if trainer.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            number = 1
            while (moved := path.with_name(f"{path.name}.{number}")).exists():
                number += 1
            path.rename(moved)
            rank_zero_info(f"{path} was there from an earlier prediction; it is now {moved}")
    trainer.strategy.barrier()
    return path


def append(path: Path, content: bytes) -> None:
    """Add to a file all or nothing: half a row would be read as another one.

    Raises:
        InputError: It does not fit.
    """
    with writing(path, ROWS_ARE_GOOD):
        size = path.stat().st_size
        try:
            with path.open("ab") as file:
                file.write(content)
        except OSError:
            os.truncate(path, size)
            raise


def write_prediction(image: Image.Image, path: Path) -> None:
    """Write a picture of predictions, in the format of its suffix.

    Where Pillow reads that format and does not write it, NAME.png is written.

    Raises:
        InputError: It cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower(), "")
    if kind not in Image.SAVE:
        path, kind = path.with_name(f"{path.name}.png"), "PNG"
    with writing(path, ROWS_ARE_GOOD):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, path, kind)


class Rows:
    """A text file that grows while predictions are made; each process writes a part of its own.

    Whatever ends a prediction, the rows of the batches until then are in the file.

    Args:
        trainer: The trainer.
        path: The file.
        head: What it begins with.
        separator: What stands between two rows.
    """

    def __init__(self, trainer: Trainer, path: Path, head: str, separator: str = "") -> None:
        self.trainer = trainer
        self.path = path
        self.separator = separator
        self._empty = True
        self._own = self._part(trainer.global_rank)
        with writing(self._own):
            self._own.touch()
        append(self._own, head.encode() if trainer.is_global_zero else b"")

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.of{rank}") if rank else self.path

    def add(self, row: str) -> None:
        """Add a row to this process's part."""
        self._append(self._own, row)

    def _append(self, path: Path, text: str) -> None:
        before = "" if self._empty else self.separator
        # Bytes of file names that are no UTF-8 are escaped.
        append(path, (before + text).encode(errors="backslashreplace"))
        self._empty = False

    def close(self, end: str = "") -> None:
        """Join the parts, that of the first process first; every process calls this."""
        self.trainer.strategy.barrier()
        if not self.trainer.is_global_zero:
            return
        for rank in range(1, self.trainer.world_size):
            if text := self._part(rank).read_bytes().decode():
                self._append(self.path, text)
            self._part(rank).unlink()
        append(self.path, end.encode())


def gathered(own: list[str], trainer: Trainer) -> list[str]:
    """Return what all processes have, on every one of them."""
    parts = [own]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts = [[]] * trainer.world_size
        torch.distributed.all_gather_object(parts, own)
    return [entry for part in parts for entry in part]


def tell_unreadable(trainer: Trainer) -> None:
    """Say which images could not be read.

    Raises:
        InputError: None could.
    """
    loader = trainer.predict_dataloaders
    own: Iterable[str] = getattr(loader, "unreadable", ())
    lines = gathered(list(own), trainer)
    if not lines:
        return
    total = len(loader.source)  # type: ignore[union-attr]
    if len(lines) == total:
        raise InputError(f"none of {total:,} images could be read, the first:\n{lines[0]}")
    for line in lines:
        rank_zero_info(line)
    rank_zero_info(f"{len(lines):,} of {total:,} images could not be read")
