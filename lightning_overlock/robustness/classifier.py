"""A trained classifier from a checkpoint, or one of timm's, with the transforms of its images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lightning_overlock.backbones.weights import classes_of
from lightning_overlock.data.image_folder import ImageFolderDataModule
from lightning_overlock.errors import InputError
from lightning_overlock.robustness.folders import IMAGENET_CLASSES, imagenet_ids
from lightning_overlock.runs.checkpoint import checkpoint_in, read_checkpoint
from lightning_overlock.runs.config import checkpoint_config
from lightning_overlock.runs.layout import folder_of
from lightning_overlock.tasks.classification import ClassificationTask
from lightning_overlock.tasks.load import data_of, task_of

Transform = Callable[[Image.Image], Tensor]


class Classifier(NamedTuple):
    """What is evaluated.

    Attributes:
        name: What its row is called.
        task: The task, in evaluation mode.
        transform: That of its validation images.
        whole: The same without a crop's margin, for images that were cropped before.
        run: The folder of its run; None if it has none.
    """

    name: str
    task: ClassificationTask
    transform: Transform
    whole: Transform
    run: Path | None

    @property
    def class_names(self) -> list[str]:
        """The names of its classes."""
        return self.task.class_names


def from_checkpoint(typed: str, device: torch.device) -> Classifier:
    """Return the classifier of a checkpoint.

    Args:
        typed: The checkpoint's file, or a run's folder.
        device: Where it goes.

    Raises:
        InputError: There is none, or it is no classifier's.
    """
    path = checkpoint_in(Path(typed).expanduser())
    checkpoint = read_checkpoint(path)
    task = task_of(checkpoint, path)
    if not isinstance(task, ClassificationTask):
        raise InputError(
            f"--ckpt_path {typed}: found a {type(task).__name__}, expected a classifier's "
            "checkpoint."
        )
    run = folder_of(path)
    data = data_of(checkpoint_config(checkpoint, str(path))["data"])
    name = run.name if run is not None else path.stem
    return _classifier(name, task, data, device, run)


def from_timm(backbone: str, weights: str | None, device: torch.device) -> Classifier:
    """Return one of timm's models with ImageNet's classes.

    Args:
        backbone: Its name.
        weights: A file of weights; None takes timm's own.
        device: Where it goes.

    Raises:
        InputError: There is no such model, no weights, or they are for other classes.
    """
    if weights is not None:
        classes = classes_of(Path(weights), backbone)
        if classes != IMAGENET_CLASSES:
            raise InputError(
                f"--model.init_from {weights}: found a head for {classes or 'no'} classes of "
                f"{backbone}, expected one for ImageNet's {IMAGENET_CLASSES}."
            )
    task = ClassificationTask(
        imagenet_ids(), backbone=backbone, pretrained=weights is None, init_from=weights,
        overview_weight=0.0,
    )  # fmt: skip
    classes = task.timm_model.pretrained_cfg["num_classes"]
    if weights is None and classes != IMAGENET_CLASSES:
        raise InputError(
            f"--model.backbone {backbone}: its weights are for {classes} classes, expected "
            f"ImageNet's {IMAGENET_CLASSES}."
        )
    task.load_initial_weights()
    return _classifier(backbone, task.eval(), ImageFolderDataModule(predict_dir=[]), device, None)


def _classifier(
    name: str, task: ClassificationTask, data: Any, device: torch.device, run: Path | None
) -> Classifier:
    transform = data.image_transform(task.data_config)
    if (options := getattr(data, "eval_options", None)) is not None:
        options["crop_pct"] = 1.0
    return Classifier(name, task.to(device), transform, data.image_transform(task.data_config), run)
