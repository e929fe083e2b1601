"""What a conversion leaves: a json and a folder of images a part, or images and label maps."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from lightning_overlock.convert.scenes import IMAGES, OBJECTS, Part, ReadLabels, Scene, Thing
from lightning_overlock.data.coco_objects import decode_mask
from lightning_overlock.errors import InputError

BACKGROUND = "background"
Placing = Literal["copy", "link"]


def write_coco(
    output: Path, name: str, part: Part, class_names: list[str], placing: Placing
) -> list[str]:
    """Write NAME.json and the images of a part below NAME/.

    Args:
        output: The folder of all parts.
        name: The part's name.
        part: It.
        class_names: The classes; their ids are their places from 1.
        placing: Whether images are copied or linked.

    Returns:
        What to know of the result, a line each.
    """
    ids = {label: number for number, label in enumerate(class_names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (scene, file_name) in enumerate(_named(part.scenes), 1):
        height, width = scene.size
        images.append({"id": number, "file_name": file_name, "width": width, "height": height})
        for thing in scene.things:
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": ids[thing.label],
                "bbox": [round(side, 3) for side in thing.box],
                "area": _area(thing, scene.size),
                "iscrowd": int(thing.crowd),
            }
            annotations.append(entry | _segmentation(thing))
        _place(scene.image, output / name / file_name, placing)
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (output / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    things = [thing for scene in part.scenes for thing in scene.things]
    bare = sum(thing.shape is None for thing in things)
    if 0 < bare < len(things):
        count = f"{bare:,} of {len(things):,}"
        return [f"{count} objects have a box only; train with --model.masks false"]
    return []


def _segmentation(thing: Thing) -> dict[str, Any]:
    return {} if thing.shape is None else {"segmentation": thing.shape}


def _area(thing: Thing, size: tuple[int, int]) -> float:
    if thing.shape is None:
        return round(thing.box[2] * thing.box[3], 3)
    if isinstance(thing.shape, dict):
        return float(coco_mask.area(thing.shape))
    return float(decode_mask(thing.shape, *size).sum()) or round(thing.box[2] * thing.box[3], 3)


def write_masks(
    output: Path,
    name: str,
    part: Part,
    class_names: list[str],
    placing: Placing,
    read: ReadLabels | None,
) -> list[str]:
    """Write the images of a part below images/NAME and their label maps below labels/NAME.

    Args:
        output: The folder of all parts.
        name: The part's name.
        part: It. What cannot be converted is added to what it has left out.
        class_names: The classes; with outlines, the first is where there are none.
        placing: Whether images are copied or linked.
        read: Reads the scenes' label maps; None draws their outlines, later ones over earlier ones.

    Returns:
        What to know of the result, a line each.
    """
    values = {label: number for number, label in enumerate(class_names)}
    covered = 0
    for scene, file_name in _named(part.scenes):
        if read is None:
            labels, hidden = _drawn(scene, values, part)
            covered += hidden
        else:
            found = _read(scene, read, part)
            if found is None:
                continue
            labels = found
        path = (output / "labels" / name / file_name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)
        _place(scene.image, output / "images" / name / file_name, placing)
    (output / "classes.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
    return [f"{covered:,} objects lie wholly under others"] if covered else []


def _read(scene: Scene, read: ReadLabels, part: Part) -> NDArray[np.uint8] | None:
    """Return the labels of a scene's map, None where they cannot be used."""
    assert scene.label_map is not None  # of formats that have them
    try:
        labels = read(scene.label_map)
    except InputError:
        part.left_out[IMAGES].add("with a label map that cannot be used", str(scene.label_map))
        return None
    if labels.shape != scene.size:
        part.left_out[IMAGES].add("of another size than the label map", str(scene.image))
        return None
    return labels


def _drawn(scene: Scene, values: dict[str, int], part: Part) -> tuple[NDArray[np.uint8], int]:
    """Return the label map of outlines, and how many objects nothing is seen of."""
    numbers = np.zeros(scene.size, dtype=np.int32)
    drawn = [0]
    for thing in scene.things:
        if thing.shape is None:
            part.left_out[OBJECTS].add("with a box only", str(scene.image))
            continue
        numbers[decode_mask(thing.shape, *scene.size) > 0] = len(drawn)
        drawn.append(values[thing.label])
    seen = np.setdiff1d(np.unique(numbers), [0])
    return np.array(drawn, dtype=np.uint8)[numbers], len(drawn) - 1 - len(seen)


def _named(scenes: list[Scene]) -> Iterator[tuple[Scene, str]]:
    """Yield the scenes with a name of their own each, also without their suffix."""
    taken: dict[str, int] = {}
    for scene in scenes:
        stem, suffix = os.path.splitext(_inside(scene.name))  # noqa: PTH122
        count = taken.get(stem, 0)
        taken[stem] = count + 1
        yield scene, f"{stem}{f'_{count}' if count else ''}{suffix}"


def _inside(name: str) -> str:
    """Return a name that leads out of no folder."""
    return str(Path(*(word for word in Path(name).parts if word not in {"..", "/"})))


def _place(image: Path, target: Path, placing: Placing) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if placing == "link":
        target.symlink_to(image.resolve())
    else:
        shutil.copyfile(image, target)
