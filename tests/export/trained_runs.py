"""Runs of one batch, as `lightning fit` leaves them, for the tests of exports."""

import yaml
from shared import quiet_trainer

from lightning_overlock.data import (
    DigitScenesDetectionDataModule,
    DigitScenesSegmentationDataModule,
    DigitsDataModule,
)
from lightning_overlock.data.digit_scenes import CLASS_NAMES, SceneOptions
from lightning_overlock.runs.metrics_file import EPOCH, write_row
from lightning_overlock.runs.recording import RunConfig
from lightning_overlock.tasks import ClassificationTask, DetectionTask, SegmentationTask

SCENES = SceneOptions(canvas=64, train_images=2, eval_images=1, digit_sizes=(16, 30))


def write_run(folder, task, data):
    """Train a task for one batch and leave its folder behind."""
    folder.mkdir(parents=True)
    config = {
        "model": {
            "class_path": f"lightning_overlock.tasks.{type(task).__name__}",
            "init_args": {"backbone": task.backbone},
        },
        "data": {
            "class_path": f"lightning_overlock.data.{type(data).__name__}",
            "init_args": {"batch_size": 2},
        },
        "trainer": {"max_steps": 1},
        "seed_everything": 42,
    }
    recorder = RunConfig(yaml.safe_dump(config), folder)
    trainer = quiet_trainer(folder, max_steps=1, limit_val_batches=0, callbacks=[recorder])
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "checkpoints/last.ckpt")
    write_row(folder, {"stage": EPOCH, "epoch": 0, "step": 1, task.monitor: 0.25})
    return folder


def classifier(folder, backbone, **arguments):
    data = DigitsDataModule(batch_size=2, num_workers=0)
    names = [str(digit) for digit in range(10)]
    return write_run(folder, ClassificationTask(names, backbone=backbone, **arguments), data)


def segmenter(folder, backbone, **arguments):
    scenes = str(folder.parent / "segmentation")
    data = DigitScenesSegmentationDataModule(SCENES, scenes, batch_size=2, num_workers=0)
    task = SegmentationTask(
        ["background", *CLASS_NAMES],
        backbone=backbone,
        test_size=64,
        decoder_width=8,
        auxiliary_width=8,
        **arguments,
    )
    return write_run(folder, task, data)


def detector(folder, backbone, **arguments):
    scenes = str(folder.parent / "detection")
    data = DigitScenesDetectionDataModule(SCENES, scenes, batch_size=2, num_workers=0)
    task = DetectionTask(
        list(CLASS_NAMES),
        backbone=backbone,
        min_size=[64],
        max_size=128,
        fpn_width=16,
        box_head_width=16,
        mask_head_width=8,
        proposals=40,
        **arguments,
    )
    return write_run(folder, task, data)
