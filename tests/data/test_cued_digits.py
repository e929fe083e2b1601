"""Cued digits: the cue, and nothing but the cue, says which digit is the label."""

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lightning_overlock.data import CuedDigitsDataModule
from lightning_overlock.data.cued_digits import CORNER, CUES, CuedDigitImages
from lightning_overlock.data.digits import digits_of
from lightning_overlock.data.loading import Key
from lightning_overlock.errors import InputError

SPLITS = ("train", "val", "test")
MIDDLE = slice(CORNER, 64 - CORNER)

keys = st.builds(Key, epoch=st.integers(0, 1000), index=st.integers(0, 10**6))
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


# Made once: resizing the digits takes longer than all the rest.
SOURCES = {
    split: CuedDigitImages(split, 10**6 + 1, digits=4, fresh=True, seed=0, named=False)
    for split in SPLITS
}


def without_cue(canvas):
    canvas = canvas.copy()
    canvas[MIDDLE, MIDDLE] = 0
    return canvas


@given(key=keys)
@settings(max_examples=100, deadline=None)
def test_the_same_canvas_with_another_cue_has_another_label(key):
    val = SOURCES["val"]
    scene = val.scene(key)
    asked = [scene._replace(quadrant=quadrant) for quadrant in range(4)]
    canvases = [val.draw(each) for each in asked]
    assert len({val.label(each) for each in asked}) == 4
    assert len({canvas.tobytes() for canvas in canvases}) == 4
    assert len({without_cue(canvas).tobytes() for canvas in canvases}) == 1


@given(key=keys, split=st.sampled_from(SPLITS))
@settings(max_examples=100, deadline=None)
def test_the_named_quadrant_shows_the_digit_of_the_label_whole(key, split):
    images = SOURCES[split]
    scene = images.scene(key)
    collection = digits_of(split)
    meant = key.index % len(collection.labels)
    assert images.label(scene) == collection.labels[meant]
    canvas = images.draw(scene)
    # The look-up, read from the pixels alone
    (quadrant,) = [i for i, cue in enumerate(CUES) if np.array_equal(cue, canvas[MIDDLE, MIDDLE])]
    rows, columns = (
        slice(CORNER) if half == 0 else slice(-CORNER, None) for half in divmod(quadrant, 2)
    )
    seen = torch.from_numpy(canvas[rows, columns].astype(np.float64))
    size = scene.sizes[quadrant]
    expected = F.interpolate(
        collection.images[meant : meant + 1].double() * 255, size=(size, size), mode="bilinear"
    )[0]
    found = seen.unfold(0, size, 1).unfold(1, size, 1)  # every square of that size
    assert (found - expected).abs().amax((2, 3)).min() <= 0.51  # rounded to whole numbers
    assert seen.sum() == canvas.astype(int)[rows, columns].sum()


@given(key=keys, digits=st.integers(2, 4), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_as_many_digits_as_asked_for_of_as_many_classes(key, digits, seed):
    images = SOURCES["val"]
    some = CuedDigitImages.__new__(CuedDigitImages)
    some.__dict__ = images.__dict__ | {"digits": digits, "seed": seed}
    scene = some.scene(key)
    assert scene.numbers[scene.quadrant] == key.index % 300
    there = [number for number in scene.numbers if number is not None]
    assert len(there) == digits
    assert len(set(images.labels[there].tolist())) == digits
    canvas = some.draw(scene)
    for number, (top, left), size in zip(scene.numbers, scene.corners, scene.sizes, strict=True):
        ink = canvas[top : top + size, left : left + size].astype(int).sum()
        assert (ink > 0) == (number is not None)
    # No digit reaches the cue's rows in the cue's columns, nor another quadrant.
    for quadrant, ((top, left), size) in enumerate(zip(scene.corners, scene.sizes, strict=True)):
        below, beside = divmod(quadrant, 2)
        assert below * 38 <= top <= top + size <= below * 38 + 26
        assert beside * 38 <= left <= left + size <= beside * 38 + 26


def test_cues_are_centred_and_differ():
    for turned in (CUES, CUES[:, ::-1], CUES[:, :, ::-1]):
        assert np.array_equal(turned, CUES)  # so none points towards a quadrant
    for first in range(4):
        for second in range(first):
            assert (CUES[first] != CUES[second]).mean() > 0.1


def test_neither_quadrant_nor_class_is_favoured():
    images = CuedDigitsDataModule(train_images=12000).source("train")
    scenes = [images.scene(Key(0, index)) for index in range(len(images))]
    quadrants = np.bincount([scene.quadrant for scene in scenes], minlength=4)
    # Five standard deviations of a binomial distribution
    assert np.abs(quadrants - 3000).max() < 5 * np.sqrt(12000 * 0.25 * 0.75)
    labels = np.bincount([images.label(scene) for scene in scenes])
    expected = np.bincount(load_digits().target) / 1797 * 12000
    assert np.abs(labels / expected - 1).max() < 0.02
    # The digits that are not meant are of every class as often as those that are: counting classes
    # gives nothing away.
    others = np.bincount(
        [
            images.labels[number]
            for scene in scenes
            for quadrant, number in enumerate(scene.numbers)
            if quadrant != scene.quadrant
        ]
    )
    assert np.abs(others / others.mean() - 1).max() < 0.05


def test_pixels_are_normalised():
    images = CuedDigitsDataModule().source("train")
    pixels = torch.stack([images[Key(0, index)][0] for index in range(300)])
    assert pixels.shape == (300, 3, 64, 64)
    assert abs(pixels.mean()) < 0.1
    assert abs(pixels.std() - 1) < 0.1


def test_training_canvases_are_new_in_every_epoch_or_fixed_on_request():
    def canvases(epoch: int, fresh: bool) -> np.ndarray:
        images = CuedDigitsDataModule(fresh=fresh).source("train")
        return np.stack([images.draw(images.scene(Key(epoch, index))) for index in range(20)])

    assert np.array_equal(canvases(3, fresh=True), canvases(3, fresh=True))
    assert (canvases(0, fresh=True) != canvases(1, fresh=True)).any(axis=(1, 2)).all()
    assert np.array_equal(canvases(0, fresh=False), canvases(1, fresh=False))


def test_the_seed_changes_training_canvases_but_no_evaluation(monkeypatch):
    def first(split: str) -> torch.Tensor:
        return CuedDigitsDataModule().source(split)[Key(0, 0)][0]

    train, val = first("train"), first("val")
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert not torch.equal(first("train"), train)
    assert torch.equal(first("val"), val)


def test_batches_are_the_same_with_workers_and_without():
    batches = [
        list(CuedDigitsDataModule(batch_size=16, train_images=48, num_workers=n).train_dataloader())
        for n in (0, 2)
    ]
    for (images, labels), (images2, labels2) in zip(*batches, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    assert images.shape == (16, 3, 64, 64)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_predictions_are_named():
    data = CuedDigitsDataModule(batch_size=8, eval_images=12)
    batches = list(data.predict_dataloader())
    assert list(chain(*(names for _, names in batches))) == [
        f"cued test {i:05d}" for i in range(12)
    ]
    assert torch.equal(batches[1][0], list(data.test_dataloader())[1][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digits": 1}, "data.digits: found 1, .* 2 to 4"),
        ({"digits": 5}, "data.digits: found 5, .* 2 to 4"),
        ({"train_images": 0}, "data.train_images: found 0, .* at least 1"),
        ({"eval_images": 0}, "data.eval_images: found 0, .* at least 1"),
        ({"batch_size": 0}, "data.batch_size: found 0, .* at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        CuedDigitsDataModule(**arguments)
