"""The annotations of a COCO json, cleaned, counted, and refused where no image could have them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.coco_images import ImageEntry
from lightning_overlock.data.coco_objects import (
    Computed,
    UnusableError,
    UnusableMaskError,
    box_of_numbers,
    clean_object,
    number,
    shown,
    whole,
)
from lightning_overlock.data.images import some
from lightning_overlock.data.left_out import Check, LeftOut, refuse_if_too_many
from lightning_overlock.errors import InputError

NO_MASK = ", or a segmentation for every object, or model.masks false"
# The largest share of the boxes that may be crowd regions, which are not trained on.
MOST_CROWDS = 0.5
BOX = "expected [x, y, width, height] in pixels, x and y of the upper left corner"


@dataclass
class _Found:
    """What is found while the annotations are read.

    Attributes:
        objects: The usable ones by their images.
        left_out: The unusable ones.
        crowds: The names of crowd regions that are not trained on.
        parts: Polygons left out of objects that have others.
        total_of_class: How many boxes each class has, by its name.
        left_out_of_class: Its unusable ones.
        computed: What was computed.
        lacks_masks: Whether it is for want of a mask that objects are unusable.
    """

    objects: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=lambda: LeftOut("boxes"))
    crowds: list[str] = field(default_factory=list)
    parts: LeftOut = field(default_factory=lambda: LeftOut("polygons"))
    total_of_class: Counter[str] = field(default_factory=Counter)
    left_out_of_class: dict[str, LeftOut] = field(default_factory=dict)
    computed: Computed = field(default_factory=Computed)
    lacks_masks: bool = False


def read_annotations(
    check: Check,
    annotations: list[Any],
    images: dict[int, ImageEntry],
    image_ids: set[int],
    categories: dict[int, str],
    masks: bool,
    train: bool,
) -> dict[int, list[dict[str, Any]]]:
    """Return the usable annotations by their images: id, image_id, category_id, bbox, area, ...

    Args:
        check: The check of the json.
        annotations: The json's annotations.
        images: The usable images.
        image_ids: The ids of all images in the json.
        categories: The categories' names by their ids.
        masks: Whether the objects need a mask.
        train: Whether they are trained on, so that a box must be a pixel wide and high.

    Raises:
        InputError: The boxes are such as no image has; or as `check` says for what is invalid.
    """
    _refuse_impossible_boxes(check.source, annotations, images)
    found = _Found()
    ids = _annotation_ids(check, annotations)
    for place, entry in enumerate(annotations):
        entry = entry if isinstance(entry, dict) else {}
        name = f"annotation {ids[place]}" if ids else f"annotations[{place}]"
        category = whole(entry.get("category_id"))
        class_name = categories.get(category, "") if category is not None else ""
        found.total_of_class[class_name] += 1
        try:
            image = _image_of(entry, images, image_ids)
            if category not in categories:
                raise UnusableError("of an unknown category", shown(entry.get("category_id")))
            size = images[image].size
            cleaned, bad_parts = clean_object(entry, size, masks, found.computed)
            if train:
                _refuse_untrainable(cleaned["bbox"], size)
        except UnusableError as error:
            found.lacks_masks |= isinstance(error, UnusableMaskError)
            example = f"{name}: {error.found}"
            found.left_out.add(error.reason, example)
            of_class = f"boxes of the class {shown(class_name)}"
            found.left_out_of_class.setdefault(class_name, LeftOut(of_class)).add(
                error.reason, example
            )
            continue
        for part in bad_parts:
            found.parts.add(part.reason, f"{name}: {part.found}")
        if train and cleaned["iscrowd"]:
            found.crowds.append(name)
        key = ids[place] if ids else place + 1
        found.objects.setdefault(image, []).append(
            {"id": key, "image_id": image, "category_id": category, **cleaned}
        )
    _settle(check, found)
    if annotations:
        _note_oddities(check, found, list(categories.values()))
    return found.objects


def _settle(check: Check, found: _Found) -> None:
    """Stop for what is invalid or too much, or note it."""
    hint = NO_MASK if found.lacks_masks else ""
    total = found.total_of_class.total()
    check.settle(found.left_out, total, hint)
    for name, left_out in found.left_out_of_class.items():
        if name:
            check.limit(left_out, found.total_of_class[name], hint)
    # Each part is one of an object's several.
    kept = sum(
        len(a["segmentation"])
        for some in found.objects.values()
        for a in some
        if isinstance(a.get("segmentation"), list)
    )
    check.settle(found.parts, kept + found.parts.total)
    check.note(found.parts, kept + found.parts.total)
    if found.crowds:
        crowds, count = LeftOut("boxes"), len(found.crowds)
        crowds.add("crowd regions, which are not trained on", found.crowds[0], count)
        # They are COCO's own, and some of them are no mistake.
        share = max(check.max_left_out, MOST_CROWDS)
        hint = ", or iscrowd 0 for single objects"
        refuse_if_too_many(check.source, crowds, total, share, hint)
        found.left_out.add(*crowds.first.popitem(), count)
    check.note(found.left_out, total)
    if str(found.computed):
        check.notes.append(f"computed from masks or boxes: {found.computed}")


def _note_oddities(check: Check, found: _Found, class_names: list[str]) -> None:
    """Note what may be meant and may be a mistake: objects that are there twice, empty classes."""
    objects = [entry for entries in found.objects.values() for entry in entries]
    places = {(a["image_id"], a["category_id"], a["iscrowd"], *a["bbox"]) for a in objects}
    if twice := len(objects) - len(places):
        check.notes.append(f"{twice:,} boxes have the image, class and place of another")
    if absent := [name for name in class_names if not found.total_of_class[name]]:
        what = "es" * (len(absent) > 1)
        check.notes.append(f"there is no object of the class{what} {some(absent)}")


def _annotation_ids(check: Check, annotations: list[Any]) -> list[int]:
    """Return the ids of the annotations, or [] where they are to be numbered anew."""
    found = [whole(entry.get("id")) if isinstance(entry, dict) else None for entry in annotations]
    ids = [key for key in found if key is not None]
    if len(ids) < len(annotations):
        reason = f"{len(annotations) - len(ids):,} have no number as id"
    elif len(set(ids)) < len(ids):
        reason = f"{len(ids) - len(set(ids)):,} have the id of another"
    else:
        return ids
    check.notes.append(f"annotations are numbered anew: {reason}")
    return []


def _image_of(entry: dict[str, Any], images: dict[int, ImageEntry], known: set[int]) -> int:
    image = whole(entry.get("image_id"))
    if image is None or image not in known:
        raise UnusableError("of an unknown image", shown(entry.get("image_id")))
    if image not in images:
        raise UnusableError("of an image left out", str(image))
    return image


def _refuse_untrainable(box: list[float], size: tuple[int, int]) -> None:
    """Raise for what is less than a pixel wide or high within the image."""
    left, top, width, height = box
    wide = min(left + width, size[1]) - max(left, 0)
    high = min(top + height, size[0]) - max(top, 0)
    if wide < 1 or high < 1:
        raise UnusableError("with a bbox smaller than a pixel", shown(box))


# Boxes that no image could have


def _refuse_impossible_boxes(
    source: str, annotations: list[Any], images: dict[int, ImageEntry]
) -> None:
    """Stop where the boxes as a whole are in other units or of another form.

    Raises:
        InputError: Most are smaller than a pixel, outside of their images, or beyond them; or they
            are the two corners [x1, y1, x2, y2].
    """
    boxes, sizes, meant = _numbers(annotations, images)
    if not len(boxes):
        return
    left, top, width, height = boxes.T
    high, wide = sizes.T

    def stop_if(bad: NDArray[np.bool_], what: str, remedy: str, share: float = 0.5) -> None:
        if bad.mean() > share:
            first = boxes[np.flatnonzero(bad)[0]].tolist()
            raise InputError(
                f"{source}: {int(bad.sum()):,} of {len(boxes):,} boxes {what}, for example "
                f"{first}\n{BOX}{remedy}"
            )

    stop_if(
        (width <= 1) & (height <= 1),
        "are no larger than a pixel, as in normalised coordinates",
        "; multiply by the image's width and height",
        share=0.1,  # a file put together of two may have both
    )
    # Corners are in order and within the image; read as sizes, many reach beyond it.
    corners = (width > left) & (height > top) & (width <= wide + 2) & (height <= high + 2)
    with np.errstate(over="ignore"):
        beyond = (left + width > 1.05 * wide + 2) | (top + height > 1.05 * high + 2)
    # An area may be like that of corners by chance, but not several.
    said = meant.sum() >= 3 and meant.mean() > 0.5
    if corners.mean() > 0.98 and (beyond.mean() > 0.05 or said):
        stop_if(corners, "are [x1, y1, x2, y2]", "; subtract the first corner from the second")
    outside = (left >= wide) | (top >= high) | (left + width <= 0) | (top + height <= 0)
    hint = "; were the images resized after they were annotated?"
    stop_if(outside, "lie outside of their images", hint)
    stop_if(beyond & ~outside, "reach far beyond their images", hint)


def _numbers(
    annotations: list[Any], images: dict[int, ImageEntry]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return boxes (N, 4) with an area, their images' sizes, and `_meant_as_corners` of each."""
    boxes, sizes = [], []
    meant: list[bool] = []
    for entry in annotations:
        box = box_of_numbers(entry.get("bbox")) if isinstance(entry, dict) else None
        if box is None or min(box[2:]) <= 0:
            continue
        key = whole(entry.get("image_id"))
        if key is not None and key in images:
            boxes.append(box)
            sizes.append(images[key].size)
            # A thousand tell enough.
            meant.append(len(meant) < 1000 and _meant_as_corners(box, entry))
    kept = min(len(meant), 1000)
    return (
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(sizes, np.float64).reshape(-1, 2),
        np.array(meant[:kept], np.bool_),
    )


def _meant_as_corners(box: list[int | float], entry: dict[str, Any]) -> bool:
    """Tell whether the area or the polygons say that the box is x1, y1, x2, y2."""
    left, top, width, height = map(float, box)
    if not (0 < left < width and 0 < top < height):
        return False
    try:
        points = np.array(entry.get("segmentation"), np.float64).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
    except (ValueError, TypeError, OverflowError):  # none, a run-length code, several polygons
        area = number(entry.get("area"))
        if area is None:
            return False
        as_corners, as_sizes = (width - left) * (height - top), width * height
        return abs(area - as_corners) <= 0.02 * as_corners < abs(area - as_sizes)
    near = np.abs([*(low - (left, top)), *(high - (width, height))]).max()
    return bool(near <= 1 < np.abs(high - (left + width, top + height)).max())
