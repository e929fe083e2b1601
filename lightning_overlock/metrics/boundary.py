"""What torchmetrics lacks for label maps: IoU per class over a whole set, and three of boundaries.

All of them add up sums, so several processes that share out the images get the figures of one.
Label maps are (H, W) or (B, H, W) int64, prediction and target alike; pixels that the target
ignores count nowhere, whatever is predicted there.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import (  # type: ignore[attr-defined]  # scipy fills this module at import
    binary_erosion,
    distance_transform_edt,
)
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_overlock.errors import InputError

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]


def class_iou(confusion: Tensor) -> Tensor:
    """Return each class's intersection over union, NaN where neither map has the class.

    Args:
        confusion: (C, C) counts, target in rows, prediction in columns.

    Returns:
        (C,) float64 on the CPU.
    """
    counts = confusion.cpu().double()  # not every device has float64
    both = counts.diagonal()
    return both / (counts.sum(0) + counts.sum(1) - both)


class TrimapIoU(MulticlassConfusionMatrix):
    """Mean IoU over the pixels near the target's boundaries (Kohli et al., IJCV 2009).

    Counted are pixels at most `width` pixels (Euclidean, between pixel centres) away from a pixel
    with another label among its four neighbours. A transition to ignored pixels is no boundary.
    Classes that neither map has there are left out of the mean; without any the result is NaN.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels left out.
        width: Width of the band on either side of a boundary, in pixels.

    Raises:
        InputError: `width` is not positive.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, width: float = 5) -> None:
        if width <= 0:
            raise InputError(f"the trimap's width is {width}, expected a positive number of pixels")
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)
        self.width = width

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of the band."""
        height, width = target.shape[-2:]
        banded = target.clone().view(-1, height, width)
        for labels in banded:
            near = _distance_to(_transitions(_numpy(labels), self.ignore_index)) <= self.width
            labels[~torch.from_numpy(near).to(labels.device)] = self.ignore_index
        super().update(preds, banded.view_as(target))

    def compute(self) -> Tensor:
        """Return the mean over classes."""
        return class_iou(super().compute()).nanmean()


class _PerClassMean(Metric):
    """A score per class and image: the mean over a class's images, then over classes."""

    higher_is_better: bool
    total: Tensor
    count: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        zeros = torch.zeros(num_classes)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Score every class that is in the prediction or in the target of an image."""
        shape = (-1, *target.shape[-2:])
        for found, wanted in zip(preds.reshape(shape), target.reshape(shape), strict=True):
            prediction, truth = _numpy(found), _numpy(wanted)
            valid = truth != self.ignore_index
            for index in np.union1d(prediction[valid], truth[valid]).tolist():
                masks = (prediction == index) & valid, (truth == index) & valid
                self.total[index] += self.score(*masks, valid)
                self.count[index] += 1

    def score(self, prediction: Mask, truth: Mask, valid: Mask) -> float:
        """Return the score of one class of one image from its pixels; one mask may be empty."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the mean over the classes seen, NaN if there are none."""
        return (self.total / self.count).nanmean()


class BoundaryF1(_PerClassMean):
    """Boundary F1 (Csurka et al., BMVC 2013): do the class boundaries lie where they should?

    A class's boundary are its pixels with another class among their four neighbours; the image's
    edge and transitions to ignored pixels are none. Precision is the share of the predicted
    boundary that has the target's within the tolerance, recall the reverse. The score
    is 1 where both boundaries are empty (one class fills both maps), and 0 where one is.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels left out.
        tolerance: Share of the image's diagonal; the paper's .0075.
    """

    higher_is_better = True

    def __init__(
        self, num_classes: int, ignore_index: int = 255, tolerance: float = 0.0075, **kwargs: Any
    ) -> None:
        if tolerance <= 0:
            raise InputError(f"the boundary's tolerance is {tolerance}, expected a positive number")
        super().__init__(num_classes, ignore_index, **kwargs)
        self.tolerance = tolerance

    def score(self, prediction: Mask, truth: Mask, valid: Mask) -> float:
        """Return the F1 of one class of one image."""
        found, wanted = (
            mask & ~binary_erosion(mask | ~valid, border_value=1) for mask in (prediction, truth)
        )
        if not (found.any() and wanted.any()):
            return float(not (found.any() or wanted.any()))
        reach = self.tolerance * math.hypot(*truth.shape)
        precision = (_distance_to(wanted)[found] <= reach).mean()
        recall = (_distance_to(found)[wanted] <= reach).mean()
        return float(2 * precision * recall / max(precision + recall, 1e-12))


class HausdorffDistance(_PerClassMean):
    """Hausdorff distance between the outlines of a class in both maps, in pixels.

    The larger of both directions' percentile of the distances to the nearest pixel of the other
    outline. A class's outline are its pixels at its rim, the image's edge included. Where only one
    map has the class the distance is the image's diagonal, so that missing it does not pay.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels left out.
        percentile: 100 is the Hausdorff distance proper, one stray pixel decides it; 95 is usual.
    """

    higher_is_better = False

    def __init__(
        self, num_classes: int, ignore_index: int = 255, percentile: float = 95, **kwargs: Any
    ) -> None:
        if not 0 < percentile <= 100:
            raise InputError(f"the percentile is {percentile}, expected a number in (0, 100]")
        super().__init__(num_classes, ignore_index, **kwargs)
        self.percentile = percentile

    def score(self, prediction: Mask, truth: Mask, valid: Mask) -> float:  # noqa: ARG002
        """Return the distance of one class of one image."""
        if not (prediction.any() and truth.any()):
            return math.hypot(*truth.shape)
        found, wanted = (mask & ~binary_erosion(mask) for mask in (prediction, truth))
        directions = _distance_to(wanted)[found], _distance_to(found)[wanted]
        return float(max(np.percentile(each, self.percentile) for each in directions))


def _numpy(labels: Tensor) -> NDArray[np.int64]:
    found: NDArray[np.int64] = labels.cpu().numpy()
    return found


def _distance_to(pixels: Mask) -> Distances:
    """Return every pixel's distance to the nearest of `pixels`, infinite if there are none."""
    if not pixels.any():
        return np.full(pixels.shape, np.inf)
    distances: Distances = distance_transform_edt(~pixels)
    return distances


def _transitions(labels: NDArray[np.int64], ignore_index: int | None) -> Mask:
    """Return the pixels that have another label, none ignored, among their four neighbours."""
    found = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        first, second = labels[one], labels[other]
        differ = (first != second) & (first != ignore_index) & (second != ignore_index)
        found[one] |= differ
        found[other] |= differ
    return found
