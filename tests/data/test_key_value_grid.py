"""Key-value grid: the label is the colour beside the query's shape, and nothing else tells it."""

import numpy as np
import pytest

from lightning_overlock.data.key_value_grid import COLOURS, PATCH, SHAPES, VALUES, draw


def drawn(count=256, seed=0, **difficulty):
    defaults = dict(grid=12, keys=12, pairs=12, colours=6, repeats=1, copies=1, query_first=False)
    return draw(np.random.default_rng(seed), count, **{**defaults, **difficulty})


def patches_of(canvas):
    """Return (patches, PATCH, PATCH, 3) in raster order."""
    side = canvas.shape[1] // PATCH
    split = canvas.reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 2, 4, 0)
    return split.reshape(-1, PATCH, PATCH, 3)


def read(canvas):
    """Return queries {place: shape} and pairs {place: (shape, colour)}, from the pixels alone."""
    queries, pairs = {}, {}
    for place, patch in enumerate(patches_of(canvas)):
        if not patch.any():
            continue
        key, value = patch[: PATCH // 2], patch[PATCH // 2 :]
        assert {tuple(c) for c in key.reshape(-1, 3).tolist()} == {(0, 0, 0), (255, 255, 255)}
        shape = key.any(-1).tobytes()
        (colour,) = {tuple(c) for c in value.reshape(-1, 3).tolist()}
        if colour == (0, 0, 0):
            queries[place] = shape
        else:
            pairs[place] = (shape, list(COLOURS.values()).index(colour))
    return queries, pairs


@pytest.mark.parametrize(
    "difficulty",
    [
        {},
        {"pairs": 6},
        {"keys": 14, "pairs": 14},
        {"grid": 8, "keys": 6, "pairs": 3, "colours": 3, "repeats": 18, "copies": 8},
        {"grid": 8, "keys": 4, "pairs": 4, "repeats": 14, "copies": 8},
        {"repeats": 3, "copies": 2},
    ],
)
def test_the_label_is_the_colour_of_the_pair_asked_for(difficulty):
    block = drawn(64, **difficulty)
    side = difficulty.get("grid", 12)
    for canvas, label, distance in zip(
        block.canvases, block.labels, block.facts["distance"], strict=True
    ):
        queries, pairs = read(canvas)
        (asked,) = set(queries.values())
        answers = {place: colour for place, (shape, colour) in pairs.items() if shape == asked}
        assert set(answers.values()) == {label}
        assert len(queries) == difficulty.get("copies", 1)
        assert len(answers) == difficulty.get("repeats", 1)
        assert len({shape for shape, _ in pairs.values()}) == difficulty.get("pairs", 12)
        assert min(queries) >= side * (side - 1) > max(pairs)
        assert distance == min(queries) - max(answers)


def test_with_the_query_first_all_pairs_come_after_it():
    block = drawn(64, query_first=True)
    for canvas, label in zip(block.canvases, block.labels, strict=True):
        queries, pairs = read(canvas)
        assert max(queries) < 12 <= min(pairs)
        (asked,) = queries.values()
        assert [colour for shape, colour in pairs.values() if shape == asked] == [label]


def test_shapes_have_equal_ink_and_differ():
    assert set(SHAPES.ravel().tolist()) == {0, 255}
    flat = SHAPES.reshape(len(SHAPES), -1).astype(int) // 255
    assert (flat.sum(1) == 4).all()
    differ = np.abs(flat[:, None] - flat[None]).sum(-1)
    assert differ[~np.eye(len(SHAPES), dtype=bool)].min() >= 4
    assert len({tuple(v) for v in VALUES.tolist()}) == 6


def test_counting_colours_tells_nothing_and_no_label_is_favoured():
    block = drawn(6000)
    for canvas in block.canvases[:100]:
        _, pairs = read(canvas)
        assert np.array_equal(np.bincount([c for _, c in pairs.values()]), [2] * 6)
    labels = np.bincount(block.labels, minlength=6)
    assert np.abs(labels - 1000).max() < 5 * np.sqrt(6000 * 5 / 36)
    # The query's shape says nothing either.
    asked = [next(iter(read(canvas)[0].values())) for canvas in block.canvases[:3000]]
    for shape in set(asked):
        of_shape = np.bincount(block.labels[:3000][[a == shape for a in asked]], minlength=6)
        assert of_shape.max() / of_shape.sum() < 1 / 6 + 5 * np.sqrt(5 / 36 / of_shape.sum())
