"""Cityscapes: fine annotations, a map of label ids and one of instances for each image.

M. Cordts et al., The Cityscapes dataset for semantic urban scene understanding, CVPR 2016.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from lightning_overlock.convert.scenes import (
    IMAGES,
    OBJECTS,
    Collection,
    Part,
    Scene,
    Thing,
    refuse_nothing,
    size_of,
)
from lightning_overlock.data.label_maps import read_values
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import InputError, printable

# The label ids of the classes that count, in the order of the train ids.
CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip
THINGS = {number: name for number, name in CLASSES.items() if number >= 24}
KNOWN = range(-1, 34)
PARTS = ("train", "val", "test")
# An instance's value is its label id times this, and its number.
INSTANCES = 1000


def read(root: Path, to: str) -> Collection:
    """Return Cityscapes.

    Args:
        root: The folder of leftImg8bit and gtFine.
        to: "coco" reads the instances of the eight classes of things, "masks" the label ids.

    Raises:
        InputError: There are no images or no annotations.
    """
    kind = "instanceIds" if to == "coco" else "labelIds"
    parts = {}
    for name in PARTS:
        part = Part()
        for image in sorted((root / "leftImg8bit" / name).glob("*/*_leftImg8bit.*")):
            frame = image.name.partition("_leftImg8bit")[0]
            label_map = root / "gtFine" / name / image.parent.name / f"{frame}_gtFine_{kind}.png"
            if not label_map.is_file():
                part.leave_out(IMAGES, f"without {kind}", str(image))
            elif (size := size_of(part, image, str(image))) is not None:
                inside = f"{image.parent.name}/{image.name}"
                if to == "masks":
                    part.add(Scene(image, inside, size, [], label_map))
                elif (things := _instances(part, label_map, size)) is not None:
                    part.add(Scene(image, inside, size, things))
        # The test part's annotations are blank.
        if name != "test" and (part.scenes or part.left_out[IMAGES].total):
            parts[name] = part
    refuse_nothing(parts.values(), root, f"leftImg8bit/train/CITY/*.png and gtFine/…_{kind}.png")
    if to == "coco":
        return Collection(parts, list(THINGS.values()))
    return Collection(parts, list(CLASSES.values()), read_labels)


def _instances(part: Part, path: Path, size: tuple[int, int]) -> list[Thing] | None:
    """Return the objects of a map of instances; groups that nobody told apart are crowds."""
    try:
        values = read_values(path)
    except InputError:
        part.leave_out(IMAGES, "with instances that cannot be read", str(path))
        return None
    if values.shape != size:
        part.leave_out(IMAGES, "of another size than its instances", str(path))
        return None
    things = []
    for value in np.unique(values).tolist():
        label = value // INSTANCES if value >= INSTANCES else value
        if label not in THINGS:
            if value >= INSTANCES:
                part.leave_out(OBJECTS, "of a class that does not count", f"{path}, {value}")
            continue
        code = coco_mask.encode(np.asfortranarray(values == value, dtype=np.uint8))
        left, top, width, height = (float(side) for side in coco_mask.toBbox(code))
        shape: dict[str, Any] = {"size": list(size), "counts": code["counts"].decode()}
        box = (left, top, width, height)
        things.append(Thing(THINGS[label], box, shape, crowd=value < INSTANCES))
    return things


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return the train ids of a map of label ids, 255 for what does not count.

    Raises:
        CorruptImage: It cannot be read, or has values that are no label ids.
    """
    values = read_values(path)
    signed = np.where(values == 255, -1, values)  # the licence plate's -1, in 8 bits
    if not set(np.unique(signed).tolist()) <= set(KNOWN):
        raise CorruptImage(f"{printable(path)}: the value {values.max()} is no label id")
    table = np.full(len(KNOWN), 255, np.uint8)
    table[[number - KNOWN.start for number in CLASSES]] = np.arange(len(CLASSES))
    labels: NDArray[np.uint8] = table[signed - KNOWN.start]
    return labels
