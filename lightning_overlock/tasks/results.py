"""What `predict_images` returns: plain values, no tensors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Classification:
    """The class of an image.

    Attributes:
        class_name: The likeliest class.
        probabilities: (classes,) float32, in the order of the task's `class_names`.
    """

    class_name: str
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class DetectedObjects:
    """The objects in an image, those of the highest scores first.

    Attributes:
        class_names: The class of each object.
        labels: (N,) int64, its place in the task's `class_names`.
        scores: (N,) float32 in [0, 1].
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels of the image as it was given.
        masks: (N, H, W) bool, where its probability is above one half; None of a task without
            masks.
    """

    class_names: list[str]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel.

    Attributes:
        labels: (H, W) int64 of the image as it was given: places in the task's `class_names`.
    """

    labels: NDArray[np.int64]
