"""Cued clutter: the strokes between the quadrants, and nothing else, say which digit counts."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lightning_overlock.data import CuedClutterDataModule
from lightning_overlock.data.cued_clutter import CANVAS, CORNER, DIGIT, draw, glyphs_of
from lightning_overlock.data.digits import digits_of, resize_digits
from lightning_overlock.data.loading import Key

BAND = slice(CORNER, CANVAS - CORNER)


def quadrant_of(canvas, number):
    below, beside = divmod(number, 2)
    rows = slice(CORNER) if below == 0 else slice(-CORNER, None)
    columns = slice(CORNER) if beside == 0 else slice(-CORNER, None)
    return canvas[rows, columns]


def drawn(split="val", count=256, seed=0, **difficulty):
    difficulty = {"digits": 4, "classes": 10, "votes": 9, "debris": 0, **difficulty}
    return draw(np.random.default_rng(seed), count, split, **difficulty)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_named_quadrant_shows_a_digit_of_the_label_and_of_its_split(split):
    block = drawn(split, 24)
    digits = digits_of(split)
    glyphs = resize_digits(digits.images, DIGIT).astype(int)
    for canvas, label, quadrant in zip(
        block.canvases[:, 0], block.labels, block.facts["quadrant"], strict=True
    ):
        seen = quadrant_of(canvas, quadrant).astype(int)
        # Strokes reach a little into the quadrants, and the brighter pixel wins: no ink is missing.
        squares = np.lib.stride_tricks.sliding_window_view(seen, (DIGIT, DIGIT)).reshape(
            -1, DIGIT**2
        )
        missing = np.maximum(glyphs.reshape(len(glyphs), 1, -1) - squares, 0).sum(-1).min(1)
        found = digits.labels.numpy()[missing == 0]
        assert label in found


def test_glyphs_of_the_splits_are_disjoint_and_sorted():
    names = [{tuple(n) for n in digits_of(s).numbers[:, None].tolist()} for s in ("train", "val")]
    assert not set.intersection(*names)
    glyphs = glyphs_of("val")
    counts = np.bincount(digits_of("val").labels.numpy())
    assert np.array_equal(np.diff(glyphs.starts), counts)
    assert len(glyphs.images) == 300


@pytest.mark.parametrize("votes", [5, 7, 9])
def test_most_strokes_on_the_cross_name_the_quadrant(votes):
    """Read from the pixels alone, by how far ink reaches in each direction."""
    block = drawn(count=512, votes=votes)
    canvases = block.canvases[:, 0].astype(float) / 255
    along = [
        (canvases * np.roll(canvases, shift, axis=(1, 2)) * np.roll(canvases, again, axis=(1, 2)))
        for shift, again in (
            ((0, 2), (0, -2)),
            ((2, 0), (-2, 0)),
            ((2, 2), (-2, -2)),
            ((2, -2), (-2, 2)),
        )
    ]
    # Ink of the cross: its arms without the digits' squares
    inside = np.zeros((CANVAS, CANVAS), bool)
    inside[BAND] = inside[:, BAND] = True
    energy = np.stack([each[:, inside].sum(1) for each in along], axis=1)
    read = LogisticRegression(max_iter=500).fit(energy[:256], block.facts["quadrant"][:256])
    assert read.score(energy[256:], block.facts["quadrant"][256:]) > (0.9 if votes > 5 else 0.6)


def test_strokes_in_the_quadrants_and_digits_say_nothing_of_which_counts():
    """A reader of all quadrants without the cross is right as often as chance."""
    block = drawn(count=6000, votes=9, debris=3)
    canvases = block.canvases[:, 0].astype(float) / 255
    # One pixel away from the cross, whose strokes reach beyond it by that
    parts = [quadrant_of(c, q)[3:-3, 3:-3] for c in canvases for q in range(4)]
    features = np.stack(parts).reshape(6000, -1)[:, ::7]
    target = block.facts["quadrant"]
    read = LogisticRegression(max_iter=200, C=0.01).fit(features[:4000], target[:4000])
    # Two standard deviations of 2,000 throws are .02.
    assert abs(read.score(features[4000:], target[4000:]) - 0.25) < 0.05


def test_no_quadrant_and_no_class_is_favoured_and_four_classes_are_shown():
    block = drawn(count=8000)
    quadrants = np.bincount(block.facts["quadrant"], minlength=4)
    assert np.abs(quadrants - 2000).max() < 5 * np.sqrt(8000 * 0.25 * 0.75)
    labels = np.bincount(block.labels, minlength=10)
    assert np.abs(labels - 800).max() < 5 * np.sqrt(8000 * 0.1 * 0.9)
    # With four classes each image shows every one: a reader blind to the cue knows nothing.
    few = drawn(count=4000, classes=4)
    assert np.abs(np.bincount(few.labels) - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_the_classes_are_as_many_as_asked_for():
    data = CuedClutterDataModule(classes=5)
    assert data.class_names == ["0", "1", "2", "3", "4"]
    labels = data.source("train").block(Key(0, 0)).labels
    assert set(labels.tolist()) == set(range(5))
