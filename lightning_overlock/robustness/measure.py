"""Accuracy and calibration of a classifier on folders of images."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_overlock.analysis.robustness import corruption_error, mean_of_all
from lightning_overlock.data.loaders import Loader
from lightning_overlock.data.loading import EvalBatches, default_num_workers
from lightning_overlock.errors import InputError
from lightning_overlock.robustness.classifier import Classifier, Transform
from lightning_overlock.robustness.folders import LabelledFolder
from lightning_overlock.robustness.published import ALEXNET_ERRORS

# Of the confidence, as in Guo et al. (arXiv 1706.04599).
CALIBRATION_BINS = 15


class Figures(NamedTuple):
    """A classifier's figures on a set of images.

    Attributes:
        images: How many.
        top1: Accuracy, 0 to 1.
        ece: Expected calibration error, 0 to 1.
        nll: Mean negative log-likelihood of the label, in nats.
    """

    images: int
    top1: float
    ece: float
    nll: float


@dataclass
class Corrupted:
    """A classifier's figures on ImageNet-C.

    Attributes:
        figures: By corruption and severity.
    """

    figures: dict[str, dict[int, Figures]] = field(default_factory=dict)

    def errors(self, name: str) -> NDArray[np.float64]:
        """Return the top-1 errors of a corruption, by severity."""
        return np.array([1 - found.top1 for found in self.figures[name].values()])

    def corruption_errors(self) -> dict[str, float]:
        """Return each corruption's error over AlexNet's at the same severities, in percent."""
        found = {}
        for name, severities in self.figures.items():
            alexnet = ALEXNET_ERRORS[name][[severity - 1 for severity in severities]]
            error = corruption_error(self.errors(name), alexnet)
            assert error is not None  # AlexNet errs everywhere
            found[name] = error
        return found

    def mce(self) -> float:
        """Return the mean corruption error, in percent."""
        mean = mean_of_all(list(self.corruption_errors().values()))
        assert mean is not None
        return mean

    def error(self) -> float:
        """Return the mean top-1 error over corruptions, of each over severities, 0 to 1."""
        return float(np.mean([self.errors(name).mean() for name in self.figures]))

    def mean(self, what: str) -> float:
        """Return the mean of a figure, "ece" or "nll", weighted as `error`."""
        by_corruption = [
            np.mean([getattr(found, what) for found in severities.values()])
            for severities in self.figures.values()
        ]
        return float(np.mean(by_corruption))


class Reading(NamedTuple):
    """How images are read.

    Attributes:
        batch_size: How many at a time.
        num_workers: By how many processes; None chooses by the cores.
    """

    batch_size: int
    num_workers: int | None


def measure(
    classifier: Classifier, found: LabelledFolder, transform: Transform, reading: Reading
) -> Figures:
    """Evaluate a classifier on a folder; only the classes that are there compete.

    Args:
        classifier: The classifier.
        found: The images.
        transform: What makes the network's input of one.
        reading: How they are read.

    Raises:
        InputError: An image cannot be read, or logits are not finite.
    """
    source = found.source(transform)
    workers = reading.num_workers
    loader = Loader(
        source,
        EvalBatches(len(source), reading.batch_size),
        num_workers=default_num_workers(1) if workers is None else workers,
    )
    device = classifier.task.device
    count = len(found.classes)
    top1 = MulticlassAccuracy(count, average="micro").to(device)
    ece = MulticlassCalibrationError(count, n_bins=CALIBRATION_BINS, norm="l1").to(device)
    nll = MeanMetric().to(device)
    classes = torch.tensor(found.classes, device=device)
    try:
        with torch.inference_mode():
            for images, labels in loader:
                logits = classifier.task(images.to(device)).float()[:, classes]
                if not bool(logits.isfinite().all()):
                    raise InputError(
                        f"{classifier.name} returns logits that are not finite for images of "
                        f"{found.folder}\nexpected other weights, or the images to be looked at"
                    )
                labels = labels.to(device)
                top1.update(logits, labels)
                ece.update(logits.softmax(dim=1), labels)
                nll.update(F.cross_entropy(logits, labels, reduction="none"))
    finally:
        loader.close()
    return Figures(len(source), *(float(metric.compute()) for metric in (top1, ece, nll)))


def measure_corrupted(
    classifier: Classifier, found: dict[str, dict[int, LabelledFolder]], reading: Reading
) -> Corrupted:
    """Evaluate a classifier on ImageNet-C, see `measure`."""
    evaluate = partial(measure, classifier, transform=classifier.whole, reading=reading)
    result = Corrupted()
    for name, severities in found.items():
        result.figures[name] = {s: evaluate(folder) for s, folder in severities.items()}
        rank_zero_info(f"{classifier.name}: {name}, error {100 * result.errors(name).mean():.2f} %")
    return result
