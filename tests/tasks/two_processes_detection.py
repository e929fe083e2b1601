"""What test_detection_slow.py runs in two processes on CPU; results go to the folder given."""

import json
import sys
from pathlib import Path

import torch
from shared import quiet_trainer
from tasks.coco_layout import write_layout

from lightning_overlock.data import CocoDataModule
from lightning_overlock.tasks import DetectionTask


class Near(DetectionTask):
    """Finds what is there, moved by some pixels; in the images `nothing_in`, nothing."""

    nothing_in: frozenset[int] = frozenset()

    def validation_step(self, batch, batch_idx):
        self.targets = batch[1]
        super().validation_step(batch, batch_idx)

    def forward(self, images):
        return [self.found(*both) for both in zip(images, self.targets, strict=True)]

    def found(self, image, target):
        number = target["image_id"]
        some = [] if number in self.nothing_in else target["annotations"]
        boxes = torch.tensor([entry["bbox"] for entry in some], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += number / 100
        masks = torch.zeros(len(some), 1, *image.shape[1:])
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[0, top:bottom, left:right] = 1
        generator = torch.Generator().manual_seed(number)
        return {
            "boxes": boxes,
            "labels": torch.tensor([{3: 1, 17: 2}[entry["category_id"]] for entry in some]).long(),
            "scores": torch.rand(len(some), generator=generator),
            "masks": masks,
        }


def trainer(folder, processes, **arguments):
    distributed = {"strategy": "ddp_fork", "devices": 2} if processes == 2 else {}
    return quiet_trainer(
        folder,
        num_sanity_val_steps=0,
        **distributed,
        **arguments,
    )


def main(folder):
    root = write_layout(folder / "coco", train=8, val=5)
    names = ["box", "disc", "unicorn"]
    small = {
        "backbone": "test_overlock",
        "min_size": [64],
        "max_size": 96,
        "fpn_width": 16,
        "box_head_width": 32,
        "mask_head_width": 16,
        "anchor_scale": 4.0,
        "proposals": 30,
        "score_threshold": 0.0,
    }
    torch.manual_seed(0)
    task, near = DetectionTask(names, **small), Near(names, **small)
    for processes in (1, 2):
        place = folder / str(processes)
        place.mkdir()
        # Of five images in the file's order the second process has 200 and 100.
        for nothing_in in (frozenset(), frozenset({100, 200})):
            near.nothing_in = nothing_in
            data = CocoDataModule(str(root), batch_size=2, num_workers=0)
            (metrics,) = trainer(place, processes).validate(near, datamodule=data, verbose=False)
            (place / f"metrics{len(nothing_in)}.json").write_text(json.dumps(metrics))
        data = CocoDataModule(str(root), batch_size=2, num_workers=0)
        trainer(place, processes).predict(task, datamodule=data, return_predictions=False)
    # DDP raises in the second step if a parameter was left without a gradient.
    data = CocoDataModule(str(root), batch_size=1, num_workers=0, empty_images=True)
    fitting = trainer(folder, 2, max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    fitting.fit(task, datamodule=data)
    values = {name: value.item() for name, value in fitting.callback_metrics.items()}
    (folder / "fit.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
