"""Errors of a classifier whose answers are known, and corruption errors by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_overlock.analysis.corruptions import CORRUPTIONS
from lightning_overlock.analysis.robustness import (
    CorruptionErrors,
    corruption_errors,
    corruption_rows,
    normalisation,
    plot_corruption_errors,
)
from lightning_overlock.data import DigitsDataModule, ImageFolderDataModule


class BrighterThan(nn.Module):
    """Finds class 1 where the image's mean, in units of [0, 1], is above a threshold."""

    def __init__(self, threshold, mean, std):
        super().__init__()
        self.threshold = threshold
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x):
        grey = (x * self.std + self.mean).mean((1, 2, 3))
        return torch.stack([torch.full_like(grey, self.threshold), grey], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("grey")
    for split in ("train", "val"):
        for name, value in (("dark", 50), ("light", 180)):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                image = np.full((40, 40, 3), value + number, np.uint8)
                Image.fromarray(image).save(root / split / name / f"{number}.png")
    return root


def test_errors_of_a_threshold_on_brightness(folder):
    data = ImageFolderDataModule(str(folder), batch_size=3, image_size=32, num_workers=0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    # Dark images are .2 bright: .1 more leaves them below .35, .2 more does not.
    model = BrighterThan(0.35, mean, std).train()
    found = corruption_errors(model, data, corruptions=["brightness", "pixelate"])
    assert found.images == 4
    assert found.clean == 0
    np.testing.assert_allclose(found.errors["brightness"], [0, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(found.errors["pixelate"], 0)
    assert model.training


def test_normalisation_is_that_of_the_data(folder):
    data = ImageFolderDataModule(str(folder), batch_size=2, image_size=32, num_workers=0)
    mean, std = normalisation(data.source("val"))
    np.testing.assert_allclose(mean, (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(std, (0.229, 0.224, 0.225), atol=1e-6)
    with pytest.raises(ValueError, match="give mean and std"):
        normalisation(object())


def test_every_corruption_runs_on_the_digits_and_repeats():
    data = DigitsDataModule(batch_size=2, image_size=32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    options = {"severities": [5], "limit": 3, "split": "test"}
    first, second = (corruption_errors(model, data, **options) for _ in range(2))
    assert first.images == 3
    assert list(first.errors) == list(CORRUPTIONS)
    for name, errors in first.errors.items():
        assert errors.shape == (1,)
        np.testing.assert_array_equal(errors, second.errors[name])


def test_a_wrong_name_is_told_before_any_work():
    data = DigitsDataModule(batch_size=2)
    with pytest.raises(ValueError, match="Did you mean 'snow'"):
        corruption_errors(nn.Identity(), data, corruptions=["snwo"])
    with pytest.raises(ValueError, match="expected 'val' or 'test'"):
        corruption_errors(nn.Identity(), data, split="train")
    with pytest.raises(ValueError, match="no images"):
        corruption_errors(nn.Identity(), data, corruptions=["snow"], limit=0)


def test_mean_corruption_error_by_hand():
    base = CorruptionErrors(
        100, 0.2, {"fog": np.array([0.4, 0.6]), "snow": np.array([0.5, 0.9])}, (1, 5)
    )
    own = CorruptionErrors(
        100, 0.1, {"fog": np.array([0.2, 0.4]), "snow": np.array([0.3, 0.4])}, (1, 5)
    )
    first, second = corruption_rows({"base": base, "own": own}, baseline="base")
    assert first["mCE %"] == pytest.approx(100)
    assert first["relative mCE %"] == pytest.approx(100)
    assert second["clean error %"] == pytest.approx(10)
    assert second["corrupted error %"] == pytest.approx(100 * 1.3 / 4)
    assert second["CE % fog"] == pytest.approx(60)  # .6 of 1.0
    assert second["CE % snow"] == pytest.approx(50)  # .7 of 1.4
    assert second["mCE %"] == pytest.approx(55)
    # Beyond the clean error: .4 of .6 and .5 of 1.0.
    assert second["relative mCE %"] == pytest.approx(100 * (0.4 / 0.6 + 0.5) / 2)
    assert "mCE %" not in corruption_rows({"own": own})[0]


def test_a_baseline_without_errors_gives_no_ratio():
    perfect = CorruptionErrors(10, 0.0, {"fog": np.zeros(1)}, (1,))
    (row,) = corruption_rows({"a": perfect}, baseline="a")
    assert row["mCE %"] is None
    assert row["CE % fog"] is None


def test_what_cannot_be_compared_is_refused():
    one = CorruptionErrors(10, 0.0, {"fog": np.ones(1)}, (1,))
    other = CorruptionErrors(12, 0.0, {"fog": np.ones(1)}, (1,))
    with pytest.raises(ValueError, match="no model 'c'"):
        corruption_rows({"a": one}, baseline="c")
    with pytest.raises(ValueError, match="on 10 images; b on 12 images"):
        corruption_rows({"a": one, "b": other})


def test_figure_draws():
    one = CorruptionErrors(10, 0.1, {"fog": np.array([0.2, 0.3]), "snow": np.ones(2)}, (1, 3))
    figure = plot_corruption_errors({"a": one, "b": one})
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [25, 100])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [10, 60, 65])
    figure.canvas.draw()
