"""Accuracy of a finished sweep's trained networks by difficulty, as Markdown tables.

python docs/by_difficulty.py runs/overlock_pathfinder-claims   by image size and length of path
python docs/by_difficulty.py runs/convneur_memory-claims       by distance of the pair in the raster
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import yaml

from lightning_overlock import load
from lightning_overlock.data import KeyValueGridDataModule, PathfinderDataModule
from lightning_overlock.data.drawn import BLOCK, DrawnImages
from lightning_overlock.data.loading import Key
from lightning_overlock.runs.layout import LAST
from lightning_overlock.tables import markdown
from lightning_overlock.tasks.base import BaseTask

# Side of the image in pixels, dashes of a path.
PATHS = [(48, 3), (48, 4), (48, 6), (64, 3), (64, 6), (96, 3), (96, 9)]
# Patches between the query and the nearest pair with its key, at least and at most.
DISTANCES = [(1, 2), (3, 5), (6, 10), (11, 63)]


@torch.inference_mode()
def right(task: BaseTask, images: DrawnImages) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are told right, (N,) bool, and their distance, zeros where none is."""
    found, distances = [], []
    for first in range(0, len(images), BLOCK):
        keys = [Key(0, index) for index in range(first, min(first + BLOCK, len(images)))]
        shown, labels = zip(*map(images.__getitem__, keys), strict=True)
        found.append(task(torch.stack(shown)).argmax(1).numpy() == np.array(labels))
        facts = images.block(keys[0]).facts
        distances.append(facts.get("distance", np.zeros(BLOCK, int))[: len(shown)])
    return np.concatenate(found), np.concatenate(distances)


def by_path(task: BaseTask) -> dict[str, float]:
    """Return top-1 in percent by image size and length."""
    tasks = {f"{s} px, {n} dashes": PathfinderDataModule(image_size=s, length=n) for s, n in PATHS}
    return {name: 100 * right(task, data.source("test"))[0].mean() for name, data in tasks.items()}


def by_distance(task: BaseTask, options: dict[str, object]) -> dict[str, float]:
    """Return top-1 in percent by distance."""
    data = KeyValueGridDataModule(**(options | {"eval_images": 4000}))
    good, distance = right(task, data.source("test"))
    return {
        f"{low} to {high}": 100 * good[(low <= distance) & (distance <= high)].mean()
        for low, high in DISTANCES
    }


def main(folder: Path) -> None:
    """Print the table of a sweep's folder."""
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in sorted(folder.glob("*-seed*/")):
        last = run / LAST
        if "=" in run.name or not last.is_file():
            continue
        options = yaml.safe_load((run / "config.yaml").read_text())["data"]
        task = load(last)
        name = re.sub(r"-seed\d+$", "", run.name)
        if options["class_path"].endswith("PathfinderDataModule"):
            rows[name].append(by_path(task))
        else:
            rows[name].append(by_distance(task, options["init_args"]))
    table = [
        {"row": name} | {key: spread([one[key] for one in found]) for key in found[0]}
        for name, found in rows.items()
    ]
    print(markdown(table))


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
