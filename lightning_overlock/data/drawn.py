"""What the three drawn tasks share: images drawn by the block, as a function of (seed, epoch)."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.images import drawn_transform
from lightning_overlock.data.loading import Key, global_seed
from lightning_overlock.ranges import AT_LEAST_1, check_range

# Drawing so many images at once costs a small part of what drawing them one by one does.
BLOCK = 256
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Drawn(NamedTuple):
    """A block of images.

    Attributes:
        canvases: (N, C, H, W) uint8; C is 1 or 3, ink is 255.
        labels: (N,) int64.
        facts: What else is known of each image, (N,) each; predictions are named after it.
    """

    canvases: NDArray[np.uint8]
    labels: NDArray[np.int64]
    facts: dict[str, NDArray[np.int64]]


# Draws so many images with a random generator; the epoch matters to a curriculum only.
Draw = Callable[[np.random.Generator, int, int], Drawn]


class DrawnImages:
    """Images of one split that are drawn when they are asked for.

    Image i lies in block i // 256, which is a function of (split, seed, epoch, block): neither of
    the number of images nor of the order they are asked for in. The blocks of one epoch are kept.

    Args:
        draw: Makes a block.
        title: What predictions are called.
        split: The split that is drawn.
        images: Number of images.
        fresh: Whether every epoch has other images; otherwise epoch 0's for ever.
        seed: Seed of everything random.
        named: Whether items are (image, name) instead of (image, label). The name ends with the
            label and the facts.
        mean: Mean of a pixel in [0, 1], over training images.
        std: Standard deviation of a pixel in [0, 1], over training images.
    """

    def __init__(
        self,
        draw: Draw,
        *,
        title: str,
        split: Split,
        images: int,
        fresh: bool,
        seed: int,
        named: bool,
        mean: float,
        std: float,
    ) -> None:
        self.draw = draw
        self.title = title
        self.split = split
        self.images = images
        self.fresh = fresh
        self.seed = seed
        self.named = named
        self.mean = mean
        self.std = std
        self._epoch = -1
        self._blocks: dict[int, Drawn] = {}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        block, place = self.block(key), key.index % BLOCK
        image = torch.from_numpy(block.canvases[place]).float()
        image = ((image - 255 * self.mean) / (255 * self.std)).expand(3, -1, -1)
        label = int(block.labels[place])
        if not self.named:
            return image, label
        facts = "".join(f", {name} {values[place]}" for name, values in block.facts.items())
        return image, f"{self.title} {self.split} {key.index:05d}, label {label}{facts}"

    def block(self, key: Key) -> Drawn:
        """Return the block in which a key's image is number `key.index % 256`."""
        epoch = key.epoch if self.fresh else 0
        if epoch != self._epoch:
            self._epoch = epoch
            self._blocks = {}
        number = key.index // BLOCK
        if number not in self._blocks:
            random = np.random.default_rng((SPLITS.index(self.split), self.seed, epoch, number))
            self._blocks[number] = self.draw(random, BLOCK, epoch)
        return self._blocks[number]


class DrawnDataModule(BaseDataModule):
    """Training images without end and fixed validation and test images; a task adds `draws`.

    Args:
        batch_size: Images per process and step.
        train_images: Training images per epoch.
        eval_images: Validation images, and as many test images.
        fresh: Whether to draw new training images in every epoch; False repeats the same.
        num_workers: Processes that draw images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    training_options = frozenset({"train_images", "fresh"})
    title: str
    # Statistics of pixels in [0, 1], over training images of the default difficulty.
    mean: float
    std: float

    def __init__(
        self,
        batch_size: int,
        train_images: int,
        eval_images: int,
        fresh: bool,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_range("data.train_images", train_images, AT_LEAST_1)
        check_range("data.eval_images", eval_images, AT_LEAST_1)
        self.train_images = train_images
        self.eval_images = eval_images
        self.fresh = fresh

    @abstractmethod
    def draws(self, split: Split) -> Draw:
        """Return what draws the images of "train", "val" or "test"."""

    def image_transform(self, _: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return what makes a canvas of an image: bright ink on black."""
        return drawn_transform(self.mean, self.std)

    def source(self, split: Split) -> DrawnImages:
        """Return the images of a split; those of `predict` are the test images."""
        train, shown = split == "train", "test" if split == "predict" else split
        return DrawnImages(
            self.draws(shown),
            title=self.title,
            split=shown,
            images=self.train_images if train else self.eval_images,
            fresh=self.fresh and train,
            seed=global_seed() if train else 0,
            named=split == "predict",
            mean=self.mean,
            std=self.std,
        )


def stamp(
    canvases: NDArray[np.uint8],
    stamps: NDArray[np.uint8],
    top: NDArray[np.int64],
    left: NDArray[np.int64],
) -> None:
    """Lay one stamp on each canvas in place; the brighter pixel wins.

    Args:
        canvases: (N, H, W).
        stamps: (N, h, w).
        top: (N,) first row of each stamp.
        left: (N,) first column of each stamp.
    """
    count, height, width = stamps.shape
    rows = top[:, None, None] + np.arange(height)[:, None]
    columns = left[:, None, None] + np.arange(width)
    place = (np.arange(count)[:, None, None], rows, columns)
    canvases[place] = np.maximum(canvases[place], stamps)
