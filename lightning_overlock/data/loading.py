"""What is loaded when: batches are a function of (seed, epoch, index), so that resuming is exact.

A sampler orders an epoch, and `TrainBatches` and `EvalBatches` cut that order into batches and
share them out among processes; `loaders` has what reads and collates them. An image is asked for by
its `Key` (epoch, index): whatever is random about it is drawn from the seed and that key, never
from the state of a random generator that an interruption would lose.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

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
        entropy: Non-negative integers, for example (seed, epoch, index).
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
        local_processes: Training processes that share this machine's cores.
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
        length: Number of images.
        seed: Seed of the order.
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
        sampler: The order of the epoch.
        batch_size: Images per process and step.
        rank: Number of this process.
        world_size: Number of processes.
        position: Tells which batch comes first when an epoch is entered in its middle.
        groups: (number of images,) a group for each image, for example upright or wide. A step then
            has images of one group, so that little is padded; only what is left over of the groups
            mixes, in the last steps.

    Raises:
        InputError: There are too few images for one step.
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
        length: Number of images.
        batch_size: Upper limit for a batch (one more where `batch_size` is 1 and shares differ).
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer images than processes.
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
