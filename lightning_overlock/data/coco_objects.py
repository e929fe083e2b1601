"""One object of a COCO json: its box, mask, area and crowd flag as pycocotools wants them."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# Boxes and polygons that reach further than so many image sides are mistakes; pycocotools walks
# along every pixel of an outline.
FAR = 10
LARGEST_WHOLE = 2**63


class UnusableError(Exception):
    """What makes an entry of the file unusable.

    Args:
        reason: What follows "3 annotations", for example "without a segmentation".
        found: What was found, for the message.
    """

    def __init__(self, reason: str, found: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.found = found


class UnusableMaskError(UnusableError):
    """What makes a mask unusable; without masks it does not matter."""


def shown(value: Any) -> str:
    """Return a value of a json for a message: in one line, not too long, printable anywhere."""
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return text.encode(errors="backslashreplace").decode()


def number(value: Any) -> int | float | None:
    """Return a finite number, also one that stands as text; None of anything else."""
    if type(value) is float and math.isfinite(value):  # a hundred thousand times
        return value
    if isinstance(value, str) and "_" not in value:
        try:
            value = float(value) if not value.strip().lstrip("+-").isdecimal() else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < LARGEST_WHOLE else None
    return value if math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """Return a whole number, also of another type as 64.0 and "64"; None of anything else."""
    if type(value) is int and abs(value) < LARGEST_WHOLE:  # as nearly all
        return value
    found = number(value)
    if isinstance(found, float) and not (found.is_integer() and abs(found) < LARGEST_WHOLE):
        return None
    return None if found is None else int(found)


class Computed:
    """Counts what was computed for objects because the file has it not, or not usable."""

    def __init__(self) -> None:
        self.areas = 0
        self.boxes = 0

    def __str__(self) -> str:
        counts = {"areas": self.areas, "boxes": self.boxes}
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def clean_object(
    entry: Mapping[str, Any],
    size: tuple[int, int],
    masks: bool,
    computed: Computed,
) -> tuple[dict[str, Any], list[UnusableError]]:
    """Return an object as pycocotools wants it, and its polygons that are left out.

    Args:
        entry: An annotation of the file.
        size: (height, width) of its image.
        masks: Whether the mask is wanted; without it, it serves to compute a missing box or area.
        computed: Counts what is computed.

    Returns:
        bbox [x, y, width, height], area, iscrowd (0 or 1) and with `masks` the segmentation.

    Raises:
        UnusableError: The object has no usable box or mask, or an unknown crowd flag.
    """
    crowd = _crowd(entry.get("iscrowd"))
    box = box_of_numbers(entry.get("bbox"))
    area = number(entry.get("area"))
    # pycocotools passes over what is larger than any image.
    if area is not None and not 0 < area <= max(math.prod(size), math.prod((box or [0])[2:])):
        area = None
    shape: Any = None
    bad_parts: list[UnusableError] = []
    if masks or area is None or box is None or min(box[2:]) <= 0:
        try:
            shape, bad_parts = clean_segmentation(entry.get("segmentation"), size)
            if box is None or not 0 < min(box[2:]) < 2:
                _refuse_less_than_a_pixel(shape)
        except UnusableMaskError:
            if masks:
                raise
            shape = None
    box = _usable_box(entry, box, shape, size, computed)
    if area is None:
        area = box[2] * box[3] if shape is None else float(coco_mask.area(encode(shape, *size)))
        # A mask so thin that it covers no pixel's centre.
        area = area or box[2] * box[3]
        computed.areas += 1
    cleaned = {"bbox": box, "area": area, "iscrowd": crowd}
    return {**cleaned, "segmentation": shape} if masks else cleaned, bad_parts


def _crowd(value: Any) -> int:
    """Return 0 or 1, also of a truth value or text; what is empty is 0."""
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        value = value.lower() == "true"
    crowd = whole(int(value) if isinstance(value, bool) else value or 0)
    if crowd not in {0, 1}:
        raise UnusableError("with an iscrowd other than 0 and 1", shown(value))
    return int(crowd)


def _refuse_less_than_a_pixel(shape: Any) -> None:
    """Raise for polygons in normalised coordinates."""
    if isinstance(shape, list) and max(map(_side, shape)) < 1:
        raise UnusableMaskError("with polygons smaller than a pixel", shown(shape[0]))


def box_of_numbers(value: Any) -> list[int | float] | None:
    """Return four numbers, or None."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [found for side in value if (found := number(side)) is not None]
    return numbers if len(numbers) == 4 else None


def _usable_box(
    entry: Mapping[str, Any],
    box: list[int | float] | None,
    shape: Any,
    size: tuple[int, int],
    computed: Computed,
) -> list[int | float]:
    """Return the box of the file, or that of the mask where the file's is none."""
    if shape is not None and (box is None or min(box[2:]) <= 0):
        computed.boxes += 1
        box = _box_of(shape, size)
    given = entry.get("bbox")
    if box is None:
        raise UnusableError("without a bbox [x, y, width, height] of numbers", shown(given))
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise UnusableError("with a bbox without an area", shown(given))
    if not (left < size[1] and top < size[0] and left + width > 0 and top + height > 0):
        problem = "with a bbox outside of the image"
    elif max(width, height, -left, -top) > FAR * max(size):
        problem = "with a bbox far larger than the image"
    else:
        return box
    raise UnusableError(problem, f"{shown(given)} in {size[1]} x {size[0]} pixels")


def _box_of(shape: Any, size: tuple[int, int]) -> list[int | float]:
    if isinstance(shape, dict):
        found: list[int | float] = coco_mask.toBbox(encode(shape, *size)).tolist()
        return found
    points = np.concatenate([np.reshape(part, (-1, 2)) for part in shape])
    left, top = points.min(axis=0).tolist()
    width, height = np.ptp(points, axis=0).tolist()
    return [left, top, width, height]


def clean_segmentation(value: Any, size: tuple[int, int]) -> tuple[Any, list[UnusableError]]:
    """Return polygons or a run-length code that pycocotools takes, and the parts left out.

    Args:
        value: A segmentation as in the file.
        size: (height, width) of the image.

    Raises:
        UnusableMaskError: There is none, or no part of it can be used.
    """
    if not value:
        raise UnusableMaskError("without a segmentation", shown(value))
    if isinstance(value, dict):
        return _clean_code(value, size), []
    if not isinstance(value, list):
        raise UnusableMaskError(
            "with a segmentation that is neither polygons nor RLE", shown(value)
        )
    if all(number(entry) is not None for entry in value) or all(map(_is_point, value)):
        value = [value]  # one polygon, not in a list
    parts: list[list[float]] = []
    bad: list[UnusableError] = []
    for part in value:
        try:
            parts.append(_clean_polygon(part, size))
        except UnusableMaskError as error:
            bad.append(error)
    if not parts:
        raise bad[0]
    return parts, bad


def _side(polygon: list[float]) -> float:
    """Return the longer side of a polygon's box."""
    across, down = polygon[0::2], polygon[1::2]
    return max(max(across) - min(across), max(down) - min(down))


def _clean_polygon(part: Any, size: tuple[int, int]) -> list[float]:
    """Return a polygon x, y, x, y, ...

    Raises:
        UnusableMaskError: It is none, or lies outside of the image.
    """
    values = _coordinates(part)
    if len(values) < 6 or len(values) % 2:
        raise UnusableMaskError(
            "with a polygon that is not x, y of three points or more", shown(part)
        )
    across, down = values[0::2], values[1::2]
    left, top, right, bottom = min(across), min(down), max(across), max(down)
    if left >= size[1] or top >= size[0] or right < 0 or bottom < 0:
        raise UnusableMaskError("with a polygon outside of the image", shown(part))
    if max(right, bottom, -left, -top) > FAR * max(size):
        raise UnusableMaskError("with a polygon that reaches far beyond the image", shown(part))
    if left == right and top == bottom:
        raise UnusableMaskError("with a polygon of one point", shown(part))
    return values


def _coordinates(part: Any) -> list[float]:
    """Return the numbers of a list, [] if it is none or has anything else in it."""
    if not isinstance(part, list):
        return []
    if all(map(_is_point, part)):
        part = [value for point in part for value in point]
    try:
        if math.isfinite(sum(part)):  # what is no number cannot be added
            return part
    except (TypeError, OverflowError):
        pass
    numbers = [found for value in part if (found := number(value)) is not None]
    return numbers if len(numbers) == len(part) else []


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _clean_code(code: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return a run-length code, compressed or not, that fills its image."""
    counts, given = code.get("counts"), code.get("size")
    if given is not None and (
        not isinstance(given, list) or [whole(side) for side in given] != list(size)
    ):
        raise UnusableMaskError(
            "with an RLE of another size than the image", f"{shown(given)}, not {list(size)}"
        )
    runs: list[int] = []
    if isinstance(counts, str):
        runs = run_lengths(counts)
    elif isinstance(counts, list):
        found = [whole(count) for count in counts]
        runs = [count for count in found if count is not None and count >= 0]
        runs = counts = runs if len(runs) == len(found) else []
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise UnusableMaskError(
            "with an RLE whose counts do not fill the image",
            f"{sum(runs):,} of {size[0] * size[1]:,} pixels",
        )
    if not sum(runs[1::2]):
        raise UnusableMaskError("with an RLE of an empty mask", shown(counts))
    return {"size": list(size), "counts": counts}


def run_lengths(code: str) -> list[int]:
    """Return the counts of a compressed run-length code, [] if it is broken.

    As in pycocotools' `maskApi.c`: five bits a character, the lowest first, a sixth that says
    whether more follow, and from the fourth count on the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            if len(counts) > 2:
                value += counts[-2]
            counts.append(value)
            value = shift = 0
    return [] if shift else counts


def encode(shape: Any, height: int, width: int) -> Any:
    """Return polygons or a run-length code, compressed or not, as pycocotools' own code."""
    if isinstance(shape, list):
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    if isinstance(shape["counts"], list):
        return coco_mask.frPyObjects(shape, height, width)
    return shape


def decode_mask(shape: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return polygons or a run-length code as a mask (H, W) of 0 and 1."""
    mask: NDArray[np.uint8] = coco_mask.decode(encode(shape, height, width))
    return mask
