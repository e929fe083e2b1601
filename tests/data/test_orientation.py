"""Images that their EXIF turns: read as viewers show them, and told where nothing shows it."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from lightning_overlock.data.coco_file import read_coco
from lightning_overlock.data.images import read_image
from lightning_overlock.data.label_pairs import compare_sizes
from lightning_overlock.data.orientation import viewed
from lightning_overlock.data.segmentation_folder import SegmentationFolderDataModule
from lightning_overlock.errors import InputError

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    'tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


def save(path, size, orientation, in_xmp=False):
    """Save an image of (width, height) as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    said = {"xmp": XMP.format(orientation).encode()} if in_xmp else {"exif": exif}
    Image.fromarray(pixels).save(path, **said)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("size", [(50, 30), (40, 40)])
def test_the_head_says_what_a_viewer_shows(tmp_path, suffix, size):
    for orientation in range(9):
        path = save(tmp_path / f"a.{suffix}", size, orientation)
        with Image.open(path) as image:
            head = viewed(image)
        with Image.open(path) as image:
            stored = (image.size if suffix != "tif" else size), image.convert("RGB").tobytes()
        assert head.size == read_image(path).size
        turned = orientation > 1 and head.size == stored[0]
        assert head.hides_turn == turned
        if turned and suffix != "tif":  # which Pillow turns by itself
            assert read_image(path).tobytes() != stored[1]


def test_an_orientation_in_xmp_counts_as_it_does_when_the_image_is_read(tmp_path):
    for suffix in ("jpg", "webp"):
        path = save(tmp_path / f"a.{suffix}", (50, 30), 6, in_xmp=True)
        with Image.open(path) as image:
            assert viewed(image) == ((30, 50), 6)
        assert read_image(path).size == (30, 50)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
def test_broken_exif_turns_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (50, 30)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x00broken")
    with Image.open(path) as image:
        assert viewed(image) == ((50, 30), 1)
    assert read_image(path).size == (50, 30)


@pytest.mark.parametrize(
    ("size", "image", "label", "told"),
    [
        ((40, 40), 6, 1, True),  # a square that is turned
        ((40, 40), 6, 6, False),  # and its label map with it
        ((40, 40), 6, 8, True),
        ((40, 40), 1, 6, True),
        ((50, 30), 3, 1, True),  # on its head, of the same size
        ((50, 30), 2, 1, True),
        ((50, 30), 3, 3, False),
        ((50, 30), 1, 1, False),
        ((50, 30), 6, 6, False),
    ],
)
def test_a_turn_that_no_size_tells_is_told_for_label_maps(tmp_path, size, image, label, told):
    pair = save(tmp_path / "a.jpg", size, image), save(tmp_path / "a.png", size, label)
    problems, pixels, hidden_turns = compare_sizes([pair], None)
    assert problems == [None]
    assert pixels == size[0] * size[1]
    assert hidden_turns == ([str(pair[0])] if told else [])


def test_a_turned_tiff_has_the_size_of_its_label_map(tmp_path):
    pair = save(tmp_path / "a.tif", (50, 30), 6), save(tmp_path / "a.png", (30, 50), 1)
    assert compare_sizes([pair], None).problems == [None]


def test_a_segmentation_set_says_what_is_turned(tmp_path):
    for split in ("train", "val"):
        for number, orientation in enumerate((6, 3, 1)):
            save(tmp_path / f"images/{split}/{number}.jpg", (40, 40), orientation)
            labels = np.zeros((40, 40), np.uint8)
            labels[:20] = 1
            (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(tmp_path / f"labels/{split}/{number}.png")
    data = SegmentationFolderDataModule(root=str(tmp_path), num_workers=0)
    told = data.examine("train")
    assert told.startswith("2 images are turned as EXIF says at the same size (")
    assert told.endswith("the label maps are taken for those of the image as viewers show it")
    # The pixels of the image are turned, those of the label map are as they are stored.
    from lightning_overlock.data.loading import Key

    image, labels = data.source("val")[Key(0, 0)]
    with Image.open(tmp_path / "images/val/0.jpg") as stored:
        shown = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal((image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8), shown)
    assert labels[:20].eq(1).all()
    assert labels[20:].eq(0).all()


def coco(folder, size, said, orientation):
    save(folder / "a.jpg", size, orientation)
    entry = {"id": 1, "file_name": "a.jpg", **dict(zip(("width", "height"), said, strict=True))}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    content = {
        "images": [entry],
        "annotations": [box],
        "categories": [{"id": 1, "name": "a"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return read_coco(folder / "a.json", folder)


@pytest.mark.parametrize(
    ("size", "said", "orientation", "told"),
    [
        ((40, 40), (40, 40), 6, True),
        ((50, 30), (50, 30), 3, True),
        ((50, 30), (None, None), 6, True),  # the size is the file's own
        ((50, 30), (30, 50), 6, False),
        ((50, 30), (50, 30), 1, False),
        ((50, 30), (None, None), 1, False),
    ],
)
def test_a_turn_that_no_size_tells_is_told_for_boxes(tmp_path, size, said, orientation, told):
    notes = "; ".join(coco(tmp_path, size, said, orientation).notes)
    expected = (
        "1 image is turned as EXIF says at the same size (a.jpg): "
        "the boxes are taken for those of the image as viewers show it"
    )
    assert notes == (expected if told else "")


def test_images_annotated_as_they_are_stored_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"of another size .* turned by their EXIF") as caught:
        coco(tmp_path, (50, 30), (50, 30), 6)
    assert str(caught.value).endswith("or the EXIF orientation removed from these files")
    assert len(str(caught.value).splitlines()) == 2
