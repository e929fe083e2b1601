"""Published figures: AlexNet's errors on ImageNet-C, and baselines on the other sets."""

import csv
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.analysis.corruptions import CORRUPTIONS

# Top-1 errors of AlexNet on ImageNet-C at severities 1 to 5: the spreadsheet that the repository
# hendrycks/robustness links to ("Calculating the mCE"). Their means are the errors that published
# evaluations divide by, such as ALEXNET_ERR in imagenet.py of google-research/augmix; a test
# compares. The order is that of `CORRUPTIONS`, which is the paper's.
_ALEXNET = (
    (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
)
ALEXNET_ERRORS: dict[str, NDArray[np.float64]] = {
    name: np.array(errors) for name, errors in zip(CORRUPTIONS, _ALEXNET, strict=True)
}
# On ImageNet's own validation images: torchvision's AlexNet, which the published code takes.
ALEXNET_CLEAN_ERROR = 0.43478

SOURCES = {
    "timm": "timm, results/results-*.csv at commit 4e5207c7, at 224 px (V2: matched frequency)",
    "hendrycks": "hendrycks/robustness, README",
}


@cache
def published_figures() -> list[dict[str, str]]:
    """Return published top-1 accuracies in percent; under "imagenet_c" the mCE.

    Returns:
        A dictionary per model with "model", "source" (a key of `SOURCES`) and a text for each
        benchmark by its option's name, "" where no figure is public there.
    """
    text = files("lightning_overlock.robustness").joinpath("published.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))
