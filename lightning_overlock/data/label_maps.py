"""Label maps: image files that say the class of every pixel."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lightning_overlock.data.dense_transforms import IGNORE
from lightning_overlock.data.images import MAX_PIXELS, open_image, some
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import InputError, printable

Colour = tuple[int, int, int]
# Formats that are with loss or without.
MAY_LOSE = {"AVIF", "JPEG2000", "WEBP"}
# Modes of Pillow with one whole number per pixel.
ONE_VALUE = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class LabelCode:
    """Which value in a label map is which class.

    Attributes:
        num_classes: Number of classes.
        reduce_zero_label: 0 is no class and is ignored, 1 is the first class.
        values: The value of each class; colours are 65536 r + 256 g + b. None: values are classes.
        colours: Whether `values` are colours.
    """

    num_classes: int
    reduce_zero_label: bool = False
    values: tuple[int, ...] | None = None
    colours: bool = False

    def __post_init__(self) -> None:
        if self.values is None:
            if self.num_classes + self.reduce_zero_label > IGNORE:
                raise InputError(
                    f"found {self.num_classes} classes; {IGNORE} is the label that is ignored\n"
                    f"expected at most {IGNORE - self.reduce_zero_label}"
                )
            return
        if self.reduce_zero_label:
            raise InputError("data.label_values and data.reduce_zero_label: expected one of them")
        if len(self.values) != self.num_classes or len(set(self.values)) != len(self.values):
            raise InputError(
                f"data.label_values has {len(set(self.values))} values for {self.num_classes} "
                "classes\nexpected another value for each class, in the classes' order"
            )

    def decode(self, values: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the labels of values (H, W), classes or 255, and where a value means neither."""
        if self.values is None:
            first = int(self.reduce_zero_label)
            known = ((values >= 0) & (values < self.num_classes + first)) | (values == IGNORE)
            labels = values.astype(np.uint8) - np.uint8(first)  # 0 - 1 is 255
            labels[values == IGNORE] = IGNORE
            return labels, ~known
        order = np.argsort(self.values)
        ordered = np.array(self.values)[order]
        places = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
        found = ordered[places] == values
        known = found if self.colours else found | (values == IGNORE)
        return np.where(found, order[places], IGNORE).astype(np.uint8), ~known

    def encode(self, labels: NDArray[Any]) -> Image.Image:
        """Return classes (H, W) as a label map with the values that `decode` takes."""
        if self.values is None:
            return Image.fromarray((labels + int(self.reduce_zero_label)).astype(np.uint8))
        values = np.array(self.values)[labels]
        if self.colours:
            parts = [values >> 16, values >> 8 & 255, values & 255]
            return Image.fromarray(np.stack(parts, axis=-1).astype(np.uint8))
        return Image.fromarray(values.astype(np.uint8 if max(self.values) < 256 else np.uint16))

    @property
    def expected(self) -> str:
        """What the values should be, for a message."""
        if self.values is not None:
            return f"the {self.num_classes} values of data.label_values" + (
                "" if self.colours else f", or {IGNORE} to ignore"
            )
        last = self.num_classes - 1 + self.reduce_zero_label
        return (
            f"0 to {last} for {self.num_classes} classes (data.reduce_zero_label is "
            f"{str(self.reduce_zero_label).lower()}), or {IGNORE} to ignore"
        )


def label_code(
    num_classes: int, reduce_zero_label: bool, given: Sequence[int] | Sequence[Colour] | None
) -> LabelCode:
    """Return the code of `data.label_values`, which are numbers or colours.

    Raises:
        InputError: They do not fit the classes, or are neither.
    """
    if given is None:
        return LabelCode(num_classes, reduce_zero_label)
    numbers = [value for value in given if isinstance(value, int) and 0 <= value < 65536]
    if len(numbers) == len(given):
        return LabelCode(num_classes, reduce_zero_label, tuple(numbers))
    colours = [tuple(value) for value in given if not isinstance(value, int)]
    parts = [part for colour in colours for part in colour]
    if len(colours) < len(given) or len(parts) != 3 * len(given) or not set(parts) <= {*range(256)}:
        raise InputError(
            f"data.label_values is {list(given)}\nexpected numbers from 0 to 65535, or colours of "
            "three numbers from 0 to 255 each"
        )
    packed = tuple(int(_pack(np.array(colour))) for colour in colours)
    return LabelCode(num_classes, reduce_zero_label, packed, colours=True)


def _pack(colours: NDArray[Any]) -> NDArray[np.int32]:
    """Return colours (..., 3) as one number each."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def colour_of(value: int) -> Colour:
    """Return the colour that a number stands for in a `LabelCode`."""
    return value >> 16, value >> 8 & 255, value & 255


def read_values(
    path: str | Path, colours: bool = False, max_pixels: int | None = MAX_PIXELS
) -> NDArray[np.int32]:
    """Return the pixels of a label map, (H, W) int32: grey values or places in its palette.

    Args:
        path: The file.
        colours: Return colours instead, see `LabelCode`, those of a palette, too.
        max_pixels: Largest number of pixels; None is no limit.

    Raises:
        CorruptImage: The content is no intact image, was saved with loss, has several pages, or,
            unless asked for, colours.
        InputError: The file cannot be opened at all.
    """
    with open_image(path, max_pixels) as image:
        return values_of(image, printable(path), colours)


def values_of(image: Image.Image, name: str, colours: bool) -> NDArray[np.int32]:
    """Return the pixels of an open label map; see `read_values`."""
    if image.format in {"JPEG", "MPO"}:
        raise CorruptImage(
            f"{name}: a label map saved as JPEG, which changes values at edges\n"
            "expected a PNG made from the original labels"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise CorruptImage(f"{name}: a label map of several pages\nexpected one page per file")
    image_format = image.format
    with contextlib.suppress(Exception):  # turned as a viewer shows it, as its image is
        image = ImageOps.exif_transpose(image)
    if colours:
        return _pack(np.asarray(image.convert("RGB")))
    if image.mode in ONE_VALUE:
        return np.asarray(image, dtype=np.int32)
    if image.mode == "F":
        values = np.asarray(image)
        whole = np.trunc(values)
        if np.array_equal(values, whole) and np.abs(values).max() < 2**31:
            return values.astype(np.int32)
        raise CorruptImage(
            f"{name}: pixels with fractions, such as {values[values != whole][0]}\n"
            "expected whole numbers, a class each; resize label maps with nearest neighbours"
        )
    pixels = np.asarray(image.convert("RGBA"))
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    if (red == green).all() and (green == blue).all() and (alpha == 255).all():
        return red.astype(np.int32)
    found = [colour_of(int(value)) for value in np.unique(_pack(pixels[..., :3]))]
    clear = "" if (alpha == 255).all() else ", some of them transparent"
    if image_format in MAY_LOSE:
        clear += f" ({image_format} may change values)"
    raise CorruptImage(
        f"{name}: {len(found):,} colours ({some([str(colour) for colour in found])}){clear}, "
        "no class number per pixel\nexpected a grey or palette PNG of class numbers, or "
        "data.label_values '[[0, 0, 0], [255, 0, 0], …]', the colours in the classes' order"
    )


def palette_of(image: Image.Image) -> list[Colour]:
    """Return the colours of an image's palette, [] where it has none."""
    parts = (image.getpalette() or []) if image.mode == "P" else []
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def read_labels(
    path: str | Path, code: LabelCode, max_pixels: int | None = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Return a label map (H, W) uint8: classes from 0, and 255 where none counts.

    Raises:
        CorruptImage: A value is no class and not 255, or see `read_values`.
        InputError: See `read_values`.
    """
    values = read_values(path, code.colours, max_pixels)
    labels, unknown = code.decode(values)
    if unknown.any():
        value = int(values[unknown][0])
        raise CorruptImage(
            f"{printable(path)}: the value {colour_of(value) if code.colours else value} is no "
            f"class\nexpected {code.expected}"
        )
    return labels
