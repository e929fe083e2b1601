"""Mini-pathfinder: whether two dots are on one path, read again from the pixels; no short cut."""

import numpy as np
import pytest
from scipy import ndimage

from lightning_overlock.data import PathfinderDataModule
from lightning_overlock.data.loading import Key
from lightning_overlock.data.pathfinder import DASH_INK, DOT_INK, GAP, _pairs, draw


def drawn(count=256, seed=0, side=48, length=6, distractors=0):
    return draw(np.random.default_rng(seed), count, side, length, distractors)


def dots(canvas):
    """Return the two dots' centres, (2, 2); None where they touch."""
    labelled, count = ndimage.label(canvas == DOT_INK, structure=np.ones((3, 3)))
    if count != 2:
        return None
    return np.array(ndimage.center_of_mass(canvas == DOT_INK, labelled, [1, 2]))


@pytest.mark.parametrize(("side", "length"), [(48, 4), (48, 6), (48, 9), (96, 9)])
def test_following_the_ink_from_dot_to_dot_gives_the_label(side, length):
    """Dashes are closed to lines by two pixels; different paths keep five apart."""
    block = drawn(40, side=side, length=length)
    right = []
    for canvas, label in zip(block.canvases[:, 0], block.labels, strict=True):
        lines = ndimage.binary_dilation(canvas > 0, structure=np.ones((3, 3)))
        labelled, _ = ndimage.label(lines, structure=np.ones((3, 3)))
        places = dots(canvas)
        if places is None:
            continue
        first, second = (labelled[tuple(p)] for p in places.round().astype(int))
        right.append((first == second) == label)
    assert len(right) > 30
    # Where two paths come close, the closed lines of both may touch.
    assert np.mean(right) > 0.9


def test_distance_and_places_of_the_dots_say_nearly_nothing():
    centres, _ = _pairs(np.random.default_rng(0), 8000, 48, 6)
    one = np.linalg.norm(centres[:, 0, 0] - centres[:, 0, -1], axis=1)
    two = np.linalg.norm(centres[:, 0, 0] - centres[:, 1, 0], axis=1)
    # The best threshold on the distance, in favour of either label
    cuts = np.linspace(0, 48, 97)
    below = [(one < cut).mean() - (two < cut).mean() for cut in cuts]
    assert 0.5 + np.abs(below).max() / 2 < 0.56


@pytest.mark.parametrize(("side", "length"), [(48, 9), (96, 12)])
def test_paths_keep_apart_and_inside(side, length):
    centres, directions = _pairs(np.random.default_rng(0), 50, side, length)
    assert centres.shape == (50, 2, length, 2)
    assert directions.shape == (50, 2, length)
    assert centres.min() >= 3
    assert centres.max() <= side - 4
    between = np.linalg.norm(centres[:, 0, :, None] - centres[:, 1, None], axis=-1)
    assert between.min() >= GAP


def test_distractors_add_ink_and_keep_away_from_the_paths():
    plain, more = drawn(64), drawn(64, distractors=4)
    assert (more.canvases == DASH_INK).sum() > 1.3 * (plain.canvases == DASH_INK).sum()


def test_both_labels_are_as_frequent():
    labels = drawn(4000, length=4).labels
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_a_curriculum_sets_the_length_of_the_first_training_epochs_alone():
    data = PathfinderDataModule(length=6, curriculum=[3, 4])
    lengths = [data.source("train").block(Key(epoch, 0)).facts["length"][0] for epoch in range(4)]
    assert lengths == [3, 4, 6, 6]
    assert data.source("val").block(Key(0, 0)).facts["length"][0] == 6
