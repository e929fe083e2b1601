"""Measures COCO's average precision by both libraries: `measure_average_precision.py [IMAGES]`.

Images of 640x480 with 7 objects and 100 detections each, of 80 classes, as COCO's validation images
have about; masks are ellipses in the boxes.
"""

import sys
import time

import numpy as np
from pycocotools import mask as rle

from lightning_overlock.metrics.coco import average_precision

HEIGHT, WIDTH, CLASSES, OBJECTS, DETECTIONS = 480, 640, 80, 7, 100


def ellipse(box):
    x, y, width, height = box
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    inside = ((columns - x) / width - 0.5) ** 2 + ((rows - y) / height - 0.5) ** 2 <= 0.25
    return rle.encode(np.asfortranarray(inside.astype(np.uint8)))


def entry(generator, image, near=None):
    corner = generator.uniform(0, 1, 2) * (WIDTH - 200, HEIGHT - 200)
    box = np.concatenate([corner, generator.uniform(8, 200, 2)])
    category = int(generator.integers(1, CLASSES + 1))
    if near is not None:  # a detection of this object
        box, category = near["bbox"] + generator.normal(0, 4, 4), near["category_id"]
    box[2:] = box[2:].clip(4)
    shape = {"segmentation": ellipse(box), "area": float(box[2] * box[3]), "iscrowd": 0}
    return {"image_id": image, "category_id": category, "bbox": box.tolist()} | shape


def main():
    count = int(sys.argv[1]) if sys.argv[1:] else 500
    generator = np.random.default_rng(0)
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, count + 1)]
    annotations, results = [], []
    for image in range(1, count + 1):
        objects = [entry(generator, image) for _ in range(OBJECTS)]
        annotations += objects
        for place in range(DETECTIONS):
            found = entry(generator, image, objects[place] if place < OBJECTS else None)
            results.append(found | {"score": float(generator.uniform())})
    for kind in ("bbox", "segm"):
        took, values = {}, {}
        for name in ("pycocotools", "faster_coco_eval"):
            begin = time.process_time()
            values[name] = average_precision(
                images, annotations, results, range(1, CLASSES + 1), kind, name
            )
            took[name] = time.process_time() - begin
        apart = [abs(a - b) for a, b in zip(*(v.values() for v in values.values()), strict=True)]
        assert max(apart) < 1e-12, values
        ratio = took["pycocotools"] / took["faster_coco_eval"]
        words = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
        print(f"{kind}: {words}, {ratio:.1f} times as fast", flush=True)


if __name__ == "__main__":
    main()
