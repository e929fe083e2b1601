"""Loaders: the batches of a source, read and collated by worker processes."""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_overlock.data.left_out import LeftOut, refuse_if_too_many
from lightning_overlock.data.loading import (
    Collate,
    CorruptImage,
    EvalBatches,
    Key,
    Source,
    TrainBatches,
    stack,
)
from lightning_overlock.errors import InputError


class _Read(NamedTuple):
    """What a worker hands over for one batch.

    An input error travels as a value: DataLoader would wrap an exception's message in the worker's
    traceback.
    """

    batch: Any
    error: InputError | None
    skipped: list[tuple[int, str]]


class _Reader(Dataset[_Read]):
    """Reads a batch of keys; runs in the workers."""

    def __init__(
        self,
        source: Source,
        collate: Collate,
        skippable: tuple[type[InputError], ...],
        replace: bool,
    ) -> None:
        self.source = source
        self.collate = collate
        self.skippable = skippable
        self.replace = replace

    def __getitem__(self, keys: list[Key]) -> _Read:
        skipped: list[tuple[int, str]] = []
        try:
            items = [item for key in keys for item in self._read(key, skipped)]
        except InputError as error:
            return _Read(None, error, skipped)
        if not items:
            return _Read(None, None, skipped)
        return _Read(self.collate(items), None, skipped)

    def _read(self, key: Key, skipped: list[tuple[int, str]]) -> list[Any]:
        """Return the item of `key`, or of the next readable one, or nothing."""
        count = len(self.source)
        for offset in range(count if self.replace else 1):
            index = (key.index + offset) % count
            try:
                return [self.source[Key(key.epoch, index)]]
            except self.skippable as error:
                skipped.append((index, str(error).splitlines()[0]))
        if self.replace:
            raise InputError(f"none of the {count} images can be read, for example {skipped[0][1]}")
        return []


def _unchanged(read: Any) -> Any:
    return read


class Loader:
    """Yields the batches of a source, collated, in the order of `batch_sampler`.

    It is no torch `DataLoader` but holds one: Lightning replaces the sampler of a DataLoader when
    it predicts, overfits or distributes.

    Args:
        source: Where the images come from.
        batch_sampler: Yields the keys of each batch.
        collate: Makes a batch of its items: `stack`, or `as_lists` where sizes differ.
        num_workers: Worker processes; they stay alive from epoch to epoch until `close`.
        pin_memory: Copy batches into pinned memory.
        skip_corrupt: Warn of unreadable images, once per file at the end of an epoch, instead of
            raising `CorruptImage`. In training the next readable image takes the place, so that
            batches stay full; in evaluation the image is left out.
        max_left_out: The largest share of the images, or of a class's, that is skipped so.
        skip_unreadable: Leave every image out that cannot be read, for whatever reason. Nothing is
            warned of: `unreadable` says which, and why.

    Attributes:
        unreadable: One line for each image that this process could not read in its last pass.
    """

    def __init__(
        self,
        source: Source,
        batch_sampler: TrainBatches | EvalBatches,
        *,
        collate: Collate = stack,
        num_workers: int = 0,
        pin_memory: bool = False,
        skip_corrupt: bool = False,
        max_left_out: float = 1.0,
        skip_unreadable: bool = False,
    ) -> None:
        self.max_left_out = max_left_out
        self.source = source
        self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        skippable: tuple[type[InputError], ...] = (CorruptImage,) if skip_corrupt else ()
        if skip_unreadable:
            skippable = (InputError,)
        self._reader = _Reader(
            source, collate, skippable, replace=isinstance(batch_sampler, TrainBatches)
        )
        self.skip_unreadable = skip_unreadable
        self.unreadable: list[str] = []
        self._skipped: dict[str, None] = {}
        self.close()

    def close(self) -> None:
        """Stop the workers; the next epoch starts new ones."""
        self._loader: DataLoader[_Read] = DataLoader(
            self._reader,
            sampler=self.batch_sampler,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            # Without one of its own it draws from the global generator in every epoch.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator does nothing before its first batch is asked for. Lightning calls iter()
        # earlier, before it has set the epoch, and workers would read ahead in the wrong one.
        skipped: dict[int, str] = {}
        left_out: dict[int | None, LeftOut] = {}
        self.unreadable.clear()
        last = len(self) - 1
        first = self.batch_sampler.position() if isinstance(self.batch_sampler, TrainBatches) else 0
        try:
            for number, read in enumerate(self._loader, first):
                if read.error is not None:
                    raise read.error
                if self.skip_unreadable:
                    self.unreadable += [line for _, line in read.skipped]
                else:
                    new = {i: line for i, line in read.skipped if i not in skipped}
                    for index, line in new.items():
                        self._count(index, line, left_out)
                    skipped |= new
                if number == last:  # now, as Lightning does not ask for what comes after it
                    self._warn_of(skipped)
                if read.batch is not None:
                    yield read.batch
        finally:
            self._warn_of(skipped)

    def _count(self, index: int, line: str, left_out: dict[int | None, LeftOut]) -> None:
        """Count a skipped image, and stop as soon as more is skipped than may be left out."""
        labels = getattr(self.source, "labels", None)
        kinds: dict[int | None, tuple[str, int]] = {None: ("images", len(self.source))}
        if labels is not None:
            label = int(labels[index])
            kinds[label] = f"images of class {label} (from 0)", int(np.sum(labels == label))
        for kind, (what, of) in kinds.items():
            counted = left_out.setdefault(kind, LeftOut(what))
            counted.add("that cannot be read", line)
            source = str(getattr(self.source, "folder", "the data"))
            refuse_if_too_many(source, counted, of, self.max_left_out)

    def _warn_of(self, skipped: dict[int, str]) -> None:
        new = [line for line in skipped.values() if line not in self._skipped]
        self._skipped.update(dict.fromkeys(skipped.values()))
        if new:
            some = "; ".join(new[:3]) + ("; …" if len(new) > 3 else "")
            warnings.warn(f"{len(new)} unreadable image(s) skipped: {some}", stacklevel=2)


class TrainLoader(Loader):
    """A loader that a run can be resumed with in the middle of an epoch.

    The batch to go on with is Lightning's own count (`TrainBatches.position`), which is right even
    if Ctrl-C struck inside a step. The state only serves to find out whether the epoch begun is
    the one that goes on.
    """

    batch_sampler: TrainBatches

    def first_batches(self, count: int) -> Iterator[Any]:
        """Yield the first batches of the epoch, whichever comes next in training.

        The pass of the epoch that is under way is not disturbed.
        """
        keys = list(islice(self.batch_sampler.batches(0), count))
        reads: DataLoader[_Read] = DataLoader(
            self._reader,
            sampler=keys,  # whole batches, as from `batch_sampler`
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=min(self.num_workers, len(keys)),
            pin_memory=self.pin_memory,
            generator=torch.Generator(),
        )
        for read in reads:
            if read.error is not None:
                raise read.error
            yield read.batch

    def state_dict(self) -> dict[str, int]:
        """Return what defines the order of the epoch."""
        sampler = self.batch_sampler.sampler
        return {
            "images": len(sampler),
            "seed": sampler.seed,
            "images per step": self.batch_size * self.batch_sampler.world_size,
            "groups of images": 0 if self.batch_sampler.groups is None else 1,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Compare with the state of the run that is resumed.

        Raises:
            InputError: The rest of the epoch would not be the rest of the same epoch.
        """
        now = self.state_dict()
        changed = [
            # Checkpoints from before images were grouped do not say so.
            f"{name} {state.get(name, 0)} (now {now[name]})"
            for name in now
            if state.get(name, 0) != now[name]
        ]
        if (
            changed
            and 0 < self.batch_sampler.position() < state["images"] // state["images per step"]
        ):
            raise InputError(
                f"the checkpoint stands in the middle of an epoch with {', '.join(changed)}\n"
                "expected the same, or a checkpoint from the end of an epoch"
            )
