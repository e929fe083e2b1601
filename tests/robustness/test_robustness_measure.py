"""Accuracy, calibration and mCE against numpy, and AlexNet's errors against the published ones."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import AlexNet_Weights

from lightning_overlock.analysis.corruptions import CORRUPTIONS
from lightning_overlock.errors import InputError
from lightning_overlock.robustness.classifier import Classifier
from lightning_overlock.robustness.command import Images, Result, robustness_table
from lightning_overlock.robustness.folders import read_folder
from lightning_overlock.robustness.measure import Corrupted, Figures, Reading, measure
from lightning_overlock.robustness.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    published_figures,
)

# ALEXNET_ERR in imagenet.py of google-research/augmix: means over five severities.
PUBLISHED_MEANS = [
    0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572,
    0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500,
]  # fmt: skip


class Linear(nn.Module):
    """Logits that are linear in the image's mean colour."""

    device = torch.device("cpu")
    class_names = ("ant", "bee", "cow", "dog", "elk")

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, images):
        return images.mean((2, 3)) @ self.weights


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name in ("elk", "bee", "cow"):
        (root / name).mkdir()
        for number in range(7):
            colour = rng.integers(0, 256, 3, dtype=np.uint8)
            image = np.broadcast_to(colour, (6, 6, 3))
            Image.fromarray(np.ascontiguousarray(image)).save(root / name / f"{number}.png")
    return root


def by_numpy(folder, weights, names):
    """Top-1, ECE and NLL among the classes of the folder, written down from their definitions."""
    there = sorted((path.name for path in folder.iterdir()), key=names.index)
    columns = [names.index(name) for name in there]
    right, confidences, losses = [], [], []
    for label, name in enumerate(there):
        for path in sorted((folder / name).iterdir()):
            colour = np.asarray(Image.open(path), np.float64).mean((0, 1)) / 255
            logits = (colour @ weights)[columns]
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            right.append(shares.argmax() == label)
            confidences.append(shares.max())
            losses.append(-np.log(shares[label]))
    right, confidences = np.array(right), np.array(confidences)
    ece = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    return right.mean(), ece, np.mean(losses)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_figures_are_those_of_numpy(folder, batch_size):
    weights = np.random.default_rng(1).normal(scale=4, size=(3, 5))
    weights[:, 0] += 100  # a class that is not there must not compete
    task = Linear(weights)
    classifier = Classifier("linear", task, to_tensor, to_tensor, None)
    found = read_folder("--data.imagenet_r", folder, task.class_names, 0.1)
    figures = measure(classifier, found, to_tensor, Reading(batch_size, 0))
    top1, ece, nll = by_numpy(folder, weights, list(task.class_names))
    assert 0 < top1 < 1
    assert figures.images == 21
    np.testing.assert_allclose([figures.top1, figures.ece, figures.nll], [top1, ece, nll], 1e-5)


def test_logits_that_are_no_numbers_are_refused(folder):
    task = Linear(np.full((3, 5), np.nan))
    classifier = Classifier("broken", task, to_tensor, to_tensor, None)
    found = read_folder("--data.imagenet_r", folder, task.class_names, 0.1)
    with pytest.raises(InputError, match="broken returns logits that are not finite"):
        measure(classifier, found, to_tensor, Reading(4, 0))


def test_alexnets_errors_have_the_published_means():
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)
    means = [float(errors.mean()) for errors in ALEXNET_ERRORS.values()]
    np.testing.assert_allclose(means, PUBLISHED_MEANS, atol=1e-6)
    accuracy = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert pytest.approx(1 - accuracy / 100) == ALEXNET_CLEAN_ERROR


def corrupted(errors):
    """ImageNet-C's figures from errors {corruption: {severity: error}}."""
    return Corrupted(
        {
            name: {s: Figures(50, 1 - e, 0.1 * s, 2.0) for s, e in severities.items()}
            for name, severities in errors.items()
        }
    )


def test_mce_of_the_whole_set_is_the_published_normalisation():
    rng = np.random.default_rng(2)
    errors = {n: dict(zip(range(1, 6), rng.random(5), strict=True)) for n in CORRUPTIONS}
    found = corrupted(errors)
    expected = [
        100 * np.mean(list(errors[name].values())) / mean
        for name, mean in zip(CORRUPTIONS, PUBLISHED_MEANS, strict=True)
    ]
    np.testing.assert_allclose(list(found.corruption_errors().values()), expected, rtol=1e-5)
    assert found.mce() == pytest.approx(np.mean(expected), rel=1e-5)


def test_mce_of_a_part_is_relative_to_the_same_severities():
    found = corrupted({"fog": {2: 0.5, 4: 0.6}, "snow": {1: 0.2}})
    fog, snow = 100 * 1.1 / (0.7605 + 0.8726), 100 * 0.2 / 0.71726
    assert found.corruption_errors() == pytest.approx({"fog": fog, "snow": snow})
    assert found.mce() == pytest.approx((fog + snow) / 2)
    assert found.error() == pytest.approx((0.55 + 0.2) / 2)
    assert found.mean("ece") == pytest.approx((0.3 + 0.1) / 2)


def test_alexnet_itself_has_100_percent():
    errors = {n: dict(zip(range(1, 6), e.tolist(), strict=True)) for n, e in ALEXNET_ERRORS.items()}
    found = corrupted(errors)
    assert found.mce() == pytest.approx(100)
    clean = Figures(50, 1 - ALEXNET_CLEAN_ERROR, 0.0, 1.0)
    table = robustness_table(
        [Result("alexnet", {"imagenet": clean}, found)], [Images({}, {})], True
    )
    assert table.records[0]["C: relative mCE (%)"] == pytest.approx(100)
    (resnet,) = [r for r in table.records if r["from"] == "hendrycks"]
    assert resnet["C: mCE (%)"] == 76.7


def test_models_that_saw_other_images_are_told_apart(folder):
    found = read_folder("--data.imagenet_r", folder, Linear.class_names, 0.1)
    fewer = found._replace(classes=found.classes[:2])
    results = [Result(name, {"imagenet_r": Figures(21, 0.5, 0.1, 1.0)}, None) for name in "ab"]
    part = {"fog": {1: found, 2: found}}
    same = robustness_table(results, [Images({"imagenet_r": found}, part)] * 2, True)
    assert same.notes[0] == "R: 21 images of 3 classes, and only these compete."
    assert "it is not the published mCE" in same.notes[1]
    images = [Images({"imagenet_r": one}, {}) for one in (found, fewer)]
    other = robustness_table(results, images, True)
    assert [note[:22] for note in other.notes[:2]] == [
        "a, R: 21 images of 3 c",
        "b, R: 21 images of 2 c",
    ]


def test_published_figures_are_whole():
    rows = published_figures()
    assert len({row["model"] for row in rows}) == len(rows) > 10
    for row in rows:
        names = [name for name in row if name.startswith("imagenet")]
        assert all(0 < float(row[name]) < 100 for name in names if row[name])
        assert sum(bool(row[name]) for name in names) >= 2


def test_a_table_reads_back_as_csv():
    figures = Figures(10, 0.5, 0.25, 1.5)
    result = Result("ours", {"imagenet_a": figures}, corrupted({"fog": {1: 0.5}}))
    table = robustness_table([result], [Images({}, {})], True)
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert rows[0]["A: top-1 (%)"] == "50.0"
    assert float(rows[0]["C: CE fog (%)"]) == pytest.approx(100 * 0.5 / 0.67474)
    assert {row["from"] for row in rows} == {"measured", "timm", "hendrycks"}
    assert "50.00" in table.markdown()
    assert "C: CE fog" not in table.markdown()
