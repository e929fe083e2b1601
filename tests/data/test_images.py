"""Which files of a folder are images, and what is read from each kind of file."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from shared import truncate

from lightning_overlock.data.images import (
    MAX_PIXELS,
    find_images,
    image_suffixes,
    open_image,
    predict_files,
    read_image,
)
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import InputError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


# Which files are images.


def test_the_suffixes_are_those_of_what_pillow_reads():
    suffixes = image_suffixes()
    assert suffixes >= {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib"}
    assert suffixes >= {".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".j2k"}
    assert suffixes >= {".tga", ".ico", ".qoi", ".mpo", ".psd"}
    assert not suffixes & {".pdf", ".eps", ".ps", ".h5", ".hdf", ".mpg", ".grib", ".wmf", ".txt"}


@pytest.mark.parametrize(
    "suffix",
    sorted(
        {
            ".jpg",
            ".jfif",
            ".jpe",
            ".png",
            ".gif",
            ".bmp",
            ".webp",
            ".avif",
            ".tif",
            ".ppm",
            ".pgm",
            ".jp2",
            ".tga",
            ".ico",
            ".qoi",
            ".mpo",
            ".pcx",
            ".sgi",
        }
    ),
)
def test_an_image_of_each_suffix_is_found_in_any_case_and_read(tmp_path, suffix):
    if suffix in {".avif", ".webp", ".jp2"}:
        library = {".avif": "avif", ".webp": "webp", ".jp2": "jpg_2000"}[suffix]
        if not features.check(library):
            pytest.skip(f"Pillow was built without {library}")
    path = tmp_path / f"a{suffix}"
    Image.new(
        "L" if suffix == ".pgm" else "RGB", (16, 16), 200 if suffix == ".pgm" else (200,) * 3
    ).save(path)
    path.rename(tmp_path / f"A{suffix.upper()}")
    assert find_images(tmp_path).files == [f"A{suffix.upper()}"]
    values = np.asarray(read_image(tmp_path / f"A{suffix.upper()}"))
    assert np.abs(values.astype(int) - 200).max() <= 3


def test_a_plugin_of_pillow_adds_its_suffixes(tmp_path, monkeypatch):
    make(tmp_path, "a.heic")
    assert find_images(tmp_path).left_out.counts == {"with the suffix .heic": 1}
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: None, None))
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert find_images(tmp_path).files == ["a.heic"]


def test_what_the_system_and_notebooks_leave_behind_is_passed_over(tmp_path):
    make(tmp_path, "a.jpg", "sub/b.png", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini")
    make(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg", "sub/@eaDir/b.jpg")
    make(tmp_path, ".ipynb_checkpoints/a-checkpoint.jpg", "Icon\r", "$RECYCLE.BIN/c.jpg")
    found = find_images(tmp_path)
    assert found.files == ["a.jpg", "sub/b.png"]
    assert found.left_out.total == 0
    assert found.passed_over.counts == {"hidden or of the system": 10}
    assert found.summary() == "passed over 10 hidden or of the system ($RECYCLE.BIN)"


def test_what_is_left_out_is_counted_by_suffix_and_captions_are_not(tmp_path):
    make(tmp_path, *(f"{n}.jpg" for n in range(5)), *(f"{n}.txt" for n in range(3)))
    make(tmp_path, "x.heic", "deep/y.HEIC", "z.txt", "README", "photo.jpg_large", "odd.a\nb")
    found = find_images(tmp_path)
    assert len(found.files) == 5
    assert found.left_out.counts == {
        "with the suffix .heic": 2,
        "with the suffix .txt": 1,
        "without a suffix": 1,
        "with the suffix .jpg_large": 1,
        "with the suffix .a\\nb": 1,
    }
    assert found.passed_over.counts == {"with the suffix .txt beside an image of the same name": 3}
    assert found.summary().startswith("used 5 of 11 files, 6 left out: 2 with the suffix .heic (")
    assert "\n" not in found.summary()


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "set/cat/0.jpg", "elsewhere/1.jpg", "elsewhere/deep/2.jpg")
    cat = tmp_path / "set/cat"
    (cat / "far").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (cat / "3.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    assert find_images(cat).files == ["0.jpg", "3.jpg", "far/1.jpg", "far/deep/2.jpg"]
    (cat / "self").symlink_to(cat, target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(cat, target_is_directory=True)
    (cat / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = find_images(cat)
    assert found.files == ["0.jpg", "3.jpg", "far/1.jpg", "far/deep/2.jpg"]
    assert found.passed_over.counts == {"linked in a circle": 2}
    assert found.left_out.counts == {"that are no files, or links to nothing": 1}


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert find_images(tmp_path).left_out.total == 1


def test_names_that_are_no_utf_8_are_found_and_printable_in_messages(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / name, format="PNG")
    assert find_images(tmp_path).files == [name]
    assert read_image(tmp_path / name).size == (4, 4)
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(CorruptImage) as caught:
        read_image(tmp_path / name)
    assert "caf\\udce9.jpg: no intact image" in str(caught.value).encode().decode()


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    make(tmp_path, "a/b.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(InputError, match=r"this folder cannot be read \(Permission denied\)"):
        find_images(tmp_path)


def test_a_file_or_a_folder_is_predicted(tmp_path):
    make(tmp_path, "a/b.jpg", "a/c/d.PNG")
    assert predict_files(tmp_path / "a")[1].files == ["b.jpg", "c/d.PNG"]
    folder, found = predict_files(str(tmp_path / "a/b.jpg"))
    assert (folder, found.files, found.summary()) == (tmp_path / "a", ["b.jpg"], "")


# What is in them.


def pixel(path: Path) -> list[int]:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)[0, 0].tolist()


def test_grey_palette_and_cmyk_images_keep_their_colours(tmp_path):
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 120, 240])
    palette.save(tmp_path / "palette.png")
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    assert pixel(tmp_path / "grey.png") == [77, 77, 77]
    assert pixel(tmp_path / "bit.png") == [255, 255, 255]
    assert pixel(tmp_path / "palette.png") == [10, 120, 240]
    assert pixel(tmp_path / "cmyk.tif") == [0, 255, 255]


def test_transparent_parts_lie_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (200, 100, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 120, 240])
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear", "grey", "palette"):
        assert pixel(tmp_path / f"{name}.png") == [255, 255, 255]
    expected = [round(c * 128 / 255 + 255 * (127 / 255)) for c in (200, 100, 0)]
    assert np.allclose(pixel(tmp_path / "half.png"), expected, atol=1)


def test_16_bit_values_are_scaled_not_cut_off(tmp_path):
    values = np.array([[65535, 32896, 257, 0]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name))[0, :, 1].tolist() == [255, 128, 1, 0]
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "int.tif")
    assert np.asarray(read_image(tmp_path / "int.tif"))[0, :, 1].tolist() == [255, 128, 1, 0]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_unknown_range_are_no_image(tmp_path, kind):
    Image.fromarray(np.array([[-5, 10**6]], dtype=kind)).save(tmp_path / "odd.tif")
    with pytest.raises(CorruptImage, match=r"odd\.tif: no intact image \(.*(range|16 bits)"):
        read_image(tmp_path / "odd.tif")


def test_images_are_turned_as_exif_says(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = np.asarray(read_image(tmp_path / "turned.png"))
    assert image.shape == (16, 8, 3)
    assert (image[:8] == 255).all()
    assert (image[8:] == 0).all()


@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_of_an_animation_or_a_stack_the_first_picture_counts(tmp_path, suffix, pages):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")[:pages]]
    more = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pictures[1:], **more)
    assert pixel(tmp_path / f"a.{suffix}") == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 77, "png", [77] * 3),
        ("1", 1, "tif", [255] * 3),
        ("1", 0, "pbm", [0] * 3),
        ("LA", (77, 255), "png", [77] * 3),
        ("RGBA", (10, 20, 30, 255), "tif", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), "webp", [255] * 3),
        ("CMYK", (0, 255, 255, 0), "jpg", [255, 0, 0]),
        ("CMYK", (0, 255, 255, 0), "tif", [255, 0, 0]),
        ("YCbCr", (76, 85, 255), "tif", [254, 0, 0]),
        ("LAB", (255, 128, 128), "tif", [255, 255, 255]),
        ("LAB", (0, 128, 128), "tif", [0, 0, 0]),
        ("I;16", 257 * 77, "png", [77] * 3),
        ("I;16B", 257 * 77, "tif", [77] * 3),
        ("I", 257 * 77, "tif", [77] * 3),
        ("I", 257 * 77, "pgm", [77] * 3),
    ],
)
def test_every_mode_has_its_colours(tmp_path, mode, value, suffix, expected):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    if suffix == "jpg":
        options = {"quality": 100}
    Image.new(mode, (8, 8), value).save(path, **options)
    assert np.abs(np.array(pixel(path)) - expected).max() <= 2


def test_16_bit_colours_are_scaled(tmp_path):
    pixels = (np.array([[[65535, 257 * 77, 0]]]).repeat(4, 1)).astype(">u2")
    head = b"P6 4 1 65535\n"
    (tmp_path / "a.ppm").write_bytes(head + pixels.tobytes())
    assert pixel(tmp_path / "a.ppm") == [255, 77, 0]


def test_a_palette_with_one_colour_clear_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 120, 240])
    image.save(tmp_path / "a.gif", transparency=1)
    assert pixel(tmp_path / "a.gif") == [255, 255, 255]
    image.save(tmp_path / "b.gif", transparency=0)
    assert pixel(tmp_path / "b.gif") == [10, 120, 240]


# Broken and large files.


def write_image(path: Path, colour: tuple[int, int, int]) -> None:
    Image.new("RGB", (48, 40), colour).save(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
def test_truncated_and_foreign_files_are_named_with_the_reason(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    write_image(path, (100, 100, 100))
    truncate(path)
    with pytest.raises(CorruptImage, match=rf"broken\.{suffix}: no intact image \(.+\)\nexpected"):
        read_image(path)
    path.write_text("<html>404</html>")
    with pytest.raises(CorruptImage, match=rf"broken\.{suffix}: no intact image \(no known format"):
        read_image(path)


def test_a_file_that_is_gone_is_no_corrupt_image(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png: No such file") as caught:
        read_image(tmp_path / "gone.png")
    assert not isinstance(caught.value, CorruptImage)


def test_an_empty_file_is_called_empty(tmp_path):
    make(tmp_path, "a.png")
    with pytest.raises(CorruptImage, match=r"a\.png: no intact image \(the file is empty\)\n"):
        read_image(tmp_path / "a.png")


def test_a_folder_with_the_name_of_an_image_is_no_corrupt_image(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a\.png: Is a directory"):
        read_image(tmp_path / "a.png")


def test_more_pixels_than_allowed_are_named_with_the_option(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (200, 100)).save(path)
    assert read_image(path, 20_000).size == (200, 100)
    with pytest.raises(CorruptImage) as caught:
        read_image(path, 19_999)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}: 200 x 100 pixels are more than 19,999, the limit")
    assert first.endswith("the limit data.max_image_pixels")
    assert "higher limit" in second


def test_the_limit_is_that_of_pillow_and_can_be_lifted_without_changing_pillows(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert MAX_PIXELS == 2 * (1024 * 1024 * 1024 // 4 // 3)
    path = tmp_path / "a.png"
    Image.new("1", (200, 100)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path, None).size == (200, 100)
        with open_image(path), open_image(path):  # as several threads do
            assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
