"""Files of predictions: written row by row, beside those of earlier predictions."""

from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_overlock.errors import InputError


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
        self._own.write_bytes(head.encode() if trainer.is_global_zero else b"")

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.of{rank}") if rank else self.path

    def add(self, row: str) -> None:
        """Add a row to this process's part."""
        self._append(self._own, row)

    def _append(self, path: Path, text: str) -> None:
        before = "" if self._empty else self.separator
        with path.open("ab") as file:
            # Bytes of file names that are no UTF-8 are escaped.
            file.write((before + text).encode(errors="backslashreplace"))
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
        with self.path.open("ab") as file:
            file.write(end.encode())


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
