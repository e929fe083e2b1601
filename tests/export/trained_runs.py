"""Runs of one batch, as `lightning fit` leaves them, for the tests of exports."""

import yaml
from shared import quiet_trainer

from lightning_overlock.data import (
    DigitsDataModule,
    DigitSceneDetectionDataModule,
    DigitSceneSegmentationDataModule,
)
from lightning_overlock.runs.recording import MetricsFile, RunConfig
from lightning_overlock.tasks import ClassificationTask, DetectionTask, SegmentationTask


def write_run(folder, task, data):
    """Train a task for one batch and leave its folder behind."""
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
    trainer = quiet_trainer(
        folder, max_steps=1, limit_val_batches=0, callbacks=[recorder, MetricsFile(folder)]
    )
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "checkpoints/last.ckpt")
    return folder


def classifier(folder, backbone, **arguments):
    data = DigitsDataModule(batch_size=2, num_workers=0)
    names = [str(digit) for digit in range(10)]
    return write_run(folder, ClassificationTask(names, backbone=backbone, **arguments), data)


def segmenter(folder, backbone, **arguments):
    data = DigitSceneSegmentationDataModule(batch_size=2, num_workers=0)
    task = SegmentationTask(
        data.class_names, backbone=backbone, decoder_width=8, auxiliary_width=8, **arguments
    )
    return write_run(folder, task, data)


def detector(folder, backbone, **arguments):
    data = DigitSceneDetectionDataModule(batch_size=2, num_workers=0)
    task = DetectionTask(
        data.class_names,
        backbone=backbone,
        min_size=[128],
        max_size=256,
        fpn_width=16,
        box_head_width=16,
        mask_head_width=8,
        proposals=40,
        **arguments,
    )
    return write_run(folder, task, data)
