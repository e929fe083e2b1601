"""Draws docs/pictures/TASK.png, eight images of each drawn task: python docs/task_pictures.py."""

from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from lightning_overlock.data import (
    CuedClutterDataModule,
    KeyValueGridDataModule,
    PathfinderDataModule,
)
from lightning_overlock.data.loading import Key

TASKS = {
    "cued_clutter": CuedClutterDataModule(digits=4, debris=2, votes=7),
    "pathfinder": PathfinderDataModule(length=6),
    "key_value_grid": KeyValueGridDataModule(
        grid=8, keys=6, pairs=3, colours=3, repeats=18, copies=8
    ),
}

if __name__ == "__main__":
    folder = Path(__file__).parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name, data in TASKS.items():
        canvases = data.source("train").block(Key(0, 0)).canvases[:8]
        images = torch.from_numpy(canvases).expand(-1, 3, -1, -1) / 255
        shown = make_grid(images, nrow=8, padding=1, pad_value=0.5)
        larger = shown.repeat_interleave(2, 1).repeat_interleave(2, 2)
        save_image(larger, folder / f"{name}.png")
