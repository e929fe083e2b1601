"""What is between two formats: images with objects or label maps, and what was left out."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.images import image_suffixes
from lightning_overlock.data.left_out import LeftOut
from lightning_overlock.data.orientation import viewed_file
from lightning_overlock.errors import InputError, printable

IMAGES, OBJECTS = "images", "objects"
# Outlines are drawn and boxes counted in so small a part of a pixel; files round to it.
CLOSE = 1e-6


class Thing(NamedTuple):
    """An object of an image.

    Attributes:
        label: Its class.
        box: Left, top, width, height in pixels, inside the image.
        shape: Polygons [x1, y1, x2, y2, ...], or a run-length code of pycocotools; None: a box
            only.
        crowd: Several objects, or one that counts neither for nor against a detector.
    """

    label: str
    box: tuple[float, float, float, float]
    shape: list[list[float]] | dict[str, Any] | None = None
    crowd: bool = False


class Scene(NamedTuple):
    """An image with what is known of it.

    Attributes:
        image: Its file.
        name: What it is called in the result, a path relative to the folder of its part.
        size: Its (height, width).
        things: Its objects; those that are drawn over others come later.
        label_map: A file with the class of every pixel, for formats that have one.
    """

    image: Path
    name: str
    size: tuple[int, int]
    things: list[Thing]
    label_map: Path | None = None


# Makes labels (H, W) uint8, 255 for none, of a file.
ReadLabels = Callable[[Path], NDArray[np.uint8]]


class Part:
    """A part of a data set, as it is read.

    Attributes:
        scenes: What is used.
        found: How many images and objects there are, those left out included.
        left_out: Those left out.
    """

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self.found = {IMAGES: 0, OBJECTS: 0}
        self.left_out = {IMAGES: LeftOut(IMAGES), OBJECTS: LeftOut(OBJECTS)}

    def add(self, scene: Scene) -> None:
        """Take an image with its objects."""
        self.scenes.append(scene)
        self.found[IMAGES] += 1
        self.found[OBJECTS] += len(scene.things)

    def leave_out(self, what: str, reason: str, example: str) -> None:
        """Count an image or an object that is not taken.

        Args:
            what: `IMAGES` or `OBJECTS`.
            reason: What follows the number, see `LeftOut.add`.
            example: Which one it is.
        """
        self.found[what] += 1
        self.left_out[what].add(reason, example)


class Collection(NamedTuple):
    """A data set.

    Attributes:
        parts: Its parts by name: train, and val and test if it has them.
        class_names: The classes; for label maps, the class of each value.
        read_labels: Reads label maps, for formats that have some.
    """

    parts: dict[str, Part]
    class_names: list[str]
    read_labels: ReadLabels | None = None


def size_of(part: Part, image: Path | None, told: str) -> tuple[int, int] | None:
    """Return the (height, width) of an image as a viewer shows it; None counts it as left out.

    Args:
        part: Where it is counted.
        image: Its file; None if there is none.
        told: What names it where there is no file.
    """
    if image is None or not image.is_file():
        part.leave_out(IMAGES, "without an image file", told)
        return None
    try:
        width, height = viewed_file(image, None).size
    except InputError:
        part.leave_out(IMAGES, "that cannot be read", str(image))
        return None
    return height, width


def image_beside(folder: Path, stem: str) -> Path | None:
    """Return the image of a name without its suffix; None if there is none."""
    for suffix in (".jpg", ".png", ".jpeg", *sorted(image_suffixes())):
        for spelt in (suffix, suffix.upper()):
            if (path := folder / f"{stem}{spelt}").is_file():
                return path
    return None


def clipped(
    left: float, top: float, right: float, bottom: float, size: tuple[int, int]
) -> tuple[float, float, float, float] | str:
    """Return a box (left, top, width, height) inside the image, or why there is none."""
    if not all(np.isfinite([left, top, right, bottom])):
        return "with a box that is not of finite numbers"
    if right - left <= CLOSE or bottom - top <= CLOSE:
        return "with a box without an area"
    height, width = size
    left, right = max(left, 0.0), min(right, float(width))
    top, bottom = max(top, 0.0), min(bottom, float(height))
    if right - left <= CLOSE or bottom - top <= CLOSE:
        return "with a box outside the image"
    return left, top, right - left, bottom - top


def outlined(
    polygons: Sequence[Sequence[float]], size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], list[list[float]]] | str:
    """Return the box and the polygons of an object, cut at the image's edge, or why there are none.

    Cutting moves points to the nearest edge, which is exact for an edge that an outline leaves and
    enters again on the same side, and never puts a mask where there is no image. Points have three
    decimals, so that what is drawn and what is written are one outline.
    """
    height, width = size
    kept = []
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if len(points) < 3 or not np.isfinite(points).all():
            return "with an outline of fewer than three points"
        kept.append(points.clip(0, [width, height]))
    corners = np.concatenate(kept)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    box = clipped(left, top, right, bottom, size)
    if isinstance(box, str):
        return box.replace("a box", "an outline")
    return box, [points.flatten().round(3).tolist() for points in kept]


def refuse_nothing(found: Iterable[Part], root: Path, expected: str) -> None:
    """Stop where nothing was found, whatever the reasons.

    Raises:
        InputError: No part has an image.
    """
    parts = list(found)
    if any(part.scenes for part in parts):
        return
    counts = [part.left_out[IMAGES].reasons() for part in parts if part.left_out[IMAGES].total]
    raise InputError(
        f"--root {printable(root)}: found no annotated images{': ' * bool(counts)}"
        f"{', '.join(counts)}\nexpected {expected}"
    )


def cut_validation(collection: Collection, share: float, seed: int) -> Collection:
    """Return the collection with a validation part: its own, or a share of the training images."""
    train = collection.parts.get("train")
    if "val" in collection.parts or train is None or share == 0:
        return collection
    count = round(share * len(train.scenes))
    if not 0 < count < len(train.scenes):
        raise InputError(
            f"--cut_validation {share:g}: {count} of {len(train.scenes)} images would be the "
            "validation part.\nExpected a share that leaves some to both, or 0 for none."
        )
    cut = set(np.random.default_rng(seed).permutation(len(train.scenes))[:count].tolist())
    val, rest = Part(), Part()
    for place, scene in enumerate(train.scenes):
        (val if place in cut else rest).add(scene)
    for what, left_out in train.left_out.items():
        rest.left_out[what] = left_out
        rest.found[what] += left_out.total
    return collection._replace(parts={**collection.parts, "train": rest, "val": val})
