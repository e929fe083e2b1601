"""Scenes of digits: what is written, that it is whole, and that the readers of COCO read it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import masks_to_boxes

from lightning_overlock.data import (
    DigitScenesDetectionDataModule,
    DigitScenesSegmentationDataModule,
    digit_scenes,
)
from lightning_overlock.data.digit_scenes import SceneOptions, draw_scene, write_scenes
from lightning_overlock.data.digits import digits_of
from lightning_overlock.data.loading import Key
from lightning_overlock.errors import InputError

SMALL = SceneOptions(canvas=64, train_images=12, eval_images=5, digit_sizes=(16, 30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / SMALL.name
    write_scenes(folder, SMALL)
    return folder


@pytest.mark.parametrize(("split", "images"), [("train", 12), ("val", 5), ("test", 5)])
def test_pycocotools_finds_boxes_areas_and_labels_in_the_masks(folder, split, images, capsys):
    truth = COCO(str(folder / "annotations" / f"instances_{split}.json"))
    assert len(truth.imgs) == images
    for number, entry in truth.imgs.items():
        with Image.open(folder / "images" / split / entry["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))
        labels = np.asarray(Image.open(folder / "labels" / split / entry["file_name"]))
        painted = np.zeros_like(labels)
        for annotation in truth.imgToAnns[number]:
            mask = truth.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum() > 0
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert not painted[mask].any()  # what is hidden belongs to the upper one
            painted[mask] = int(truth.cats[annotation["category_id"]]["name"]) + 1
        assert np.array_equal(painted, labels)


@given(seed=st.integers(0, 10**6), digits=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_no_digit_is_hidden_by_others(seed, digits):
    options = SceneOptions(canvas=64, digits=(digits, digits), digit_sizes=(12, 40))
    scene = draw_scene(digits_of("val"), options, np.random.default_rng(seed))
    assert 1 <= len(scene.labels) <= digits
    assert set(np.unique(scene.owner)) - {0} == set(range(1, len(scene.labels) + 1))
    # Whatever was put over it later, half of an upright stroke of the smallest digit is seen.
    assert np.bincount(scene.owner.ravel())[1:].min() >= 4


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_digits_that_stay_whole_are_covered_by_none(seed):
    alone, among_others = (
        draw_scene(
            digits_of("val"),
            SceneOptions(canvas=64, digits=(n, n), digit_sizes=(12, 40), least_visible=1),
            np.random.default_rng(seed),
        )
        for n in (1, 6)
    )
    assert np.array_equal(alone.owner == 1, among_others.owner == 1)


def test_digits_stand_out_from_their_canvas():
    random = np.random.default_rng(1)
    plain = SceneOptions(texture=0, digits=(1, 1))
    scene = draw_scene(digits_of("train"), plain, random)
    ground = scene.image[scene.owner == 0].astype(float)
    ink = scene.image[scene.owner == 1].astype(float)
    assert np.abs(np.median(ink, 0) - np.median(ground, 0)).mean() > 50
    assert ground.std(0).max() < 30  # one colour but for the soft edges


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_seed_says_everything(folder, tmp_path):
    write_scenes(tmp_path / "again", SMALL)
    assert contents(tmp_path / "again") == contents(folder)
    other = SceneOptions(canvas=64, train_images=12, eval_images=5, digit_sizes=(16, 30), seed=1)
    write_scenes(tmp_path / "other", other)
    found, known = contents(tmp_path / "other"), contents(folder)
    assert all(found[name] != known[name] for name in known if name.startswith("images"))
    images = [c for name, c in known.items() if name.startswith("images")]
    assert len(set(images)) == len(images)  # no two scenes are alike, in any split


def test_what_is_broken_off_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", full)  # after the first split's images
        with pytest.raises(OSError, match="no space"):
            write_scenes(tmp_path / "scenes", SMALL)
    assert list(tmp_path.iterdir()) == []
    write_scenes(tmp_path / "scenes", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_of_two_writers_at_a_time_the_first_one_counts(folder, tmp_path, monkeypatch):
    write_split, names = digit_scenes._write_split, []

    def overtaken(unfinished: Path, split: str, options: SceneOptions) -> None:
        names.append(str(unfinished))
        if len(names) == 1:
            write_scenes(tmp_path / "s", SMALL)
        write_split(unfinished, split, options)

    monkeypatch.setattr(digit_scenes, "_write_split", overtaken)
    write_scenes(tmp_path / "s", SMALL)
    assert len(set(names)) == 2  # they do not share a folder while they write
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert contents(tmp_path / "s") == contents(folder)


def test_scenes_are_kept_in_the_users_cache_or_where_one_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OVERLOCK_CACHE", raising=False)
    home = DigitScenesDetectionDataModule(SMALL).folder
    assert home == tmp_path / "home/.cache/lightning_overlock" / SMALL.name
    monkeypatch.setenv("OVERLOCK_CACHE", str(tmp_path / "there"))
    assert DigitScenesDetectionDataModule(SMALL).folder.parent == tmp_path / "there"
    given = DigitScenesSegmentationDataModule(SMALL, folder=str(tmp_path / "here"))
    assert given.folder.parent == tmp_path / "here"
    assert list(tmp_path.iterdir()) == []  # nothing is written before it is needed


def test_every_option_is_in_the_folders_name():
    others = [
        {"canvas": 96},
        {"train_images": 7},
        {"eval_images": 7},
        {"digits": (2, 3)},
        {"digit_sizes": (20, 21)},
        {"least_visible": 0.9},
        {"texture": 0.25},
        {"seed": 5},
    ]
    assert {name for option in others for name in option} == set(SceneOptions.__annotations__)
    assert len({SceneOptions(**option).name for option in [{}, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": 8}, "scenes.canvas: found 8, .* at least 16"),
        ({"train_images": 0}, "scenes.train_images: found 0"),
        ({"digits": (3, 2)}, "scenes.digits is 3, 2"),
        ({"digits": (0, 2)}, "scenes.digits is 0, 2"),
        ({"digit_sizes": (20, 200)}, "scenes.digit_sizes is 20, 200"),
        ({"least_visible": -0.5}, "scenes.least_visible is -0.5"),
        ({"texture": 1.5}, "scenes.texture is 1.5"),
    ],
)
def test_bad_options_are_named(options, message, tmp_path):
    for make in (DigitScenesDetectionDataModule, DigitScenesSegmentationDataModule):
        with pytest.raises(InputError, match=message):
            make(SceneOptions(**options), folder=str(tmp_path))


def test_detection_batches_have_boxes_around_their_masks(folder):
    data = DigitScenesDetectionDataModule(
        SMALL, folder=str(folder.parent), batch_size=4, num_workers=0
    )
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.category_ids == list(range(1, 11))
    batches = list(data.train_dataloader())
    assert [len(images) for images, _ in batches] == [4, 4, 4]
    for images, targets in batches:
        for image, target in zip(images, targets, strict=True):
            assert image.shape == (3, 64, 64)
            boxes = masks_to_boxes(target["masks"])
            boxes[:, 2:] += 1
            assert torch.equal(boxes, target["boxes"])


def test_segmentation_batches_are_the_label_maps(folder):
    data = DigitScenesSegmentationDataModule(
        SMALL, folder=str(folder.parent), batch_size=4, num_workers=0
    )
    data.setup("fit")
    assert data.class_names == ["background", *(str(digit) for digit in range(10))]
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 64, 64)
    assert labels.shape == (4, 64, 64)
    found = [label for _, labels in data.val_dataloader() for label in labels]
    for number, label in enumerate(found):
        expected = np.asarray(Image.open(folder / f"labels/val/{number:05d}.png"))
        assert np.array_equal(label.numpy(), expected)
    assert 0 in label.unique()
    assert [len(paths) for _, paths in data.predict_dataloader()] == [3, 2]


@pytest.mark.parametrize(
    "kind", [DigitScenesDetectionDataModule, DigitScenesSegmentationDataModule]
)
def test_no_scenes_are_written_to_predict_for_own_images(tmp_path, kind):
    Image.new("RGB", (9, 9)).save(tmp_path / "own.png")
    cache = tmp_path / "cache"
    data = kind(SMALL, str(cache), predict_dir=str(tmp_path / "own.png"), num_workers=0)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="predict"), lightning_module=None)
    data.prepare_data()
    data.setup("predict")
    assert data.source("predict")[Key(0, 0)][0].shape == (3, 9, 9)
    assert not cache.exists()
