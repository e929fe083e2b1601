"""Folders of images and label PNGs, and ADE20K's layout, made by these tests."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_overlock.data import Ade20kDataModule, SegmentationFolderDataModule
from lightning_overlock.data.label_maps import LabelCode, read_labels
from lightning_overlock.errors import InputError

CLASSES = ["sky", "sea", "land"]


def write_pair(
    images: Path, labels: Path, stem: str, size: tuple[int, int], classes: int = 3
) -> None:
    """Write an image (height, width) whose red channel is 50 times the label."""
    random = np.random.default_rng(sum(map(ord, stem)))
    values = random.integers(0, classes, (size[0] // 4, size[1] // 4), np.uint8)
    values = values.repeat(4, 0).repeat(4, 1)
    picture = np.stack([50 * values, values * 0, random.integers(0, 256, values.shape)], axis=2)
    for path in (images / stem, labels / stem):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(images / f"{stem}.png")
    Image.fromarray(values).save(labels / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for number in range(count):
            size = (40, 60) if number % 2 else (48, 32)
            write_pair(
                tmp_path / "images" / split, tmp_path / "labels" / split, f"deep/{number}", size
            )
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n")
    return tmp_path


def folder(root: Path, **options: Any) -> SegmentationFolderDataModule:
    options = {"batch_size": 2, "num_workers": 0, "crop_size": 32, "resize": (64, 40), **options}
    return SegmentationFolderDataModule(str(root), **options)


# What is read.


def test_training_batches_are_crops_and_evaluation_has_the_files_own_sizes(root):
    data = folder(root, photometric=False)
    data.setup("fit")
    assert data.class_names == CLASSES
    for images, labels in data.train_dataloader():
        assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.float32)
        assert (labels.shape, labels.dtype) == ((2, 32, 32), torch.int64)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 255}
    batches = list(data.val_dataloader())
    found = [
        (i, label) for images, labels in batches for i, label in zip(images, labels, strict=True)
    ]
    assert [tuple(i.shape) for i, _ in found] == [(3, 48, 32), (3, 40, 60), (3, 48, 32)]
    for number, (image, label) in enumerate(found):
        file = np.asarray(Image.open(root / f"labels/val/deep/{number}.png"))
        assert np.array_equal(label.numpy(), file)
        assert torch.equal((image[0] * 255).round().long(), 50 * label)


def save(path: Path, values: Any, kind: str) -> Path:
    array = np.array(values)
    if kind == "P":
        image = Image.fromarray(array.astype(np.uint8), "L")
        image.putpalette([9, 8, 7, 1, 2, 3, 250, 0, 0, 0, 250, 0] + 252 * [5, 5, 5])
    elif kind == "I;16":
        image = Image.fromarray(array.astype(np.uint16))
    else:
        image = Image.fromarray(array.astype(np.uint8)).convert(kind)
    assert image.mode == kind
    image.save(path)
    return path


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_values_are_classes_whatever_kind_of_png(tmp_path, kind):
    path = save(tmp_path / "a.png", [[0, 1, 2], [3, 255, 0]], kind)
    assert read_labels(path, LabelCode(4, False)).tolist() == [[0, 1, 2], [3, 255, 0]]
    # 0 is no class, 1 is the first; 255 stays what it is.
    assert read_labels(path, LabelCode(3, True)).tolist() == [[255, 0, 1], [2, 255, 255]]


def test_black_and_white_pngs_have_two_classes(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", LabelCode(2, False)).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("value", "kind", "reduce", "message"),
    [
        (3, "L", False, r"value 3 is no class\nexpected 0 to 2 for 3 classes"),
        (4, "P", True, r"value 4 is no class\nexpected 0 to 3 for 3 classes"),
        (254, "L", True, "value 254 is no class"),
        (256, "I;16", False, "value 256 is no class"),
        (65535, "I;16", False, "value 65535 is no class"),
    ],
)
def test_a_value_out_of_range_names_its_file(tmp_path, value, kind, reduce, message):
    path = save(tmp_path / "a.png", [[0, 1], [255, value]], kind)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path, LabelCode(3, reduce))
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) <= 3


def test_colours_and_broken_files_are_no_labels(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(3, dtype=np.uint8)[None] * 255).save(path)
    with pytest.raises(InputError, match=r"a\.png: 3 colours \(\(0, 0, 255\), \(0, 255, 0\), "):
        read_labels(path, LabelCode(3, False))
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png: no intact image"):
        read_labels(path, LabelCode(3, False))
    with pytest.raises(InputError, match=r"gone\.png: No such file"):
        read_labels(tmp_path / "gone.png", LabelCode(3, False))


def test_a_turned_image_has_a_label_map_as_a_viewer_shows_it(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for number in (0, 2):
        pixels = np.zeros((32, 48, 3), np.uint8)  # a viewer shows 48 x 32
        Image.fromarray(pixels).save(root / f"images/val/deep/{number}.png", exif=exif)
    data = folder(root)
    data.setup("validate")
    assert [tuple(i.shape[1:]) for images, _ in data.val_dataloader() for i in images] == [
        (48, 32),
        (40, 60),
        (48, 32),
    ]
    Image.fromarray(np.zeros((48, 32, 3), np.uint8)).save(root / "images/val/deep/0.png", exif=exif)
    with pytest.raises(InputError, match=r"0\.png: 32 x 48 pixels, but 48 x 32 in .*EXIF"):
        folder(root).setup("validate")


def test_class_names_come_from_a_list_a_file_or_the_labels(root, tmp_path):
    assert len(folder(root).class_names) == 3
    (root / "classes.txt").unlink()
    assert folder(root, class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    (tmp_path / "mine.txt").write_text("x\ny\nz")
    assert folder(root, class_names=str(tmp_path / "mine.txt")).class_names == ["x", "y", "z"]
    assert folder(root).class_names == ["0", "1", "2"]
    assert folder(root, reduce_zero_label=True).class_names == ["1", "2"]
    with pytest.raises(InputError, match=r"nothing\.txt cannot be read"):
        folder(root, class_names=str(tmp_path / "nothing.txt"))
    with pytest.raises(InputError, match="found 256 classes; 255 is the label that is ignored"):
        folder(root, class_names=[str(n) for n in range(256)])


def test_colours_are_those_of_the_labels_palette(root):
    assert folder(root).palette == []
    values = np.asarray(Image.open(root / "labels/train/deep/0.png"))
    save(root / "labels/train/deep/0.png", values, "P")
    assert folder(root).palette == [(9, 8, 7), (1, 2, 3), (250, 0, 0)]
    (root / "classes.txt").unlink()
    names = ["sea", "land"]
    reduced = folder(root, reduce_zero_label=True, class_names=names)
    assert reduced.palette == [(1, 2, 3), (250, 0, 0)]


def test_augmentation_is_a_function_of_seed_epoch_and_image(root, monkeypatch):
    def epoch(number: int, **options: Any) -> torch.Tensor:
        data = folder(root, **options)
        loader = data.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(number)
        images = torch.cat([images for images, _ in loader])
        data.teardown("")
        return images

    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    first = epoch(0)
    assert torch.equal(first, epoch(0, num_workers=2))
    assert not torch.equal(first, epoch(1))
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not torch.equal(first, epoch(0))


def test_prediction_has_paths_of_any_folder_or_of_the_validation_images(root, tmp_path):
    data = SegmentationFolderDataModule(
        predict_dir=str(root / "images"), num_workers=0, batch_size=4
    )
    data.load_prediction_state({"class_names": CLASSES})  # no labels are needed for it
    assert data.class_names == CLASSES
    paths = [path for _, paths in data.predict_dataloader() for path in paths]
    assert len(paths) == 9
    assert paths[0] == str(root / "images/train/deep/0.png")
    ((images, names),) = folder(root, batch_size=4).predict_dataloader()
    assert names == [str(root / f"images/val/deep/{number}.png") for number in range(3)]
    assert images[1].shape == (3, 40, 60)


# ADE20K.


def test_ade20k_has_its_layout_its_150_classes_and_ignores_zero(tmp_path):
    for split in ("training", "validation"):
        for number in range(2):
            images, labels = tmp_path / "images" / split, tmp_path / "annotations" / split
            write_pair(images, labels, f"ADE_{number}", (40, 60), classes=151)
            Image.open(images / f"ADE_{number}.png").save(images / f"ADE_{number}.jpg")
            (images / f"ADE_{number}.png").unlink()
    data = Ade20kDataModule(str(tmp_path), num_workers=0, batch_size=2)
    data.setup("fit")
    assert len(data.class_names) == len(set(data.class_names)) == len(data.palette) == 150
    assert data.class_names[:3] == ["wall", "building", "sky"]
    assert data.class_names[12] == "person"
    assert data.class_names[-1] == "flag"
    assert data.palette[0] == (120, 120, 120)
    assert data.palette[12] == (150, 5, 61)
    assert data.palette[-1] == (92, 0, 255)
    ((images, labels),) = data.train_dataloader()
    assert images.shape == (2, 3, 512, 512)
    assert labels.shape == (2, 512, 512)
    ((_, labels),) = data.val_dataloader()
    file = np.asarray(Image.open(tmp_path / "annotations/validation/ADE_0.png")).astype(int)
    assert np.array_equal(labels[0].numpy(), np.where(file == 0, 255, file - 1))


def test_ade20k_without_its_folders_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"images/training: no folder"):
        Ade20kDataModule(str(tmp_path), num_workers=0).setup("fit")


# What is not as it should be.


def remove(name: str) -> Any:
    return lambda root: (root / name).unlink()


def shrink(root: Path) -> None:
    Image.new("L", (7, 9)).save(root / "labels/train/deep/3.png")


def double(root: Path) -> None:
    Image.new("RGB", (60, 40)).save(root / "images/train/deep/3.jpg")


def cut(root: Path) -> None:
    (root / "images/train/deep/3.png").write_bytes(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("labels/train/deep/3.png"),
            r"images/train/deep/3\.png: no label map .*deep/3\.png",
        ),
        (remove("images/train/deep/3.png"), r"labels/train/deep/3\.png: no image .*train/deep/3"),
        (shrink, r"labels/train/deep/3\.png: 7 x 9 pixels, but 60 x 40 in .*images/train/deep/3"),
        (double, r"deep/3\.png: has the name of deep/3\.jpg"),
        (cut, r"images/train/deep/3\.png: no intact image"),
    ],
)
def test_pairs_that_do_not_fit_are_named_before_training_or_left_out(root, change, message):
    change(root)
    with pytest.raises(InputError, match=message) as caught:
        folder(root).setup("fit")
    assert len(str(caught.value).splitlines()) <= 3
    assert "data.skip_invalid" in str(caught.value)
    with pytest.raises(InputError, match=r"1 of [67] files would be left out: 1 \w+.*\n.*0\.1"):
        folder(root, skip_invalid=True).setup("fit")
    data = folder(root, skip_invalid=True, max_left_out=0.2)
    used = 6 if change is double else 5  # of two images for one label map one is kept
    assert re.match(rf"used {used} of [67] files, 1 left out: 1 \w+ .*3\.", data.examine("train"))
    assert len(data.source("train")) == used


@pytest.mark.parametrize("workers", [0, 1])
def test_a_value_out_of_range_is_named_when_it_is_read_or_skipped(root, workers):
    Image.fromarray(np.full((48, 32), 77, np.uint8)).save(root / "labels/val/deep/2.png")
    data = folder(root, num_workers=workers)
    with pytest.raises(InputError, match=r"labels/val/deep/2\.png: the value 77 is no class"):
        list(data.val_dataloader())
    data.teardown("")
    data = folder(root, num_workers=workers, skip_invalid=True, max_left_out=0.5)
    told = "used 2 of 3 label maps, 1 left out: 1 with values that are no class"
    assert told in data.examine("val")
    with pytest.warns(UserWarning, match=r"1 unreadable .*deep/2\.png: the value 77"):
        assert sum(len(images) for images, _ in data.val_dataloader()) == 2
    data.teardown("")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hflip": 2}, r"data\.hflip is 2"),
        ({"largest_share": 0}, r"data\.largest_share is 0"),
        ({"ratio": (2, 1)}, r"data\.ratio is 2, 1"),
        ({"crop_size": 0}, r"data\.crop_size is \(0, 0\)"),
        ({"test_labels": "x"}, r"data\.test_images None and data\.test_labels x"),
        ({"batch_size": 0}, r"data\.batch_size: found 0"),
    ],
)
def test_bad_options_are_named(root, options, message):
    with pytest.raises(InputError, match=message):
        folder(root, **options)


def test_missing_folders_and_splits_are_named(root, tmp_path):
    with pytest.raises(InputError, match=r"found neither data\.root nor"):
        SegmentationFolderDataModule()
    with pytest.raises(InputError, match="the test split is not there"):
        folder(root).test_dataloader()
    with pytest.raises(InputError, match=r"images/train: no folder"):
        folder(tmp_path / "nowhere", class_names=CLASSES).train_dataloader()
