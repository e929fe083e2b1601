"""Real digits that come with scikit-learn: 1,797 of them, 8x8 pixels, nothing to download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.images import drawn_transform
from lightning_overlock.data.loading import Key, global_seed
from lightning_overlock.ranges import AT_LEAST_0, AT_LEAST_1, Range, check_range

CLASS_NAMES = [str(digit) for digit in range(10)]

DigitSplit = Literal["train", "val", "test"]


class Digits(NamedTuple):
    """Digits of one split.

    Attributes:
        images: (N, 1, 8, 8) float32 in [0, 1], ink is 1.
        labels: (N,) int64.
        numbers: (N,) int64, their places in scikit-learn's collection.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor


def digits_of(split: DigitSplit) -> Digits:
    """Return one of three disjoint stratified splits: 1,197 train, 300 val and 300 test digits.

    The split never changes, whatever the seed, so that results can be compared.
    """
    # It takes a second to import, and other data do without it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    collection = load_digits()
    everything = np.arange(len(collection.target))
    rest, test = train_test_split(
        everything, test_size=300, stratify=collection.target, random_state=0
    )
    train, val = train_test_split(
        rest, test_size=300, stratify=collection.target[rest], random_state=0
    )
    chosen = np.sort({"train": train, "val": val, "test": test}[split])
    return Digits(
        images=torch.from_numpy(collection.images[chosen]).float().div(16).unsqueeze(1),
        labels=torch.from_numpy(collection.target[chosen]).long(),
        numbers=torch.from_numpy(chosen),
    )


def resize_digits(images: Tensor, size: int) -> NDArray[np.uint8]:
    """Return digits (N, 1, 8, 8) in [0, 1] resized to (N, size, size), ink is 255."""
    resized = F.interpolate(images, size=(size, size), mode="bilinear")
    return resized.mul(255).round().to(torch.uint8).squeeze(1).numpy()


class DigitImages:
    """Whole digits resized to a square image, optionally turned, scaled and shifted a little.

    Digits touch the edge of their 8x8 pixels, so a margin of one pixel is laid around them first.

    Args:
        split: Which digits.
        image_size: Side of the image in pixels.
        augment: A rotation of at most 12 degrees, a scale of 0.9 to 1.1 and a shift of at most a
            sixteenth of the side, drawn from (seed, epoch, index).
        seed: Seed of the augmentation.
        named: Items are (image, name) instead of (image, label).
    """

    # Over the pixels of training images of the default size.
    mean, std = 0.195, 0.295

    def __init__(
        self, split: DigitSplit, image_size: int, augment: bool, seed: int, named: bool
    ) -> None:
        self.digits = digits_of(split)
        self.padded = F.pad(self.digits.images, (1, 1, 1, 1))
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.named = named

    def __len__(self) -> int:
        return len(self.digits.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        # Resizing and augmentation are one resampling of the small digit.
        placement = self._random_placement(key) if self.augment else torch.eye(2, 3)
        grid = F.affine_grid(
            placement.unsqueeze(0), [1, 1, self.image_size, self.image_size], align_corners=False
        )
        digit = self.padded[key.index : key.index + 1]
        image = F.grid_sample(digit, grid, align_corners=False)[0]
        image = ((image - self.mean) / self.std).expand(3, -1, -1)
        if self.named:
            return image, f"digit {int(self.digits.numbers[key.index]):04d}"
        return image, int(self.digits.labels[key.index])

    def _random_placement(self, key: Key) -> Tensor:
        """Return a matrix (2, 3) from output to input coordinates, both in [-1, 1]."""
        random = np.random.default_rng((self.seed, key.epoch, key.index))
        angle = math.radians(random.uniform(-12, 12))
        scale = random.uniform(0.9, 1.1)
        right, down = random.uniform(-1 / 8, 1 / 8, size=2)
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        return torch.tensor([[cos, -sin, right], [sin, cos, down]], dtype=torch.float32)


class Scene(NamedTuple):
    """A canvas with one whole digit among fragments of others.

    Attributes:
        canvas: (64, 64) uint8, ink is 255.
        label: The whole digit.
        top: First row of the whole digit's square.
        left: First column of that square.
        size: Side of that square, 18 to 24 pixels.
    """

    canvas: NDArray[np.uint8]
    label: int
    top: int
    left: int
    size: int


class ClutteredDigitImages:
    """The cluttered translated digits of Mnih et al. 2014 (arXiv 1406.6247, section 4.1).

    A digit is resized to 18 to 24 pixels and put whole somewhere on a canvas of 64 among fragments,
    8x8 pixel crops of other digits of the same split at random places. Ink lies over ink: the
    brighter pixel wins. Image i shows digit i modulo the number of digits.

    Args:
        split: Which digits.
        images: Number of images.
        clutter: Number of fragments.
        fresh: Another canvas for the same digit in every epoch; otherwise epoch 0's for ever.
        seed: Seed of sizes, places and fragments.
        named: Items are (image, name) instead of (image, label).
    """

    canvas_size = 64
    digit_sizes = range(18, 25)
    fragment_size = 8
    # Over the pixels of 2,000 training images with eight fragments.
    mean, std = 0.08, 0.217

    def __init__(
        self,
        split: DigitSplit,
        images: int,
        clutter: int,
        fresh: bool,
        seed: int,
        named: bool,
    ) -> None:
        digits = digits_of(split)
        self.split = split
        self.images = images
        self.clutter = clutter
        self.fresh = fresh
        self.seed = seed
        self.named = named
        self.labels = digits.labels.tolist()
        # Every digit at every size, once: resizing one by one would cost more than all the rest.
        self.resized = {size: resize_digits(digits.images, size) for size in self.digit_sizes}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        scene = self.scene(key)
        image = torch.from_numpy(scene.canvas).float().div(255)
        image = ((image - self.mean) / self.std).expand(3, -1, -1)
        return image, f"cluttered {self.split} {key.index:05d}" if self.named else scene.label

    def scene(self, key: Key) -> Scene:
        """Draw the canvas of a key."""
        random = np.random.default_rng((self.seed, key.epoch if self.fresh else 0, key.index))
        digit = key.index % len(self.labels)
        size = int(random.integers(self.digit_sizes.start, self.digit_sizes.stop))
        top, left = random.integers(0, self.canvas_size - size + 1, size=2).tolist()
        canvas = np.zeros((self.canvas_size, self.canvas_size), np.uint8)
        canvas[top : top + size, left : left + size] = self.resized[size][digit]
        self._add_fragments(canvas, digit, random)
        return Scene(canvas, self.labels[digit], top, left, size)

    def _add_fragments(
        self, canvas: NDArray[np.uint8], digit: int, random: np.random.Generator
    ) -> None:
        side = self.fragment_size
        # Any digit but the whole one: skip over its place.
        others = random.integers(0, len(self.labels) - 1, size=self.clutter)
        others += others >= digit
        sizes = random.integers(self.digit_sizes.start, self.digit_sizes.stop, size=self.clutter)
        crops = random.integers(0, sizes - side + 1, size=(2, self.clutter)).T
        places = random.integers(0, self.canvas_size - side + 1, size=(self.clutter, 2))
        for other, size, (row, column), (top, left) in zip(
            others.tolist(), sizes.tolist(), crops.tolist(), places.tolist(), strict=True
        ):
            fragment = self.resized[size][other, row : row + side, column : column + side]
            target = canvas[top : top + side, left : left + side]
            np.maximum(target, fragment, out=target)


class DigitsDataModule(BaseDataModule):
    """scikit-learn's 1,797 real digits in a fixed stratified split: 1,197 train, 300 val, 300 test.

    Items of `predict` are the test digits, named by their place in scikit-learn's collection.

    Args:
        batch_size: Images per process and step.
        image_size: Side of the images in pixels.
        augment: Turn, scale and shift training digits a little; worth it in long runs.
        num_workers: Processes that prepare images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    class_names = CLASS_NAMES
    training_options = frozenset({"augment"})

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 32,
        augment: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_range("data.image_size", image_size, Range(8))
        self.image_size = image_size
        self.augment = augment

    def image_transform(self, _: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return what makes a canvas of an image: bright ink on black."""
        return drawn_transform(DigitImages.mean, DigitImages.std, self.image_size)

    def source(self, split: Split) -> DigitImages:
        """Return the digits of a split."""
        return DigitImages(
            "test" if split == "predict" else split,
            self.image_size,
            augment=self.augment and split == "train",
            seed=global_seed(),
            named=split == "predict",
        )


class ClutteredDigitsDataModule(BaseDataModule):
    """The cluttered translated digits of Mnih et al. 2014 (arXiv 1406.6247) made of real digits.

    One whole digit of 18 to 24 pixels somewhere on a 64 pixel canvas among fragments of others.
    Training, validation and test images are made of disjoint digits, fragments included. Validation
    and test images are the same whatever the seed. Items of `predict` are the test images.

    Args:
        batch_size: Images per process and step.
        clutter: Number of 8x8 pixel fragments.
        train_images: Training images per epoch.
        eval_images: Validation images, and as many test images.
        fresh: Draw new training images in every epoch, without end; False repeats the same.
        num_workers: Processes that prepare images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    class_names = CLASS_NAMES
    training_options = frozenset({"train_images", "fresh"})

    def __init__(
        self,
        batch_size: int = 64,
        clutter: int = 8,
        train_images: int = 6400,
        eval_images: int = 900,
        fresh: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_range("data.clutter", clutter, AT_LEAST_0)
        check_range("data.train_images", train_images, AT_LEAST_1)
        check_range("data.eval_images", eval_images, AT_LEAST_1)
        self.clutter = clutter
        self.train_images = train_images
        self.eval_images = eval_images
        self.fresh = fresh

    def image_transform(self, _: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return what makes a canvas of an image: bright ink on black."""
        return drawn_transform(
            ClutteredDigitImages.mean, ClutteredDigitImages.std, ClutteredDigitImages.canvas_size
        )

    def source(self, split: Split) -> ClutteredDigitImages:
        """Return the images of a split."""
        train = split == "train"
        return ClutteredDigitImages(
            "test" if split == "predict" else split,
            self.train_images if train else self.eval_images,
            self.clutter,
            fresh=self.fresh and train,
            seed=global_seed() if train else 0,
            named=split == "predict",
        )
