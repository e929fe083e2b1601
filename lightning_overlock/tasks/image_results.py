"""Prediction for images in memory or in files, without a trainer."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.images import as_image
from lightning_overlock.errors import InputError
from lightning_overlock.ranges import AT_LEAST_1, check_range

# How a PIL image becomes the network's tensor (3, H, W).
ImageTransform = Callable[[Image.Image], Tensor]
AnyImage = str | Path | Image.Image | NDArray[Any]


def predict_images(
    task: Any, images: AnyImage | Iterable[AnyImage], batch_size: int = 8
) -> list[Any]:
    """Return what a task says about images, as `lightning predict` does with its files.

    It is a method of the tasks, which have `results_of` and `image_transform` for it.

    Args:
        task: The task.
        images: Paths, PIL images, or uint8 arrays (H, W) or (H, W, 3); several, or one.
        batch_size: Images that go through the network at a time.

    Returns:
        A list with one of `tasks.results` per image: plain values, no tensors.

    Raises:
        InputError: An image cannot be read, or nobody has said how an image becomes a tensor
            (`lightning_overlock.load` does).
    """
    check_range("batch_size", batch_size, AT_LEAST_1)
    given: list[AnyImage] = (
        [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else list(images)
    )
    transform = task.image_transform
    if transform is None:
        data: Any = getattr(task._trainer, "datamodule", None)
        if data is None:
            raise InputError(
                f"this {type(task).__name__} does not know how an image becomes a tensor\n"
                "expected lightning_overlock.load(RUN), or a function in task.image_transform"
            )
        transform = data.image_transform(task.data_config)
    task.load_initial_weights()
    training = task.training
    task.eval()
    results: list[Any] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(given), batch_size):
                part = enumerate(given[start : start + batch_size], start)
                tensors = [transform(as_image(image, place)) for place, image in part]
                results += task.results_of([tensor.to(task.device) for tensor in tensors])
    finally:
        task.train(training)
    return results
