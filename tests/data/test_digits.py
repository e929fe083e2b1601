"""The embedded digits, whole and among clutter."""

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lightning_overlock.data import ClutteredDigitsDataModule, DigitsDataModule
from lightning_overlock.data.digits import ClutteredDigitImages, digits_of
from lightning_overlock.data.loading import Key
from lightning_overlock.errors import InputError

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


def test_the_splits_share_no_digit_and_leave_none_out():
    numbers = [digits_of(split).numbers.tolist() for split in SPLITS]
    assert [len(n) for n in numbers] == [1197, 300, 300]
    assert sorted(chain(*numbers)) == list(range(1797))


def test_every_split_has_scikit_learns_share_of_each_class():
    everything = np.bincount(load_digits().target)
    for split in SPLITS:
        digits = digits_of(split)
        expected = everything * len(digits.labels) / 1797
        assert np.abs(np.bincount(digits.labels) - expected).max() < 1


def test_images_and_labels_are_scikit_learns():
    collection = load_digits()
    digits = digits_of("val")
    for image, label, number in zip(*digits, strict=True):
        assert label == collection.target[number]
        assert np.array_equal(image[0].numpy() * 16, collection.images[number])


def test_evaluation_images_are_the_digits_resized_and_normalised():
    images, labels = next(iter(DigitsDataModule(batch_size=50).val_dataloader()))
    digits = digits_of("val")
    padded = F.pad(digits.images[:50], (1, 1, 1, 1)).double()
    resized = F.interpolate(padded, size=(32, 32), mode="bilinear", align_corners=False)
    assert images.shape == (50, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(labels, digits.labels[:50])
    # grid_sample dims the outermost half pixel, where the margin has no ink anyhow.
    torch.testing.assert_close(
        images.double(), ((resized - 0.195) / 0.295).expand(-1, 3, -1, -1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("data", [DigitsDataModule(), ClutteredDigitsDataModule(eval_images=30)])
def test_pixels_are_normalised(data):
    source = data.source("train")
    pixels = torch.stack([source[Key(0, index)][0] for index in range(300)])
    assert abs(pixels.mean()) < 0.1
    assert abs(pixels.std() - 1) < 0.1


def test_augmentation_varies_with_the_epoch_and_only_in_training():
    train = DigitsDataModule(augment=True).source("train")
    image, label = train[Key(0, 3)]
    again, _ = train[Key(0, 3)]
    later, later_label = train[Key(1, 3)]
    assert torch.equal(image, again)
    assert not torch.equal(image, later)
    assert label == later_label
    val = DigitsDataModule(augment=True).source("val")
    assert torch.equal(val[Key(0, 3)][0], val[Key(1, 3)][0])
    plain = DigitsDataModule().source("train")
    assert torch.equal(plain[Key(0, 3)][0], plain[Key(1, 3)][0])


def test_augmentation_loses_no_ink():
    source = DigitsDataModule(augment=True).source("train")
    plain = DigitsDataModule().source("train")
    for index in range(100):
        ink = (source[Key(0, index)][0] * 0.295 + 0.195).sum().item()
        expected = (plain[Key(0, index)][0] * 0.295 + 0.195).sum().item()
        # A scale of 0.9 to 1.1 makes the area 0.81 to 1.21.
        assert 0.75 < ink / expected < 1.25


def test_prediction_names_the_test_digits():
    images, names = zip(*DigitsDataModule(batch_size=100).predict_dataloader(), strict=True)
    numbers = digits_of("test").numbers.tolist()
    assert list(chain(*names)) == [f"digit {number:04d}" for number in numbers]
    assert torch.cat(images).shape == (300, 3, 32, 32)


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 1000), index=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_one_whole_digit_of_18_to_24_pixels_lies_on_the_canvas(seed, epoch, index):
    clean = ClutteredDigitImages("val", 10**6 + 1, clutter=0, fresh=True, seed=seed, named=False)
    canvas, label, top, left, size = clean.scene(Key(epoch, index))
    assert 18 <= size <= 24
    assert top >= 0
    assert left >= 0
    assert top + size <= 64
    assert left + size <= 64
    digits = digits_of("val")
    digit = index % 300
    assert label == digits.labels[digit]
    expected = F.interpolate(
        digits.images[digit : digit + 1].double() * 255, size=(size, size), mode="bilinear"
    )[0, 0]
    inside = torch.from_numpy(canvas[top : top + size, left : left + size].astype(np.float64))
    assert (inside - expected).abs().max() <= 0.51  # rounded to whole numbers
    assert canvas.astype(int).sum() == inside.sum()  # and nothing outside it


def test_sizes_and_places_reach_their_ends():
    source = ClutteredDigitImages("val", 5000, clutter=0, fresh=True, seed=0, named=False)
    scenes = [source.scene(Key(0, index)) for index in range(5000)]
    assert {scene.size for scene in scenes} == set(range(18, 25))
    for name in ("top", "left"):
        assert min(getattr(scene, name) for scene in scenes) == 0
        assert max(getattr(scene, name) + scene.size for scene in scenes) == 64


def test_clutter_adds_ink_and_never_covers_the_digit():
    def source(clutter: int) -> ClutteredDigitImages:
        return ClutteredDigitImages("val", 300, clutter, fresh=True, seed=1, named=False)

    clean, few, many = source(0), source(2), source(12)
    ink = np.zeros(3)
    for index in range(100):
        scenes = [s.scene(Key(0, index)) for s in (clean, few, many)]
        assert len({scene[1:] for scene in scenes}) == 1  # same digit, same place
        assert (scenes[1].canvas >= scenes[0].canvas).all()
        assert (scenes[2].canvas >= scenes[0].canvas).all()
        ink += [scene.canvas.sum(dtype=int) for scene in scenes]
    assert ink[0] < ink[1] < ink[2]


@pytest.mark.parametrize("split", SPLITS)
def test_fragments_are_crops_of_other_digits_of_the_same_split(split, monkeypatch):
    source = ClutteredDigitImages(split, 600, clutter=8, fresh=True, seed=2, named=False)
    asked: list[int] = []

    class Watched:
        """The digits of one size, telling which of them is looked at."""

        def __init__(self, images):
            self.images = images

        def __getitem__(self, where):
            asked.append(where[0] if isinstance(where, tuple) else where)
            found = self.images[where]
            assert found.shape in {(8, 8), self.images.shape[1:]}
            return found

    monkeypatch.setattr(
        source, "resized", {size: Watched(images) for size, images in source.resized.items()}
    )
    size = {"train": 1197, "val": 300, "test": 300}[split]
    seen: set[int] = set()
    for index in range(600):
        asked.clear()
        source.scene(Key(0, index))
        whole, *others = asked
        assert whole == index % size
        assert len(others) == 8
        assert whole not in others
        seen.update(others)
    assert seen <= set(range(size))
    assert len(seen) > 0.9 * size


def test_the_resized_digits_of_a_split_are_its_own():
    for split in SPLITS:
        source = ClutteredDigitImages(split, 1, clutter=0, fresh=True, seed=0, named=False)
        expected = F.interpolate(digits_of(split).images.double() * 255, size=20, mode="bilinear")
        assert np.abs(source.resized[20] - expected.squeeze(1).numpy()).max() <= 0.51


def test_training_canvases_are_new_in_every_epoch_or_fixed_on_request():
    def canvases(epoch: int, fresh: bool) -> np.ndarray:
        source = ClutteredDigitsDataModule(fresh=fresh).source("train")
        return np.stack([source.scene(Key(epoch, index)).canvas for index in range(20)])

    assert np.array_equal(canvases(0, fresh=True), canvases(0, fresh=True))
    differing = (canvases(0, fresh=True) != canvases(1, fresh=True)).any(axis=(1, 2))
    assert differing.all()
    assert np.array_equal(canvases(0, fresh=False), canvases(1, fresh=False))


def test_the_seed_changes_training_canvases_but_no_evaluation(monkeypatch):
    def first(split: str) -> torch.Tensor:
        return ClutteredDigitsDataModule().source(split)[Key(0, 0)][0]

    train, val = first("train"), first("val")
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert not torch.equal(first("train"), train)
    assert torch.equal(first("val"), val)


def test_cluttered_batches_are_the_same_with_workers_and_without():
    batches = [
        list(
            ClutteredDigitsDataModule(
                batch_size=16, train_images=48, num_workers=workers
            ).train_dataloader()
        )
        for workers in (0, 2)
    ]
    for (images, labels), (images2, labels2) in zip(*batches, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    assert images.shape == (16, 3, 64, 64)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_cluttered_predictions_are_named():
    data = ClutteredDigitsDataModule(batch_size=8, eval_images=12)
    batches = list(data.predict_dataloader())
    assert list(chain(*(names for _, names in batches))) == [
        f"cluttered test {i:05d}" for i in range(12)
    ]
    labelled = list(data.test_dataloader())
    assert torch.equal(batches[1][0], labelled[1][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DigitsDataModule(image_size=4),
            "image_size: found 4, .* at least 8",
        ),
        (
            lambda: DigitsDataModule(batch_size=0),
            "batch_size: found 0, .* at least 1",
        ),
        (
            lambda: ClutteredDigitsDataModule(clutter=-1),
            "clutter: found -1, .* at least 0",
        ),
        (lambda: ClutteredDigitsDataModule(train_images=0), "train_images: found 0"),
        (lambda: ClutteredDigitsDataModule(eval_images=0), "eval_images: found 0"),
        (
            lambda: DigitsDataModule(batch_size=2000).train_dataloader(),
            "1197 images, fewer than one batch of 2000",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
