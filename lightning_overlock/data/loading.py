"""Loaders whose batches are a function of (seed, epoch, index), so that resuming is exact.

A sampler orders an epoch, `TrainBatches` and `EvalBatches` cut that order into batches and share
them out among processes, and a `Loader` reads and collates them. An image is asked for by its `Key`
(epoch, index): whatever is random about it is drawn from the seed and that key, never from the
state of a random generator that an interruption would lose.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_overlock.errors import InputError


@dataclass(frozen=True, slots=True)
class Key:
    """What an image is asked for by: its index and the epoch it is wanted in."""

    epoch: int
    index: int


class Source(Protocol):
    """Where images come from: `source[key]` is one item, for example (image, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Any: ...


# Makes a batch of a list of items.
Collate = Callable[[list[Any]], Any]


def stack(items: list[Any]) -> list[Any]:
    """Collate items of equal sizes: each field becomes one tensor, or a list of strings."""
    # default_collate makes tuples of strings.
    return [list(p) if isinstance(p, tuple) else p for p in default_collate(items)]


def as_lists(items: list[Any]) -> list[list[Any]]:
    """Collate items whose sizes differ: each field becomes a list."""
    return [list(field) for field in zip(*items, strict=True)]


class CorruptImage(InputError):
    """An image file that cannot be read; the one input error that a loader may skip."""


def global_seed() -> int:
    """Return the seed that Lightning's `seed_everything` has set, 0 if it has not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed `random`, numpy and torch's CPU generator for a block and put them back after it.

    Args:
        entropy: non-negative integers, for example (seed, epoch, index).
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    first, second, third = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)  # noqa: NPY002 - timm's augmentations draw from it
    # torch.manual_seed would seed every GPU as well.
    torch.default_generator.manual_seed(third)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def default_num_workers(local_processes: int = 1) -> int:
    """Return how many worker processes one training process should read images with.

    One core is left to the training process itself, and more than 16 readers seldom pay.

    Args:
        local_processes: training processes that share this machine's cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    if per_task := os.environ.get("SLURM_CPUS_PER_TASK"):
        cores = min(cores, int(per_task))
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            local_processes = 1  # each process is a task that owns its cores
    return min(max(cores // local_processes - 1, 1), 16)


class EpochSampler:
    """The indices of all images, in an order that is a function of (seed, epoch).

    Args:
        length: number of images.
        seed: seed of the order.
        shuffle: False keeps the order of the source.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order.tolist())


class TrainBatches:
    """This process's batches of an epoch: all full, equally many on every process.

    The images of a step over all processes are the same however many processes share them, as long
    as `batch_size * world_size` is. What does not fill a last step is left out of this epoch.

    Args:
        sampler: the order of the epoch.
        batch_size: images per process and step.
        rank: number of this process.
        world_size: number of processes.
        position: tells which batch comes first when an epoch is entered in its middle.
        groups: (number of images,) a group for each image, for example upright or wide. A step then
            has images of one group, so that little is padded; only what is left over of the groups
            mixes, in the last steps.

    Raises:
        InputError: there are too few images for one step.
    """

    def __init__(
        self,
        sampler: EpochSampler,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] = int,
        groups: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.position = position
        self.groups = groups
        if len(self) == 0:
            raise InputError(
                f"the training split has {len(sampler)} images, fewer than one batch of "
                f"{batch_size} on each of {world_size} process(es)\n"
                f"expected data.batch_size of at most {len(sampler) // world_size}"
            )

    def __len__(self) -> int:
        return len(self.sampler) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        return self.batches(self.position())

    def batches(self, first: int) -> Iterator[list[Key]]:
        """Yield this process's batches of the epoch, beginning with the one numbered `first`."""
        order = self._order()
        for batch in range(first, len(self)):
            start = (batch * self.world_size + self.rank) * self.batch_size
            indices = order[start : start + self.batch_size]
            yield [Key(self.sampler.epoch, index) for index in indices]

    def _order(self) -> list[int]:
        order = list(self.sampler)
        if self.groups is None:
            return order
        step = self.batch_size * self.world_size
        steps, rest = [], []
        of_place = self.groups[order]
        for group in np.unique(of_place):
            places = np.flatnonzero(of_place == group)
            full = len(places) // step * step
            steps += list(places[:full].reshape(-1, step))
            rest.append(places[full:])
        # A step comes when its last image does, as if the images were sorted into the groups' bins.
        steps.sort(key=lambda places: int(places[-1]))
        places = np.concatenate([*steps, np.sort(np.concatenate(rest))])
        return [order[place] for place in places.tolist()]


class EvalBatches:
    """This process's share of the images in their own order; no image is in two batches.

    Every process gets the same number of batches, so that what processes do together per batch
    cannot wait for ever. Batches are therefore of nearly equal size instead of full.

    Args:
        length: number of images.
        batch_size: upper limit for a batch (one more where `batch_size` is 1 and shares differ).
        rank: number of this process.
        world_size: number of processes.

    Raises:
        InputError: there are fewer images than processes.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if length < world_size:
            raise InputError(
                f"{length} image(s) cannot be shared out among {world_size} processes\n"
                f"expected trainer.devices of at most {length}"
            )
        self.length = length
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        smallest_share = self.length // self.world_size
        largest_share = -(-self.length // self.world_size)
        return min(-(-largest_share // self.batch_size), smallest_share)

    def __iter__(self) -> Iterator[list[Key]]:
        share = np.array_split(np.arange(self.length), self.world_size)[self.rank]
        for batch in np.array_split(share, len(self)):
            yield [Key(0, index) for index in batch.tolist()]


class _Read(NamedTuple):
    """What a worker hands over for one batch.

    An input error travels as a value: DataLoader would wrap an exception's message in the worker's
    traceback.
    """

    batch: Any
    error: InputError | None
    skipped: list[str]


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
        skipped: list[str] = []
        try:
            items = [item for key in keys for item in self._read(key, skipped)]
        except InputError as error:
            return _Read(None, error, skipped)
        if not items:
            return _Read(None, None, skipped)
        return _Read(self.collate(items), None, skipped)

    def _read(self, key: Key, skipped: list[str]) -> list[Any]:
        """Return the item of `key`, or of the next readable one, or nothing."""
        count = len(self.source)
        for offset in range(count if self.replace else 1):
            try:
                return [self.source[Key(key.epoch, (key.index + offset) % count)]]
            except self.skippable as error:
                skipped.append(str(error).splitlines()[0])
        if self.replace:
            raise InputError(f"none of the {count} images can be read, for example {skipped[0]}")
        return []


def _unchanged(read: Any) -> Any:
    return read


class Loader:
    """Yields the batches of a source, collated, in the order of `batch_sampler`.

    It is no torch `DataLoader` but holds one: Lightning replaces the sampler of a DataLoader when
    it predicts, overfits or distributes.

    Args:
        source: where the images come from.
        batch_sampler: yields the keys of each batch.
        collate: makes a batch of its items: `stack`, or `as_lists` where sizes differ.
        num_workers: worker processes; they stay alive from epoch to epoch until `close`.
        pin_memory: copy batches into pinned memory.
        skip_corrupt: warn of unreadable images, once per file at the end of an epoch, instead of
            raising `CorruptImage`. In training the next readable image takes the place, so that
            batches stay full; in evaluation the image is left out.
        skip_unreadable: leave every image out that cannot be read, for whatever reason. Nothing is
            warned of: `unreadable` says which, and why.

    Attributes:
        unreadable: one line for each image that this process could not read in its last pass.
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
        skip_unreadable: bool = False,
    ) -> None:
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
        skipped: dict[str, None] = {}
        self.unreadable.clear()
        last = len(self) - 1
        first = self.batch_sampler.position() if isinstance(self.batch_sampler, TrainBatches) else 0
        try:
            for number, read in enumerate(self._loader, first):
                if read.error is not None:
                    raise read.error
                if self.skip_unreadable:
                    self.unreadable += read.skipped
                else:
                    skipped.update(dict.fromkeys(read.skipped))
                if number == last:  # now, as Lightning does not ask for what comes after it
                    self._warn_of(skipped)
                if read.batch is not None:
                    yield read.batch
        finally:
            self._warn_of(skipped)

    def _warn_of(self, skipped: dict[str, None]) -> None:
        new = [message for message in skipped if message not in self._skipped]
        self._skipped.update(skipped)
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
            sampler=keys,  # type: ignore[arg-type] - whole batches, as from `batch_sampler`
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
            InputError: the rest of the epoch would not be the rest of the same epoch.
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
