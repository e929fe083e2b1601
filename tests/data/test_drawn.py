"""What the drawn tasks share: exact order and content, splits that share nothing, named items."""

from itertools import chain

import pytest
import torch

from lightning_overlock.data import (
    CuedClutterDataModule,
    KeyValueGridDataModule,
    PathfinderDataModule,
)
from lightning_overlock.data.loading import Key
from lightning_overlock.errors import InputError

MODULES = [CuedClutterDataModule, KeyValueGridDataModule, PathfinderDataModule]
each_task = pytest.mark.parametrize("module", MODULES)


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")


def items(source, epoch, indices):
    pairs = [source[Key(epoch, index)] for index in indices]
    return torch.stack([image for image, _ in pairs]), [label for _, label in pairs]


@each_task
def test_an_image_is_a_function_of_seed_epoch_and_index_alone(module):
    forwards, labels = items(module(train_images=600).source("train"), 3, range(520))
    other = module(train_images=521).source("train")
    other[Key(1, 7)]  # another epoch before
    backwards, labels_back = items(other, 3, reversed(range(520)))
    assert torch.equal(forwards, backwards.flip(0))
    assert labels == labels_back[::-1]


@each_task
def test_seed_and_epoch_change_training_images_and_no_others(module, monkeypatch):
    first, _ = items(module().source("train"), 0, range(8))
    later, _ = items(module().source("train"), 1, range(8))
    fixed, _ = items(module(fresh=False).source("train"), 1, range(8))
    val, _ = items(module().source("val"), 0, range(8))
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    reseeded, _ = items(module().source("train"), 0, range(8))
    val_again, _ = items(module().source("val"), 1, range(8))
    assert torch.equal(first, fixed)
    assert torch.equal(val, val_again)
    for changed in (later, reseeded):
        assert (changed != first).flatten(1).any(1).all()


@each_task
def test_no_image_is_in_two_splits(module, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the seed of validation and test images
    seen = [
        {image.numpy().tobytes() for image in items(module().source(split), 0, range(200))[0]}
        for split in ("train", "val", "test")
    ]
    assert all(len(images) == 200 for images in seen)
    assert len(set.union(*seen)) == 600


@each_task
def test_batches_are_the_same_with_workers_and_normalised(module):
    here, there = (
        list(module(batch_size=128, train_images=384, num_workers=n).train_dataloader())
        for n in (0, 2)
    )
    for (images, labels), (images2, labels2) in zip(here, there, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    assert images.shape == (128, 3, 48, 48)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean()) < 0.1
    assert abs(images.std() - 1) < 0.1


@each_task
def test_predictions_are_named_after_their_label_and_what_is_known(module):
    data = module(batch_size=8, eval_images=12)
    names = list(chain(*(names for _, names in data.predict_dataloader())))
    labels = list(chain(*(labels.tolist() for _, labels in data.test_dataloader())))
    (fact,) = data.source("test").block(Key(0, 0)).facts.items()
    assert names == [
        f"{data.title} test {i:05d}, label {labels[i]}, {fact[0]} {fact[1][i]}" for i in range(12)
    ]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        *((module, {"train_images": 0}, "data.train_images: found 0") for module in MODULES),
        *((module, {"eval_images": 0}, "data.eval_images: found 0") for module in MODULES),
        (
            CuedClutterDataModule,
            {"digits": 1},
            "data.digits: found 1, .* 2 to 4",
        ),
        (
            CuedClutterDataModule,
            {"classes": 3},
            "data.classes: found 3, .* 4 to 10",
        ),
        (CuedClutterDataModule, {"votes": 4}, "data.votes: found 4, .* 5 to 9"),
        (
            CuedClutterDataModule,
            {"debris": -1},
            "data.debris: found -1, .* 0 to 8",
        ),
        (KeyValueGridDataModule, {"grid": 1}, "data.grid: found 1, .* 2 to 64"),
        (
            KeyValueGridDataModule,
            {"keys": 15},
            "data.keys: found 15, .* 2 to 14",
        ),
        (
            KeyValueGridDataModule,
            {"pairs": 13},
            "data.pairs: found 13, .* 2 to 12",
        ),
        (
            KeyValueGridDataModule,
            {"repeats": 12},
            "data.repeats: found 12, .* 1 to 11",
        ),
        (
            KeyValueGridDataModule,
            {"copies": 13},
            "data.copies: found 13, .* 1 to 12",
        ),
        (
            PathfinderDataModule,
            {"image_size": 31},
            "data.image_size: found 31, .* 32 to 512",
        ),
        (
            PathfinderDataModule,
            {"length": 13},
            "data.length: found 13, .* 3 to 12",
        ),
        (PathfinderDataModule, {"distractors": 33}, "data.distractors: found 33"),
        (
            PathfinderDataModule,
            {"curriculum": [2]},
            r"data.curriculum\[0\]: found 2, .* 3",
        ),
        (PathfinderDataModule, {"curriculum": [3], "fresh": False}, "data.curriculum needs new"),
    ],
)
def test_arguments_out_of_range_are_named(module, arguments, message):
    with pytest.raises(InputError, match=message):
        module(**arguments)
