"""Label maps: values, colours and palettes as classes; what is wrong is found before training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from lightning_overlock.data import SegmentationFolderDataModule, label_survey
from lightning_overlock.data.label_maps import LabelCode, label_code, read_labels, read_values
from lightning_overlock.data.label_survey import distinct, sample
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import InputError

BOX = np.zeros((24, 32), np.uint8)
BOX[4:12, 6:20] = 1


def write(root: Path, labels: list[Image.Image], suffix: str = "png", split: str = "train") -> Path:
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(labels):
        Image.new("RGB", label.size, (9, 9, 9)).save(root / f"images/{split}/{number}.png")
        label.save(root / f"labels/{split}/{number}.{suffix}")
    return root


def made(root: Path, label: Image.Image, suffix: str = "png", **options: Any):
    """A data module of eight training and four validation images, all with this label map."""
    write(root, [label] * 8, suffix)
    write(root, [label] * 4, suffix, "val")
    names = options.pop("class_names", ["background", "lesion"])
    return SegmentationFolderDataModule(
        str(root),
        class_names=names,
        crop_size=16,
        resize=(32, 24),
        num_workers=0,
        batch_size=2,
        **options,
    )


def grey(values: Any) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


def refused(data: SegmentationFolderDataModule, *parts: str, stage: str = "fit") -> None:
    with pytest.raises(InputError) as caught:
        data.setup(stage)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for part in parts:
        assert part in message


# Masks that were not made for the classes.


def test_masks_of_0_and_255_are_refused_with_counts_and_the_remedy(tmp_path):
    data = made(tmp_path, grey(BOX * 255))
    refused(
        data,
        f"{tmp_path}/labels/train: in the 8 label maps read (values 0, 255)",
        "only class 'background' occurs, 255 is ignored",
        "'lesion' never does",
        "likely: data.label_values [0, 255]",
    )
    data = made(tmp_path, grey(BOX * 255), label_values=[0, 255])
    data.setup("fit")
    _, labels = next(iter(data.val_dataloader()))
    assert np.array_equal(labels[0].numpy(), BOX)


@pytest.mark.parametrize("names", [["background", "lesion"], ["a", "b", "c"]])
@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ((0, 128), "label_values [0, 128]"),
        ((1, 2), "label_values [1, 2]"),
        ((0, 7), "label_values [0, 7]"),
    ],
)
def test_values_beyond_the_classes_are_counted_before_training(tmp_path, names, values, remedy):
    data = made(tmp_path, grey(np.array(values)[BOX]), class_names=names)
    if max(values) < len(names):
        data.setup("fit")  # class 0 is not there, which is said
        return
    strange = [value for value in values if value >= len(names)]
    refused(
        data,
        f"8 of 8 label maps read hold values that are no class: {strange[0]} (first 0.png)",
        f"expected 0 to {len(names) - 1} for {len(names)} classes",
    )
    if len(names) == 2:
        refused(data, f"likely: data.{remedy}")


def test_classes_that_begin_at_1_beside_an_unlabelled_0(tmp_path):
    data = made(tmp_path, grey(np.arange(3).repeat(8)[:, None] * np.ones((1, 8))))
    refused(data, "values that are no class: 2", "likely: data.reduce_zero_label true")
    made(
        tmp_path, grey(np.arange(3).repeat(8)[:, None] * np.ones((1, 8))), reduce_zero_label=True
    ).setup("fit")


def test_masks_of_one_class_or_of_none_are_refused(tmp_path):
    refused(
        made(tmp_path, grey(BOX * 0)), "(values 0) only class 'background' occurs", "'lesion' never"
    )
    refused(made(tmp_path, grey(BOX * 0 + 255)), "no class occurs, 255 is ignored")


def test_validation_masks_encoded_otherwise_than_training_masks_are_refused(tmp_path):
    data = made(tmp_path, grey(BOX))
    write(tmp_path, [grey(BOX * 255)] * 4, split="val")
    refused(data, "labels/val: in the 4 label maps read (values 0, 255)", "label_values [0, 255]")
    refused(data, "labels/val", stage="validate")


def test_a_class_that_never_occurs_among_others_is_told(tmp_path):
    data = made(tmp_path, grey(BOX), class_names=["a", "b", "c", "d"])
    assert data.examine("train") == "none of the 8 label maps read has the classes c, d"


def test_as_many_values_as_classes_with_255_among_them_are_a_question(tmp_path):
    mixed = BOX.copy()
    mixed[0] = 255
    names = ["a", "b", "c"]
    refused(
        made(tmp_path, grey(mixed), class_names=names),
        "as many values as there are classes (0, 1, 255), but not 'c', 255 is ignored",
        "likely: data.label_values [0, 1, 255]",
        "if 255 is to be ignored: data.label_values [0, 1, 2]",
    )
    data = made(tmp_path, grey(mixed), class_names=names, label_values=[0, 1, 2])
    assert data.examine("train").startswith("none of the 8 label maps read has the class c")
    made(tmp_path, grey(mixed), class_names=names, label_values=[0, 1, 255]).setup("fit")


def test_negative_values_and_numbers_of_objects_are_no_classes(tmp_path):
    label = Image.fromarray(BOX.astype(np.int32) * -1)
    refused(made(tmp_path / "a", label, "tif"), "values that are no class: -1")
    label = Image.fromarray(np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    with pytest.raises(InputError, match="likely: numbers of objects"):
        made(tmp_path / "b", label, class_names=None)


def test_names_of_which_none_match_are_listed(tmp_path):
    data = made(tmp_path, grey(BOX))
    for path in (tmp_path / "labels/train").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    refused(data, "no images with label maps", "found 0.png, 1.png", "; 0_mask.png, 1_mask.png")


def test_colours_are_named_and_can_be_the_classes(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    data = made(tmp_path, Image.fromarray(colours[BOX]))
    refused(
        data,
        "labels/train/0.png: 2 colours ((0, 0, 0), (255, 0, 0)), no class number per pixel",
        "(8 of 8 label maps read)",
        "data.label_values '[[0, 0, 0], [255, 0, 0], …]'",
    )
    data = made(tmp_path, Image.fromarray(colours[BOX]), label_values=[(0, 0, 0), (255, 0, 0)])
    data.setup("fit")
    _, labels = next(iter(data.val_dataloader()))
    assert np.array_equal(labels[0].numpy(), BOX)
    assert data.palette == [(0, 0, 0), (255, 0, 0)]
    assert np.array_equal(np.asarray(data.label_image(BOX)), colours[BOX])
    data = made(tmp_path, Image.fromarray(colours[BOX]), label_values=[(0, 0, 0), (0, 255, 0)])
    refused(data, "values that are no class: 1 colours: (255, 0, 0)")


def test_grey_saved_as_colours_has_its_values(tmp_path):
    for mode in ("RGB", "RGBA", "LA"):
        grey(BOX).convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_values(tmp_path / f"{mode}.png"), BOX)
    image = grey(BOX).convert("RGBA")
    image.putalpha(grey(BOX * 255))
    image.save(tmp_path / "clear.png")
    with pytest.raises(CorruptImage, match="some of them transparent"):
        read_values(tmp_path / "clear.png")


def palette(colours: list[int], values: Any) -> Image.Image:
    image = Image.fromarray(np.asarray(values, np.uint8), "L")
    image.putpalette(colours)
    return image


def test_palettes_that_differ_are_refused_and_their_colours_can_be_the_classes(tmp_path):
    red, blue = [255, 0, 0], [0, 0, 255]
    data = made(tmp_path, palette(red + blue, BOX))
    data.setup("fit")  # places in one palette are class numbers
    assert data.palette == [(255, 0, 0), (0, 0, 255)]
    palette(blue + red, 1 - BOX).save(tmp_path / "labels/train/3.png")
    refused(
        data,
        "0 is (255, 0, 0) in the palette of",
        "0.png, but (0, 0, 255) in that of",
        "3.png",
        "data.label_values with the colours",
    )
    data = made(tmp_path, palette(red + blue, BOX))
    write(tmp_path, [palette(blue + red, BOX)] * 4, split="val")
    refused(data, "0 is (255, 0, 0) in the palette of", "labels/val/0.png")
    data = made(tmp_path, palette(red + blue, BOX), label_values=[(255, 0, 0), (0, 0, 255)])
    palette(blue + red, 1 - BOX).save(tmp_path / "labels/train/3.png")
    data.setup("fit")
    source = data.source("train")
    for pair in source.pairs:
        labels = read_labels(tmp_path / "labels/train" / pair[1].decode(), source.code)
        assert np.array_equal(labels, BOX)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_jpeg_masks_are_refused(tmp_path, suffix):
    refused(
        made(tmp_path, grey(BOX * 255), suffix),
        f"0.{suffix}: a label map saved as JPEG, which changes values",
        "(8 of 8 label maps read)",
    )


def test_blurred_masks_are_refused(tmp_path):
    blurred = grey(BOX * 255).filter(ImageFilter.GaussianBlur(3))
    refused(made(tmp_path, blurred), "8 of 8", "resized with values in between")


@pytest.mark.parametrize("suffix", ["tif", "bmp", "webp", "gif", "pgm"])
def test_other_formats_without_loss_are_label_maps(tmp_path, suffix):
    if suffix == "webp":
        made(tmp_path, grey(BOX))
        for path in tmp_path.glob("labels/*/*.png"):
            Image.open(path).save(path.with_suffix(".webp"), lossless=True)
            path.unlink()
        data = SegmentationFolderDataModule(str(tmp_path), class_names=["a", "b"])
    else:
        data = made(tmp_path, grey(BOX), suffix)
    data.setup("fit")
    path = next((tmp_path / "labels/train").iterdir())
    assert np.array_equal(read_values(path), BOX)


def test_1_bit_16_bit_and_float_masks(tmp_path):
    made(tmp_path, Image.fromarray(BOX.astype(bool))).setup("fit")
    made(tmp_path, Image.fromarray(BOX.astype(np.uint16))).setup("fit")
    data = made(tmp_path, Image.fromarray(BOX.astype(np.uint16) * 65535))
    refused(data, "values that are no class: 65535", "label_values [0, 65535]")
    made(tmp_path, Image.fromarray(BOX.astype(np.uint16) * 65535), label_values=[0, 65535]).setup(
        "fit"
    )
    Image.fromarray(BOX.astype(np.float32)).save(tmp_path / "a.tif")
    assert np.array_equal(read_values(tmp_path / "a.tif"), BOX)
    Image.fromarray(BOX * np.float32(0.5)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=r"pixels with fractions, such as 0\.5"):
        read_values(tmp_path / "a.tif")
    grey(BOX).save(tmp_path / "b.tif", save_all=True, append_images=[grey(BOX)])
    with pytest.raises(CorruptImage, match="a label map of several pages"):
        read_values(tmp_path / "b.tif")


def test_a_mask_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    grey(BOX).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_values(tmp_path / "a.png"), np.rot90(BOX, -1))


def test_without_a_checkpoint_predictions_have_the_values_that_were_given(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    options = {"predict_dir": str(tmp_path), "num_workers": 0}
    for chosen, expected in (
        ({}, [0, 1]),
        ({"reduce_zero_label": True}, [1, 2]),
        ({"label_values": [0, 700]}, [0, 700]),
    ):
        data = SegmentationFolderDataModule(**chosen, **options)
        assert data.palette == []
        assert np.asarray(data.label_image(np.array([[0, 1]]))).tolist() == [expected]


def test_masks_that_are_ignored_whole_are_counted(tmp_path):
    data = made(tmp_path, grey(BOX))
    grey(BOX * 0 + 255).save(tmp_path / "labels/train/3.png")
    refused(data, "1 of 8 label maps would be left out: 1 whose pixels are all ignored", "3.png")
    data = made(tmp_path, grey(BOX), max_left_out=0.2)
    grey(BOX * 0 + 255).save(tmp_path / "labels/train/3.png")
    assert "1 whose pixels are all ignored" in data.examine("train")


def test_classes_without_names_are_numbers_without_large_gaps(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(InputError, match=r"hold 0, 255, and 255 is ignored\n.*\nlikely: data.lab"):
        made(tmp_path, grey(BOX * 255), class_names=None)
    with pytest.raises(InputError, match=r"hold 0, 128\nexpected at least two classes"):
        made(tmp_path, grey(BOX * 128), class_names=None)
    assert made(tmp_path, grey(BOX * 2), class_names=None).class_names == ["0", "1", "2"]
    data = made(tmp_path, grey(BOX * 255), class_names=None, label_values=[0, 255])
    assert data.class_names == ["0", "255"]


def test_labels_may_be_missing_for_the_test_images_only(tmp_path):
    data = made(tmp_path, grey(BOX))
    write(tmp_path, [grey(BOX)] * 2, split="test")
    for path in (tmp_path / "labels/test").iterdir():
        path.unlink()
    (tmp_path / "labels/test").rmdir()
    data = made(tmp_path, grey(BOX))
    data.setup("fit")
    data.setup("predict")
    names = [Path(name).name for _, names in data.predict_dataloader() for name in names]
    assert names == ["0.png", "1.png"]
    refused(data, "labels/test: no folder", stage="test")


# Sampling.


def test_of_many_or_large_maps_a_spread_sample_is_looked_at(tmp_path, monkeypatch):
    paths = [Path(str(number)) for number in range(1000)]
    assert sample(paths, 1000) == paths
    chosen = sample(paths, 1000 * 2_000_000)  # 100 of them fit
    assert len(chosen) == 100
    assert (chosen[0], chosen[-1]) == (paths[0], paths[-1])
    assert len(sample(paths, 10**12)) == label_survey.MAPS_READ
    assert sample([], 0) == []
    data = made(tmp_path, grey(BOX))
    monkeypatch.setattr(label_survey, "PIXELS_READ", 2 * BOX.size)
    monkeypatch.setattr(label_survey, "MAPS_READ", 2)
    assert data.examine("train") == (
        "the values of 2 of 8 label maps were looked at, and each is when it is read"
    )
    grey(BOX * 77).save(tmp_path / "labels/train/3.png")  # not among them
    data = made(tmp_path, grey(BOX))
    grey(BOX * 77).save(tmp_path / "labels/train/3.png")
    data.setup("fit")
    with pytest.raises(InputError, match=r"labels/train/3\.png: the value 77 is no class"):
        for _ in data.train_dataloader():
            pass


def test_a_rare_class_that_no_sampled_map_has_is_looked_for_in_all(tmp_path, monkeypatch):
    data = made(tmp_path, grey(BOX * 0))
    grey(BOX).save(tmp_path / "labels/train/3.png")
    monkeypatch.setattr(label_survey, "PIXELS_READ", 1)
    monkeypatch.setattr(label_survey, "MAPS_READ", 2)
    data.setup("fit")  # one class alone would stop it


@given(st.lists(st.sampled_from([-(2**31), -1, 0, 1, 2, 255, 65535, 65536, 2**24 - 1]), min_size=1))
def test_the_distinct_values_are_those_of_numpy(values):
    assert distinct(np.array([values], np.int32)) == sorted(set(values))


# The code of the classes.


@given(
    st.lists(st.integers(0, 65535), min_size=1, max_size=6, unique=True).filter(
        lambda values: 255 not in values
    ),
    st.data(),
)
def test_what_is_written_is_read_as_the_same_classes(values, data):
    code = label_code(len(values), False, values)
    labels = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), min_size=4, max_size=4)))
    pixels = np.asarray(code.encode(labels.reshape(2, 2).astype(np.uint8)), dtype=np.int32)
    found, unknown = code.decode(pixels)
    assert np.array_equal(found.ravel(), labels)
    assert not unknown.any()
    found, unknown = code.decode(np.array([[255, 70000]], np.int32))
    assert found.tolist() == [[255, 255]]
    assert unknown.tolist() == [[False, True]]


@given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6, unique=True), st.data()
)
def test_colours_are_read_as_the_classes_they_were_written_for(colours, data):
    code = label_code(len(colours), False, colours)
    labels = np.array(data.draw(st.lists(st.integers(0, len(colours) - 1), min_size=4, max_size=4)))
    image = code.encode(labels.reshape(2, 2).astype(np.uint8))
    assert [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3)] == [
        colours[label] for label in labels
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0], "has 1 values for 2 classes"),
        ([0, 0], "has 1 values for 2 classes"),
        ([0, 70000], r"label_values is \[0, 70000\]"),
        ([0, -1], r"label_values is \[0, -1\]"),
        ([(0, 0, 0), (0, 0, 256)], "label_values is"),
        ([(0, 0, 0), 1], "label_values is"),
        ([(0, 0), (0, 1)], "label_values is"),
    ],
)
def test_label_values_that_fit_no_classes_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        label_code(2, False, values)


def test_values_and_a_reduced_zero_exclude_each_other():
    with pytest.raises(InputError, match="expected one of them"):
        label_code(2, True, [0, 1])
    with pytest.raises(InputError, match="found 255 classes; 255 is the label that is ignored"):
        LabelCode(255, True)
