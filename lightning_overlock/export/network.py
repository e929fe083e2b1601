"""The network of a task as what leaves the package: RGB in [0, 1] in, named tensors out."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.data.normalisation import Normalisation
from lightning_overlock.errors import InputError
from lightning_overlock.export.detector import ExportedDetector
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.classification import ClassificationTask
from lightning_overlock.tasks.detection import DetectionTask
from lightning_overlock.tasks.segmentation import SegmentationTask


class ExportedClassifier(nn.Module):
    """A classifier that normalises its images itself.

    Args:
        model: The timm model.
        mean: (3, 1, 1), of the data's transform.
        std: (3, 1, 1).
    """

    outputs = ("logits",)
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype_of(model)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes)."""
        x = (images - self.mean) / self.std
        return self.model(x.to(self.dtype)).float()


class ExportedSegmenter(nn.Module):
    """A segmenter that answers at the size of its images.

    Args:
        model: The task's network.
    """

    outputs = ("logits", "labels")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype_of(model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes, H, W) and labels (B, H, W)."""
        logits = self.model(images.to(self.dtype)).float()
        logits = F.interpolate(logits, images.shape[-2:], mode="bilinear")
        return logits, logits.argmax(1)


ExportedNetwork = ExportedClassifier | ExportedSegmenter | ExportedDetector


def exported_network(task: BaseTask, dtype: torch.dtype) -> ExportedNetwork:
    """Return a task's network in its inference form, in evaluation mode.

    Args:
        task: What `lightning_overlock.load` returns. Its network is changed.
        dtype: Type that the weights are converted to.

    Raises:
        InputError: The task is none of this package, or is not computed in this type.
    """
    task.eval().requires_grad_(False)
    model: Any = reparameterize_model(task.model, inplace=True)
    # Of weights in channels-last order torch's file takes a part for the whole, and warns.
    model = model.to(dtype).to(memory_format=torch.contiguous_format)
    if isinstance(task, ClassificationTask):
        return ExportedClassifier(model, *normalisation(task)[:2]).eval()
    if isinstance(task, SegmentationTask):
        model.auxiliary = None
        return ExportedSegmenter(model).eval()
    if isinstance(task, DetectionTask):
        if dtype != torch.float32:
            raise InputError(
                f"--dtype {str(dtype).removeprefix('torch.')}: a detector's boxes need float32; "
                "half precision has not every pixel beyond 256 (bfloat16) or 2048.\n"
                "Expected --dtype float32."
            )
        return ExportedDetector(model).eval()
    raise InputError(
        f"{type(task).__name__} cannot be exported, expected a classification, segmentation or "
        "detection task"
    )


def normalisation(task: BaseTask) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return mean (3, 1, 1), std (3, 1, 1) and the size (H, W) of a classifier's images.

    They are read off what its data's transform makes of images.
    """
    transform: Callable[[Image.Image], Tensor] | None = task.image_transform
    if transform is None:
        raise InputError("this task has no transform of images, expected one that was loaded")
    side = task.data_config["input_size"][-1]
    height, width = transform(Image.new("RGB", (side, side))).shape[1:]
    found = Normalisation.of(transform)
    return found.mean.float(), found.std.float(), (height, width)


def dtype_of(network: nn.Module) -> torch.dtype:
    """Return the floating-point type of a network's weights."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())
