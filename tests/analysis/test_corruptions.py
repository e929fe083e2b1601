"""The fifteen corruptions: what all share, their order, and those with a closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from lightning_overlock.analysis.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    plot_corruptions,
)


@pytest.fixture(scope="module")
def photo():
    photo = Image.fromarray(load_sample_image("china.jpg")).crop((100, 50, 470, 420))
    return np.asarray(photo.resize((224, 224)))


def test_there_are_the_papers_fifteen():
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(8, 8), (33, 50), (64, 40)])
def test_shape_type_and_input_stay_and_a_seed_repeats(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    before = image.copy()
    for severity in (1, 5):
        found = corrupt(image, name, severity, seed=7)
        assert found.shape == image.shape
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, corrupt(image, name, severity, seed=7))
    np.testing.assert_array_equal(image, before)


RANDOM = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_another_seed_changes_what_is_random(name):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    same = np.array_equal(corrupt(image, name, 3, seed=0), corrupt(image, name, 3, seed=1))
    assert same is (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_lies_further_from_the_clean_image(name, photo):
    if name in ("frost", "fog"):
        # They also darken the image that they lie on: what is left of it counts.
        found = [corrupt(photo, name, severity) for severity in SEVERITIES]
        steps = [1 - np.corrcoef(x.ravel(), photo.ravel())[0, 1] for x in found]
    else:
        steps = [
            np.abs(corrupt(photo, name, severity).astype(float) - photo).mean()
            for severity in SEVERITIES
        ]
    assert steps[0] > 0
    if name == "elastic_transform":  # large regions at 1 and 2; small ones from 3 on, see below
        steps = steps[:2]
    assert np.all(np.diff(steps) > 0), steps


def test_small_elastic_displacements_have_the_papers_ratios():
    ramp = np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    rows, columns = np.mgrid[20:204, 20:204]
    plane = np.stack([rows, columns, np.ones_like(rows)], -1).reshape(-1, 3)
    found = []
    for severity in (3, 4, 5):
        values = corrupt(ramp, "elastic_transform", severity)[20:204, 20:204, 0].ravel()
        # What is left of a ramp after the affine part is the displacement along it, and rounding.
        left = values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
        found.append(np.sqrt(left.var() - 1 / 12))
    np.testing.assert_allclose(np.array(found) / found[0], [1, 0.07 / 0.05, 0.12 / 0.05], rtol=0.03)


def test_brightness_and_contrast_by_hand():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    np.testing.assert_array_equal(corrupt(image, "brightness", 2)[1], 51)
    np.testing.assert_array_equal(corrupt(image, "brightness", 2)[0], 251)
    np.testing.assert_array_equal(corrupt(image, "contrast", 1)[:, 0, 0], [140, 60])


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "pixelate", "contrast"]
)
@settings(deadline=None, max_examples=10)
@given(value=st.integers(0, 255), severity=st.sampled_from(SEVERITIES))
def test_an_even_image_stays_even_under_blur(name, value, severity):
    image = np.full((24, 31, 3), value, np.uint8)
    np.testing.assert_allclose(corrupt(image, name, severity).astype(int), value, atol=1)


def test_noise_has_the_papers_strength():
    image = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(image, "gaussian_noise", 1) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(image, "shot_noise", 1) / 255
    assert shot.var() == pytest.approx(128 / 255 / 60, rel=0.05)
    hit = corrupt(image, "impulse_noise", 5) != 128
    assert hit.mean() == pytest.approx(0.27, abs=0.01)


def test_a_point_out_of_focus_becomes_a_disk():
    image = np.zeros((225, 225, 3), np.uint8)
    image[112, 112] = 255
    spread = corrupt(image, "defocus_blur", 5)[..., 0]
    rows, columns = np.nonzero(spread)
    assert np.hypot(rows - 112, columns - 112).max() < 12.5
    assert spread[112, 104] == spread[120, 112] > 0


def test_what_cannot_be_corrupted_is_refused(photo):
    with pytest.raises(ValueError, match="Did you mean 'fog'"):
        corrupt(photo, "fogg", 1)
    with pytest.raises(ValueError, match="expected 1 to 5"):
        corrupt(photo, "fog", 0)
    with pytest.raises(ValueError, match="expected uint8"):
        corrupt(photo / 255, "fog", 1)


def test_figure_shows_all(photo):
    figure = plot_corruptions(photo[::4, ::4], severity=5)
    assert [axes.get_title() for axes in figure.axes][:2] == ["clean", "gaussian noise"]
    figure.canvas.draw()
