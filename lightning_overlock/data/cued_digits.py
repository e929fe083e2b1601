"""Cued digits: several real digits on a canvas, and a cue whose shape says which one is meant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.digits import CLASS_NAMES, DigitSplit, digits_of, resize_digits
from lightning_overlock.data.images import drawn_transform
from lightning_overlock.data.loading import Key, global_seed
from lightning_overlock.ranges import AT_LEAST_1, Range, check_range

CANVAS = 64
DIGIT_SIZES = range(18, 23)
# A quadrant's digit lies in the square of this side in the canvas's corner, the cue between them.
CORNER = 26
CUE = CANVAS - 2 * CORNER


def _cues() -> NDArray[np.uint8]:
    """Return a shape per quadrant, (4, CUE, CUE) with ink 255; none of them points anywhere."""
    down, right = np.abs(np.indices((CUE, CUE)) - (CUE - 1) / 2)
    shapes = [
        np.maximum(down, right) < CUE / 2,  # a square
        np.minimum(down, right) < CUE / 8,  # a cross
        right < CUE / 8,  # an upright bar
        down < CUE / 8,  # a level bar
    ]
    return np.stack(shapes).astype(np.uint8) * 255


CUES = _cues()


class CuedScene(NamedTuple):
    """Digits in the four quadrants, in reading order, and which of them is meant.

    Attributes:
        numbers: Places of the digits in their split, None in an empty quadrant.
        sizes: Sides of their squares, 18 to 22 pixels.
        corners: First row and first column of those squares.
        quadrant: The one that the cue names.
    """

    numbers: list[int | None]
    sizes: list[int]
    corners: list[tuple[int, int]]
    quadrant: int


class CuedDigitImages:
    """Digits of different classes in the quadrants of a canvas of 64, a cue in the middle.

    The cue's shape names a quadrant: a square the upper left, a cross the upper right, an upright
    bar the lower left and a level bar the lower right; the digit there is the label. The cue is
    nowhere near it, and the digits alone say nothing about which of them is meant. The digit meant
    in image i is digit i modulo the number of digits; the others are of the same split.

    Args:
        split: Which digits.
        images: Number of images.
        digits: How many of the four quadrants hold a digit.
        fresh: Another canvas for the same digit in every epoch; otherwise epoch 0's for ever.
        seed: Seed of sizes, places, the quadrant and the other digits.
        named: Items are (image, name) instead of (image, label).
    """

    mean, std = 0.135, 0.273

    def __init__(
        self, split: DigitSplit, images: int, digits: int, fresh: bool, seed: int, named: bool
    ) -> None:
        collection = digits_of(split)
        self.split = split
        self.images = images
        self.digits = digits
        self.fresh = fresh
        self.seed = seed
        self.named = named
        self.labels = collection.labels.numpy()
        self.resized = {size: resize_digits(collection.images, size) for size in DIGIT_SIZES}

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        scene = self.scene(key)
        image = torch.from_numpy(self.draw(scene)).float().div(255)
        image = ((image - self.mean) / self.std).expand(3, -1, -1)
        if self.named:
            return image, f"cued {self.split} {key.index:05d}"
        return image, self.label(scene)

    def label(self, scene: CuedScene) -> int:
        """Return the class of the digit that is meant."""
        return int(self.labels[scene.numbers[scene.quadrant]])

    def scene(self, key: Key) -> CuedScene:
        """Draw what is on the canvas of a key."""
        random = np.random.default_rng((self.seed, key.epoch if self.fresh else 0, key.index))
        quadrants = random.permutation(4)[: self.digits].tolist()
        meant = key.index % len(self.labels)
        classes = random.permutation(np.delete(np.arange(10), self.labels[meant]))
        numbers: list[int | None] = [None] * 4
        numbers[quadrants[0]] = meant
        for quadrant, digit in zip(quadrants[1:], classes.tolist(), strict=False):
            numbers[quadrant] = int(random.choice(np.flatnonzero(self.labels == digit)))
        sizes = random.integers(DIGIT_SIZES.start, DIGIT_SIZES.stop, size=4).tolist()
        corners = []
        for quadrant, size in enumerate(sizes):
            down, right = random.integers(0, CORNER - size + 1, size=2).tolist()
            below, beside = divmod(quadrant, 2)
            corners.append((down + below * (CANVAS - CORNER), right + beside * (CANVAS - CORNER)))
        return CuedScene(numbers, sizes, corners, quadrants[0])

    def draw(self, scene: CuedScene) -> NDArray[np.uint8]:
        """Return the canvas (64, 64) of a scene, ink is 255."""
        canvas = np.zeros((CANVAS, CANVAS), np.uint8)
        for number, size, (top, left) in zip(
            scene.numbers, scene.sizes, scene.corners, strict=True
        ):
            if number is not None:
                canvas[top : top + size, left : left + size] = self.resized[size][number]
        canvas[CORNER:-CORNER, CORNER:-CORNER] = CUES[scene.quadrant]
        return canvas


class CuedDigitsDataModule(BaseDataModule):
    """Real digits in the quadrants of a 64 pixel canvas, and a cue that says which one is meant.

    The shape of the cue in the middle names the quadrant whose digit is the label. The whole image
    says where to look, and the detail there what it is; without the cue every digit on the canvas
    is as likely, so that a network that reads the digits alone is right once in `digits` times.
    Training, validation and test images are made of disjoint digits. Validation and test images are
    the same whatever the seed. Items of `predict` are the test images.

    Args:
        batch_size: Images per process and step.
        digits: How many of the four quadrants hold a digit, of as many classes.
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
        digits: int = 4,
        train_images: int = 6400,
        eval_images: int = 900,
        fresh: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_range("data.digits", digits, Range(2, 4))
        check_range("data.train_images", train_images, AT_LEAST_1)
        check_range("data.eval_images", eval_images, AT_LEAST_1)
        self.digits = digits
        self.train_images = train_images
        self.eval_images = eval_images
        self.fresh = fresh

    def image_transform(self, _: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return what makes a canvas of an image: bright ink on black."""
        return drawn_transform(CuedDigitImages.mean, CuedDigitImages.std, CANVAS)

    def source(self, split: Split) -> CuedDigitImages:
        """Return the images of a split."""
        train = split == "train"
        return CuedDigitImages(
            "test" if split == "predict" else split,
            self.train_images if train else self.eval_images,
            self.digits,
            fresh=self.fresh and train,
            seed=global_seed() if train else 0,
            named=split == "predict",
        )
