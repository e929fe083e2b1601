"""Reading and checking a COCO json, so that nothing in it can stop a run that has begun."""

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.class_names import check_class_names
from lightning_overlock.data.coco_annotations import read_annotations
from lightning_overlock.data.coco_images import ImageEntry, read_images
from lightning_overlock.data.coco_objects import number, shown, whole
from lightning_overlock.data.images import MAX_PIXELS, some
from lightning_overlock.data.left_out import MAX_LEFT_OUT, Check, LeftOut
from lightning_overlock.errors import InputError

Purpose = Literal["train", "eval", "predict"]
Category = tuple[int, str]


class CocoFile(NamedTuple):
    """A COCO json, checked.

    Nothing here is a list of Python objects: those would be copied into every worker bit by bit, as
    each look at one changes its reference count.

    Attributes:
        folder: Where the images lie.
        categories: The categories' (id, name) in the file's order; label i is `categories[i - 1]`.
        ids: (N,) int64, the images' ids.
        names: (N,) bytes, the images' file names.
        sizes: (N, 2) int64, their heights and widths; 0 where the file is read to predict.
        has_objects: (N,) bool, whether an image has objects that are no crowds.
        has_masks: Whether the objects have a segmentation.
        content: The annotations of all images as JSON, one list after the other.
        offsets: (N + 1,) int64, where the images' lists begin and end.
        notes: What was left out and what was computed, a line each.
    """

    folder: str
    categories: list[Category]
    ids: NDArray[np.int64]
    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    has_objects: NDArray[np.bool_]
    has_masks: bool
    content: bytes
    offsets: NDArray[np.int64]
    notes: list[str]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of an image: id, image_id, category_id, and `clean_object`'s."""
        found: list[dict[str, Any]] = json.loads(
            self.content[self.offsets[index] : self.offsets[index + 1]]
        )
        return found


def read_coco(
    path: str | Path,
    folder: str | Path,
    purpose: Purpose = "eval",
    masks: bool | None = None,
    skip_invalid: bool = False,
    max_left_out: float = MAX_LEFT_OUT,
    max_pixels: int | None = MAX_PIXELS,
) -> CocoFile:
    """Read and check a COCO json, gzipped or not.

    Numbers may stand as text or as 64.0. Annotations are numbered anew where their ids are no
    numbers of their own, missing areas are those of the mask or the box, a missing box is that of
    the mask, missing sizes of images are read from their files. Sizes and boxes are those of the
    image as a viewer shows it, turned as its EXIF says.

    Args:
        path: The json.
        folder: Where its images lie.
        purpose: To train: every object must be a pixel high and wide. To predict: annotations and
            sizes do not matter.
        masks: Whether the objects' masks are wanted. Without them segmentations do not matter. None
            wants them if any object has one.
        skip_invalid: Leave invalid images, objects and parts of objects out and note how many.
        max_left_out: The largest share of the images, the boxes, or a class's boxes that may be.
        max_pixels: Most pixels of one image; None is no limit.

    Raises:
        InputError: The file is no COCO json, or its boxes are such as no image has. Or, unless
            skipped: an image is missing, there twice, of another size than the file says, or has
            the file of another image with other objects; an annotation is of an unknown image or
            category, or has no usable box or mask.
    """
    path, folder = Path(path), Path(folder)
    data = read_json(path)
    categories = read_categories(path, data)
    entries = _entries(path, data, "images")
    if purpose == "predict":
        annotations: list[Any] = []
    elif "annotations" in data:
        annotations = _entries(path, data, "annotations")
    else:
        raise InputError(f"{path}: no annotations\nexpected them in a json to train or evaluate on")
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder\nexpected the images of {path}")
    check = Check(str(path), skip_invalid, max_left_out)
    images = read_images(check, entries, folder, max_pixels, sized=purpose != "predict")
    if masks is None:
        masks = any(isinstance(a, dict) and a.get("segmentation") for a in annotations)
    image_ids = {whole(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    objects = read_annotations(
        check,
        annotations,
        images,
        {key for key in image_ids if key is not None},
        dict(categories),
        masks,
        purpose == "train",
    )
    if purpose != "predict":
        _leave_out_doubles(check, images, objects)
    found = [objects.get(image, []) for image in images]
    lists = [json.dumps(one, separators=(",", ":")).encode() for one in found]
    return CocoFile(
        folder=str(folder),
        categories=categories,
        ids=np.array(list(images), np.int64),
        names=np.array([os.fsencode(image.name) for image in images.values()]),
        sizes=np.array([image.size for image in images.values()], np.int64),
        has_objects=np.array([any(not a["iscrowd"] for a in one) for one in found]),
        has_masks=masks,
        content=b"".join(lists),
        offsets=np.cumsum([0, *(len(one) for one in lists)]),
        notes=check.notes,
    )


def _leave_out_doubles(
    check: Check, images: dict[int, ImageEntry], objects: dict[int, list[dict[str, Any]]]
) -> None:
    """Take out images of one file that have different objects; note those that have the same.

    Each of them would be trained on or evaluated with a part of what is to be seen.

    Raises:
        InputError: As `check` says for what is invalid.
    """
    of_file: dict[str, list[int]] = {}
    for key, image in images.items():
        of_file.setdefault(image.name, []).append(key)
    left_out, same, total = LeftOut("images"), 0, len(images)
    for name, keys in of_file.items():
        if len(keys) == 1:
            continue
        places = {
            tuple(
                sorted((a["category_id"], a["iscrowd"], *a["bbox"]) for a in objects.get(key, []))
            )
            for key in keys
        }
        if len(places) == 1:
            same += len(keys) - 1
            continue
        which = f"{shown(name)} of the images {some([str(key) for key in keys])}"
        left_out.add("whose file is that of another with other objects", which, len(keys))
        for key in keys:
            del images[key]
            objects.pop(key, None)
    check.settle(left_out, total, ", or all objects of a file given to one image")
    check.note(left_out, total)
    if same:
        check.notes.append(f"{same:,} images have the file and the objects of another")
    if not images:
        raise InputError(f"{check.source}: no usable images: {left_out.reasons()}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a json file holds, gzipped or not, in UTF-8, 16 or 32.

    Raises:
        InputError: It cannot be read, or is no JSON object.
    """
    try:
        content = path.read_bytes()
        data = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except (ValueError, RecursionError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: no intact JSON ({error})\nexpected a COCO json") from error
    except OSError as error:  # of a broken gzip file too, without an errno
        reason = error.strerror or f"no intact gzip file ({error})"
        raise InputError(f"{path}: {reason}\nexpected a COCO json") from error
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: a {type(data).__name__} where a COCO json has an object\n"
            "expected the keys images, annotations and categories"
        )
    return data


def _entries(path: Path, data: dict[str, Any], key: str) -> list[Any]:
    entries = data.get(key)
    if not isinstance(entries, list):
        found = f"{key} is {shown(entries)}" if key in data else f"no {key}"
        raise InputError(f"{path}: {found}\nexpected a COCO json, with a list of objects '{key}'")
    if not entries and key != "annotations":
        raise InputError(f"{path}: no {key}\nexpected at least one")
    return entries


def read_categories(path: Path, data: dict[str, Any]) -> list[Category]:
    """Return the categories' (id, name) in the order of the file.

    Raises:
        InputError: There are none, one has no id or no usable name, or two have the same.
    """
    categories: dict[int, str] = {}
    for entry in _entries(path, data, "categories"):
        entry = entry if isinstance(entry, dict) else {}
        found, name = whole(entry.get("id")), entry.get("name")
        if not isinstance(name, str) and number(name) is not None:
            name = str(name)  # digits and the like
        if found is None or not isinstance(name, str):
            raise InputError(
                f"{path}: a category has the id {shown(entry.get('id'))} and the name "
                f"{shown(entry.get('name'))}\nexpected a whole number and a name"
            )
        if found in categories:
            raise InputError(f"{path}: two categories have the id {found}\nexpected an id for each")
        categories[found] = name
    check_class_names(list(categories.values()), str(path))
    return list(categories.items())
