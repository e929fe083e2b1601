"""Writes a few images of shapes in the layout of COCO 2017, for the tests of detection."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

# With gaps, and a class that never occurs, as files of people's own have them.
CATEGORIES = [
    {"id": 3, "name": "box", "supercategory": "shape"},
    {"id": 17, "name": "disc", "supercategory": "shape"},
    {"id": 90, "name": "unicorn", "supercategory": "animal"},
]
COLORS = {3: (230, 60, 40), 17: (40, 90, 230)}


def compressed(mask):
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(mask):
    """Return COCO's other run-length code, which crowds have: counts as numbers."""
    flat = mask.ravel(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    starts = np.concatenate([[0], edges]) if len(flat) else edges
    counts = np.diff(np.concatenate([starts, [len(flat)]])).tolist()
    if counts[-1] == 0:
        counts.pop()
    return {"size": list(mask.shape), "counts": counts}


def shape_mask(category, box, size):
    x, y, w, h = box
    rows, columns = np.mgrid[: size[0], : size[1]]
    if category == 3:
        return (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)
    across = (columns + 0.5 - x - w / 2) / (w / 2)
    down = (rows + 0.5 - y - h / 2) / (h / 2)
    return across**2 + down**2 <= 1


def write_split(root, split, count, seed):
    random = np.random.default_rng(seed)
    folder = Path(root) / f"{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        size = (96, 128) if index % 2 else (128, 96)
        pixels = random.integers(90, 150, (*size, 3), dtype=np.uint8)
        image_id = 100 * (count - index)  # not in the order of the file
        name = f"{image_id:012d}.png"
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        # The last image has no annotation.
        for category in (3, 17) if index < count - 1 else ():
            w, h = random.integers(24, 48, 2).tolist()
            # One above the other, so that none hides the other.
            x = int(random.integers(0, size[1] - w))
            y = int(random.integers(0, size[0] // 2 - h + 1)) + (category == 17) * size[0] // 2
            mask = shape_mask(category, (x, y, w, h), size)
            crowd = split == "val" and index == 1 and category == 17
            code = uncompressed(mask) if crowd else compressed(mask)
            if category == 3:
                code = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            pixels[mask] = COLORS[category]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": int(mask.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": code,
                }
            )
        Image.fromarray(pixels).save(folder / name)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    path = Path(root) / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_layout(root, train=6, val=4):
    """Write `train` and `val` images, each with a box and a disc, the last with nothing.

    In the second validation image the disc is a crowd region.
    """
    write_split(root, "train", train, seed=0)
    write_split(root, "val", val, seed=1)
    return Path(root)
