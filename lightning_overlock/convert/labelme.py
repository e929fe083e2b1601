"""LabelMe (github.com/wkentaro/labelme): a json beside each image."""

import base64
import binascii
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from lightning_overlock.convert.scenes import (
    IMAGES,
    OBJECTS,
    Collection,
    Part,
    Scene,
    Thing,
    image_beside,
    outlined,
    refuse_nothing,
    size_of,
)

PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
# Corners of the polygon that stands for a circle.
CIRCLE = 64


def read(root: Path, _: str) -> Collection:
    """Return the images with a json of labelme below a folder.

    The first folder below the root says the part where it is called train, val, valid or test.

    Args:
        root: The folder.

    Raises:
        InputError: There is none.
    """
    parts: dict[str, Part] = {"train": Part()}
    for path in sorted(root.rglob("*.json")):
        inside = path.relative_to(root).parts
        name = PARTS.get(inside[0].lower(), "train") if len(inside) > 1 else "train"
        _read_json(parts.setdefault(name, Part()), root, path)
    if not parts["train"].scenes and len(parts) > 1:
        del parts["train"]
    refuse_nothing(parts.values(), root, "*.json of labelme beside their images")
    found = {thing.label for p in parts.values() for scene in p.scenes for thing in scene.things}
    return Collection(parts, sorted(found))


def _read_json(part: Part, root: Path, path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        part.leave_out(IMAGES, "with a json that is not intact", str(path))
        return
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        part.leave_out(IMAGES, "with a json that has no shapes", str(path))
        return
    given = str(content.get("imagePath") or "").replace("\\", "/")  # as Windows writes it
    image: Path | None = path.parent / given
    if image is None or not given or not image.is_file():
        image = image_beside(path.parent, path.stem)
    size = size_of(part, image, str(path))
    if size is None or image is None:
        return
    told = content.get("imageHeight"), content.get("imageWidth")
    if all(told) and told != size:
        part.leave_out(IMAGES, "of another size than the json says", str(image))
        return
    inside = os.path.relpath(path.parent / image.name, root)
    first, *rest = Path(inside).parts
    name = str(Path(*rest)) if rest and first.lower() in PARTS else inside
    part.add(Scene(image, name, size, _things(part, path, shapes, size)))


def _things(part: Part, path: Path, shapes: list[Any], size: tuple[int, int]) -> list[Thing]:
    """Return the objects; polygons of one label and group are one."""
    groups: dict[tuple[str, Any], list[list[float]]] = {}
    things: list[tuple[tuple[str, Any], Thing | None]] = []
    for number, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        label = str(shape.get("label") or "").strip()
        found = "without a label" if not label else _outline(shape, size)
        if isinstance(found, str):
            part.leave_out(OBJECTS, found, str(path))
        elif isinstance(found, dict):
            box = tuple(float(side) for side in coco_mask.toBbox(found))
            things.append((("", number), Thing(label, box, found)))  # type: ignore[arg-type]
        else:
            group = shape.get("group_id")
            key = (label, ("alone", number) if group is None else str(group))
            if key not in groups:
                groups[key] = []
                things.append((key, None))
            groups[key].append(found)
    made = []
    for key, thing in things:
        found_shape = thing or outlined(groups[key], size)
        if isinstance(found_shape, str):
            part.leave_out(OBJECTS, found_shape, str(path))
        elif isinstance(found_shape, Thing):
            made.append(found_shape)
        else:
            made.append(Thing(key[0], *found_shape))
    return made


def _outline(shape: dict[str, Any], size: tuple[int, int]) -> list[float] | dict[str, Any] | str:
    """Return a polygon, the run-length code of a mask, or why there is neither."""
    kind = str(shape.get("shape_type") or "polygon")
    try:
        points = np.array(shape.get("points"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        return "with points that are no pairs of numbers"
    if not np.isfinite(points).all():
        return "with points that are no pairs of numbers"
    if kind == "polygon":
        return points.flatten().tolist()
    if kind in {"rectangle", "circle", "mask"} and len(points) < 2:
        return f"that are a {kind} of fewer than two points"
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return [left, top, right, top, right, bottom, left, bottom]
    if kind == "circle":
        radius = math.dist(points[0], points[1])
        angles = np.arange(CIRCLE) * (2 * math.pi / CIRCLE)
        around = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return around.flatten().tolist()
    if kind == "mask":
        return _mask(shape, points, size)
    return f"that are a {kind}, without an area"


def _mask(
    shape: dict[str, Any], points: np.ndarray[Any, Any], size: tuple[int, int]
) -> dict[str, Any] | str:
    """Return the run-length code of a mask that is stored as an image at its place."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as image:
            values = np.asarray(image.convert("L")) > 0
    except (OSError, binascii.Error, TypeError, ValueError):
        return "that are a mask without an intact image"
    left, top = np.round(points.min(axis=0)).astype(int).tolist()
    whole = np.zeros(size, dtype=np.uint8, order="F")
    # What of it lies in the image
    rows, columns = np.nonzero(values)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    whole[rows[inside], columns[inside]] = 1
    if not whole.any():
        return "that are a mask without a pixel in the image"
    code = coco_mask.encode(whole)
    return {"size": list(size), "counts": code["counts"].decode()}
