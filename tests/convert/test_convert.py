"""`lightning data convert`: what it writes, read by torchvision, pycocotools and numpy."""

import base64
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection, VOCSegmentation

from lightning_overlock.cli.main import main
from lightning_overlock.data import CocoDataModule, SegmentationFolderDataModule
from lightning_overlock.data.loading import Key

VOC = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip


def convert(form, to, root, output, *more):
    line = ["data", "convert", form, "--to", to, "--root", str(root), "--output", str(output)]
    return main([*line, "--cut_validation", "0", *more])


def converted(form, to, root, output, *more):
    assert convert(form, to, root, output, *more) == 0
    return output


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert convert(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3
    return " ".join(lines)


def picture(path, width=40, height=30, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco(output, part="train"):
    return COCO(str(output / f"{part}.json"))


def labels_of(path):
    return np.asarray(Image.open(path))


# Pascal VOC


def write_voc_xml(path, image, size, objects):
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = image
    entry = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(entry, name).text = str(value)
    for label, box, difficult in objects:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = label
        ElementTree.SubElement(entry, "difficult").text = str(difficult)
        sides = ElementTree.SubElement(entry, "bndbox")
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(sides, name).text = str(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path)


@pytest.fixture
def voc(tmp_path):
    """Two training images and a validation image, with boxes and with label maps."""
    year = tmp_path / "VOCdevkit/VOC2012"
    objects = {
        "2008_000001": [("dog", (1, 1, 40, 30), 0), ("cat", (5, 6, 5, 9), 1)],
        "2008_000002": [],
        "2008_000003": [("person", (10, 11, 20, 30), 0)],
    }
    for seed, (name, found) in enumerate(objects.items()):
        picture(year / f"JPEGImages/{name}.jpg", seed=seed)
        write_voc_xml(year / f"Annotations/{name}.xml", f"{name}.jpg", (40, 30), found)
        values = np.zeros((30, 40), np.uint8)
        values[5:9, 6:20], values[9, 6:20] = seed + 1, 255
        label_map = Image.fromarray(values, mode="P")
        label_map.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        (year / "SegmentationClass").mkdir(exist_ok=True)
        label_map.save(year / f"SegmentationClass/{name}.png")
    for task in ("Main", "Segmentation"):
        (year / f"ImageSets/{task}").mkdir(parents=True)
        (year / f"ImageSets/{task}/train.txt").write_text("2008_000001\n2008_000002\n")
        (year / f"ImageSets/{task}/val.txt").write_text("2008_000003\n")
    (year / "ImageSets/Main/dog_train.txt").write_text("2008_000001 1\n")
    return tmp_path


def test_boxes_of_voc_are_those_that_torchvision_reads(voc, tmp_path, capsys):
    output = converted("voc", "coco", voc, tmp_path / "out")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "train: used 2 of 2 images; used 2 of 2 objects"
    assert told[-1].startswith("20 classes; train with --data CocoDataModule --data.train_json ")
    for part in ("train", "val"):
        file = coco(output, part)
        assert [c["name"] for c in file.loadCats(file.getCatIds())] == VOC
        reference = VOCDetection(str(voc), "2012", part)
        assert len(file.imgs) == len(reference)
        for number, (image, target) in enumerate(reference, 1):
            assert file.imgs[number]["file_name"] == target["annotation"]["filename"]
            assert (file.imgs[number]["width"], file.imgs[number]["height"]) == image.size
            own = file.loadAnns(file.getAnnIds(number, iscrowd=None))
            entries = target["annotation"].get("object", [])
            assert len(own) == len(entries)
            for annotation, entry in zip(own, entries, strict=True):
                sides = {side: int(place) for side, place in entry["bndbox"].items()}
                # Pixels from 1, the last one included
                columns = range(sides["xmin"] - 1, sides["xmax"])
                rows = range(sides["ymin"] - 1, sides["ymax"])
                assert annotation["bbox"] == [columns[0], rows[0], len(columns), len(rows)]
                assert annotation["area"] == len(columns) * len(rows)
                assert file.cats[annotation["category_id"]]["name"] == entry["name"]
                assert annotation["iscrowd"] == int(entry["difficult"])


def test_the_coco_data_module_reads_what_was_converted(voc, tmp_path):
    output = converted("voc", "coco", voc, tmp_path / "out")
    data = CocoDataModule(
        **{f"{part}_json": str(output / f"{part}.json") for part in ("train", "val")},
        **{f"{part}_images": str(output / part) for part in ("train", "val")},
        num_workers=0,
        hflip=0.0,
    )
    assert data.class_names == VOC
    _, target = data.source("train")[Key(0, 0)]
    assert target["labels"].tolist() == [1 + VOC.index("dog")]  # the difficult cat is none
    assert target["boxes"].shape == (1, 4)


def test_masks_of_voc_are_those_that_torchvision_reads(voc, tmp_path):
    output = converted("voc", "masks", voc, tmp_path / "out")
    for part in ("train", "val"):
        for image, label_map in VOCSegmentation(str(voc), "2012", part):
            (path,) = [
                p
                for p in (output / "images" / part).iterdir()
                if np.array_equal(np.asarray(Image.open(p)), np.asarray(image))
            ]
            found = labels_of(output / "labels" / part / f"{path.stem}.png")
            assert np.array_equal(found, np.asarray(label_map))
    data = SegmentationFolderDataModule(str(output), num_workers=0)
    assert data.class_names == ["background", *VOC]
    _, labels = data.source("val")[Key(0, 0)]
    assert set(labels.unique().tolist()) == {0, 3, 255}


def test_files_of_labelimg_need_no_lists(tmp_path, capsys):
    root = tmp_path / "own"
    for number in range(10):
        picture(root / f"{number}.png", seed=number)
        write_voc_xml(root / f"{number}.xml", f"{number}.png", (0, 0), [("b", (2, 3, 9, 9), 0)])
    output = tmp_path / "out"
    assert convert("voc", "coco", root, output, "--cut_validation", "0.2") == 0
    images = [coco(output, part).imgs for part in ("train", "val")]
    assert [len(found) for found in images] == [8, 2]
    names = [i["file_name"] for found in images for i in found.values()]
    assert sorted(names) == [f"{number}.png" for number in range(10)]
    assert coco(output).cats[1]["name"] == "b"


def test_what_voc_has_too_little_of_is_counted(tmp_path, capsys):
    root = tmp_path / "own"
    bad = [
        ("a", (9, 9, 3, 12), 0),  # no area
        ("a", (100, 9, 130, 12), 0),  # outside
        ("a", ("x", 9, 13, 12), 0),
        ("", (1, 1, 5, 5), 0),
        ("a", (35, 20, 60, 60), 0),  # reaches out
        ("a", ("nan", 9, 13, 12), 0),
    ]
    for number in range(4):
        picture(root / f"{number}.jpg", seed=number)
        write_voc_xml(root / f"{number}.xml", "", (40, 30), bad if number == 0 else [])
    write_voc_xml(root / "1.xml", "", (30, 40), [])
    write_voc_xml(root / "gone.xml", "gone.jpg", (40, 30), [])
    (root / "2.xml").write_text("<annotation>")
    (root / "3.jpg").write_bytes(b"no image")
    assert "of 5 images would be left out" in refusal(capsys, "voc", "coco", root, tmp_path / "o")
    assert not (tmp_path / "o").exists()
    output = converted("voc", "coco", root, tmp_path / "o", "--data.max_left_out", "1")
    told = capsys.readouterr().out
    assert "used 1 of 5 images, 4 left out: " in told
    assert "used 1 of 6 objects, 5 left out: " in told
    (annotation,) = coco(output).anns.values()
    assert annotation["bbox"] == [34, 19, 6, 11]


# YOLO


def yolo(root, labels, size=(40, 30), yaml_file=True, names=("ant", "bee")):
    for number, lines in enumerate(labels):
        picture(root / f"images/train/{number}.jpg", *size, seed=number)
        if lines is not None:
            path = root / f"labels/train/{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines))
    if yaml_file:
        content = {"train": "images/train", "names": dict(enumerate(names))}
        (root / "data.yaml").write_text(yaml.safe_dump(content))
    else:
        (root / "classes.txt").write_text("\n".join(names))
    return root


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_boxes_of_yolo_come_back(tmp_path_factory, data):
    """Whatever the sizes: boxes in whole pixels are written as shares, and found again."""
    folder = tmp_path_factory.mktemp("yolo")
    width, height = data.draw(st.integers(8, 60)), data.draw(st.integers(8, 60))

    def box():
        left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        return (
            left,
            top,
            data.draw(st.integers(1, width - left)),
            data.draw(st.integers(1, height - top)),
        )

    boxes = [(data.draw(st.integers(0, 1)), box()) for _ in range(data.draw(st.integers(1, 5)))]
    lines = [
        f"{label} {(x + w / 2) / width:.8f} {(y + h / 2) / height:.8f} {w / width:.8f} "
        f"{h / height:.8f}"
        for label, (x, y, w, h) in boxes
    ]
    by_yaml = data.draw(st.booleans())
    root = yolo(folder / "in", [lines, None], (width, height), yaml_file=by_yaml)
    file = coco(converted("yolo", "coco", root, folder / "out"))
    assert [image["width"] for image in file.imgs.values()] == [width, width]
    found = [(a["category_id"] - 1, a["bbox"]) for a in file.anns.values()]
    assert [label for label, _ in found] == [label for label, _ in boxes]
    for (_, own), (_, drawn) in zip(found, boxes, strict=True):
        np.testing.assert_allclose(own, drawn, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_outlines_of_yolo_are_drawn_where_they_are(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("yolo")
    width, height = data.draw(st.integers(24, 60)), data.draw(st.integers(24, 60))
    # Convex polygons around a place: any set of points in order of their angle
    centre = data.draw(st.integers(8, width - 8)), data.draw(st.integers(8, height - 8))
    angles = sorted(data.draw(st.lists(st.integers(0, 71), min_size=5, max_size=9, unique=True)))
    radius = data.draw(st.integers(4, 8))
    points = [
        (centre[0] + radius * np.cos(a * np.pi / 36), centre[1] + radius * np.sin(a * np.pi / 36))
        for a in angles
    ]
    line = "1 " + " ".join(f"{x / width:.8f} {y / height:.8f}" for x, y in points)
    root = yolo(folder / "in", [[line]], (width, height))
    file = coco(converted("yolo", "coco", root, folder / "out"))
    (annotation,) = file.anns.values()
    mask = file.annToMask(annotation)
    np.testing.assert_allclose(
        np.reshape(annotation["segmentation"][0], (-1, 2)), points, atol=2e-3
    )
    labels = labels_of(converted("yolo", "masks", root, folder / "o2") / "labels/train/0.png")
    assert set(np.unique(labels)) <= {0, 2}
    assert np.array_equal(labels == 2, mask > 0)
    # PIL's own drawing, on a finer grid; pixels of the edge may differ
    fine = Image.new("1", (8 * width, 8 * height))
    ImageDraw.Draw(fine).polygon([(8 * x, 8 * y) for x, y in points], fill=1)
    share = np.asarray(fine, float).reshape(height, 8, width, 8).mean(axis=(1, 3))
    assert not (mask[share > 0.95] == 0).any()
    assert not (mask[share < 0.05] == 1).any()
    assert annotation["area"] == mask.sum() or annotation["area"] > 0 == mask.sum()


def test_layouts_of_ultralytics_and_roboflow(tmp_path):
    root = yolo(tmp_path / "in", [["0 .5 .5 .5 .5"]])
    picture(root / "valid/images/v.jpg")
    (root / "valid/labels").mkdir()
    (root / "valid/labels/v.txt").write_text("1 .5 .5 .2 .2")
    picture(root / "more/images/m.jpg")
    (root / "list.txt").write_text("./more/images/m.jpg\n")
    content = {
        "path": "/somewhere/else",
        "train": ["images/train", "list.txt"],
        "val": "../valid/images",
        "names": ["ant", "bee"],
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    output = converted("yolo", "coco", root, tmp_path / "out")
    assert [i["file_name"] for i in coco(output).imgs.values()] == ["0.jpg", "m.jpg"]
    assert [a["category_id"] for a in coco(output, "val").anns.values()] == [2]


def test_bad_lines_of_yolo_are_counted(tmp_path, capsys):
    lines = [
        "0 .5 .5 .2 .2",
        "7 .5 .5 .2 .2",
        "0.5 .5 .5 .2 .2",
        "0 .5 .5 .2",
        "0 .5 .5 .2 .2 .9",
        "0 a b c d",
        "0 .5 .5 0 .2",
        "0 2 2 .1 .1",
        "0 nan .5 .2 .2",
        "0 .1 .1 .2 .2 .1 .1 .2",
        "1 2 2 3 2 3 3",
        "",
    ]
    root = yolo(tmp_path / "in", [lines])
    assert "10 of 11 objects would be left out" in refusal(
        capsys, "yolo", "coco", root, tmp_path / "o"
    )
    output = converted("yolo", "coco", root, tmp_path / "o", "--data.max_left_out=1")
    assert "used 1 of 11 objects, 10 left out: " in capsys.readouterr().out
    assert len(coco(output).anns) == 1
    boxes = yolo(tmp_path / "boxes", [["0 .5 .5 .2 .2"]])
    assert "1 with a box only" in refusal(capsys, "yolo", "masks", boxes, tmp_path / "o3")


def test_boxes_among_outlines_are_told(tmp_path, capsys):
    root = yolo(tmp_path / "in", [["0 .5 .5 .2 .2", "0 .1 .1 .5 .1 .5 .5"]])
    converted("yolo", "coco", root, tmp_path / "out")
    told = capsys.readouterr().out
    assert "train: 1 of 2 objects have a box only; train with --model.masks false" in told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("names: [a, b]\n", "found no train"),
        ("names: [a, a]\ntrain: images/train\n", "is that of class 0"),
        ("names: {0: a, 2: b}\ntrain: images/train\n", "expected 0 to 1"),
        ("names: [yes, b]\ntrain: images/train\n", "quote"),
        ("names: 3\ntrain: images/train\n", "a list of names"),
        ("names: [a]\ntrain: nowhere\n", "train is nowhere, which is not there"),
        ("names: [a\n", "data.yaml"),
        ("train: images/train\n", "neither data.yaml nor classes.txt"),
        ("names: [a]\ntrain: empty\n", "found no annotated images"),
    ],
)
def test_a_broken_description_of_yolo_is_refused(content, expected, tmp_path, capsys):
    root = yolo(tmp_path / "in", [["0 .5 .5 .2 .2"]])
    (root / "empty").mkdir()
    (root / "data.yaml").write_text(content)
    assert expected in refusal(capsys, "yolo", "coco", root, tmp_path / "out")


# labelme


def labelme(path, shapes, size=(40, 30), **more):
    picture(path.with_suffix(".jpg"), *size)
    content = {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": path.with_suffix(".jpg").name,
        "imageHeight": size[1],
        "imageWidth": size[0],
        **more,
    }
    path.write_text(json.dumps(content))


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_shapes_of_labelme_become_objects(tmp_path):
    stamp = np.zeros((4, 6), np.uint8)
    stamp[1:3, 1:5] = 255
    shapes = [
        shape("a", [[2, 2], [12, 2], [12, 9], [2, 9]]),
        shape("b", [[30, 25], [20, 15]], "rectangle"),
        shape("a", [[1, 20], [5, 20], [5, 25]], group_id=1),
        shape("a", [[7, 20], [9, 20], [9, 25]], group_id=1),
        shape("c", [[30, 8], [34, 8]], "circle"),
        shape("d", [[10, 12], [16, 16]], "mask", mask=png(stamp)),
    ]
    labelme(tmp_path / "in/x.json", shapes)
    labelme(tmp_path / "in/val/y.json", shapes[:1])
    output = converted("labelme", "coco", tmp_path / "in", tmp_path / "out")
    file = coco(output)
    assert [c["name"] for c in file.cats.values()] == ["a", "b", "c", "d"]
    first, second, group, circle, mask = file.anns.values()
    assert first["bbox"] == [2, 2, 10, 7]
    assert second["bbox"] == [20, 15, 10, 10]
    assert group["bbox"] == [1, 20, 8, 5]
    assert len(group["segmentation"]) == 2
    np.testing.assert_allclose(circle["bbox"], [26, 4, 8, 8], atol=0.05)
    rows, columns = np.mgrid[:30, :40] + 0.5
    distance = np.hypot(rows - 8, columns - 30)
    drawn = file.annToMask(circle) > 0
    assert drawn[distance < 3.2].all()
    assert not drawn[distance > 4.8].any()
    whole = np.zeros((30, 40), np.uint8)
    whole[12:16, 10:16] = stamp > 0
    assert np.array_equal(file.annToMask(mask), whole)
    assert len(coco(output, "val").anns) == 1
    labels = labels_of(
        converted("labelme", "masks", tmp_path / "in", tmp_path / "o2") / "labels/train/x.png"
    )
    for annotation in (first, second, group, circle, mask):  # none lies over another
        assert (labels[file.annToMask(annotation) > 0] == annotation["category_id"]).all()
    assert (tmp_path / "o2/classes.txt").read_text().split() == ["background", *"abcd"]


def test_what_is_drawn_later_lies_over_what_was_drawn_before(tmp_path, capsys):
    square = [[2, 2], [12, 2], [12, 12], [2, 12]]
    shapes = [shape("a", square), shape("b", square), shape("a", [[4, 4], [8, 4], [8, 8], [4, 8]])]
    labelme(tmp_path / "in/x.json", shapes)
    output = converted("labelme", "masks", tmp_path / "in", tmp_path / "out")
    labels = labels_of(output / "labels/train/x.png")
    expected = np.zeros((30, 40), np.uint8)
    expected[2:12, 2:12] = 2
    expected[4:8, 4:8] = 1
    assert np.array_equal(labels, expected)
    assert "train: 1 objects lie wholly under others" in capsys.readouterr().out


def test_bad_shapes_and_files_of_labelme_are_counted(tmp_path, capsys):
    good = shape("a", [[2, 2], [12, 2], [12, 9]])
    bad = [
        shape("a", [[1, 1], [5, 5]], "line"),
        shape("a", [[1, 1]], "point"),
        shape("a", [[1, 1], [5, 5]]),
        shape("", [[2, 2], [12, 2], [12, 9]]),
        shape("a", [["x", 1], [2, 2], [3, 3]]),
        shape("a", [[1, 1]], "rectangle"),
        shape("a", [[100, 100], [120, 100], [120, 120]]),
        shape("a", [[1, 1], [3, 3]], "mask", mask="AAAA"),
        shape("a", [[1, 1], [3, 3]], "mask"),
        shape("a", None),
        "no shape",
    ]
    labelme(tmp_path / "in/0.json", [good, *bad])
    labelme(tmp_path / "in/1.json", [good], imageHeight=31)
    (tmp_path / "in/2.json").write_text("{")
    (tmp_path / "in/3.json").write_text("[]")
    labelme(tmp_path / "in/4.json", [good])
    (tmp_path / "in/4.jpg").unlink()
    arguments = ("labelme", "coco", tmp_path / "in", tmp_path / "out")
    assert "4 of 5 images would be left out" in refusal(capsys, *arguments)
    output = converted(*arguments, "--data.max_left_out=1")
    told = capsys.readouterr().out
    assert "used 1 of 12 objects, 11 left out: " in told
    assert len(coco(output).anns) == 1
    assert "found no annotated images" in refusal(
        capsys, "labelme", "coco", output / "train", tmp_path / "o2"
    )


# Cityscapes and Oxford Pets


@pytest.fixture
def cityscapes(tmp_path):
    for part, city, frame in (("train", "aachen", 1), ("train", "bochum", 1), ("val", "ulm", 2)):
        name = f"{city}_{frame:06d}_000019"
        picture(tmp_path / f"cs/leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", seed=frame)
        labels = np.full((30, 40), 7, np.uint8)  # road
        labels[:10], labels[-3:], labels[0, 0] = 23, 3, 255  # sky; out of the image; licence plate
        instances = labels.astype(np.int32)
        for number, (label, rows, columns) in enumerate(
            [(26, slice(12, 20), slice(2, 12)), (26, slice(14, 22), slice(20, 30)),
             (24, slice(5, 25), slice(32, 36)), (29, slice(1, 4), slice(1, 5))]
        ):  # fmt: skip
            labels[rows, columns] = label
            instances[rows, columns] = 1000 * label + number
        labels[22:25, 2:9] = instances[22:25, 2:9] = 33  # bicycles that nobody told apart
        folder = tmp_path / f"cs/gtFine/{part}/{city}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(folder / f"{name}_gtFine_labelIds.png")
        Image.fromarray(instances.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
    return tmp_path / "cs"


def test_masks_of_cityscapes_have_train_ids(cityscapes, tmp_path):
    output = converted("cityscapes", "masks", cityscapes, tmp_path / "out")
    # From the benchmark's own table: trainId of each id
    train_ids = {7: 0, 23: 10, 26: 13, 24: 11, 33: 18}
    for part, count in (("train", 2), ("val", 1)):
        found = sorted((output / "labels" / part).rglob("*.png"))
        assert len(found) == count
        for path in found:
            name = path.name.replace("leftImg8bit", "gtFine_labelIds")
            ids = labels_of(cityscapes / "gtFine" / part / path.parent.name / name)
            expected = np.vectorize(lambda value: train_ids.get(value, 255))(ids)
            assert np.array_equal(labels_of(path), expected)
    data = SegmentationFolderDataModule(str(output), num_workers=0)
    assert len(data.class_names) == 19
    assert data.class_names[13] == "car"
    assert len(data.pairs("train")) == 2


def test_instances_of_cityscapes_are_masks(cityscapes, tmp_path, capsys):
    assert "would be left out" in refusal(
        capsys, "cityscapes", "coco", cityscapes, tmp_path / "out"
    )
    output = converted(
        "cityscapes", "coco", cityscapes, tmp_path / "out", "--data.max_left_out=0.5"
    )
    assert "3 of a class that does not count" not in capsys.readouterr().err
    file = coco(output, "val")
    path = "gtFine/val/ulm/ulm_000002_000019_gtFine_instanceIds.png"
    values = labels_of(cityscapes / path)
    own = sorted(file.anns.values(), key=lambda a: a["id"])
    expected = [value for value in np.unique(values) if value == 33 or value // 1000 in (24, 26)]
    assert len(own) == len(expected) == 4
    for annotation, value in zip(own, expected, strict=True):
        mask = values == value
        assert np.array_equal(file.annToMask(annotation) > 0, mask)
        rows, columns = np.nonzero(mask)
        assert annotation["bbox"] == [
            columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        ]  # fmt: skip
        assert annotation["area"] == mask.sum()
        assert annotation["iscrowd"] == (value == 33)
    names = [file.cats[annotation["category_id"]]["name"] for annotation in own]
    assert names == ["bicycle", "person", "car", "car"]


def test_broken_maps_of_cityscapes_are_counted(cityscapes, tmp_path, capsys):
    path = "gtFine/train/aachen/aachen_000001_000019_gtFine_"
    (cityscapes / f"{path}labelIds.png").write_bytes(b"no image")
    Image.new("L", (8, 8)).save(cityscapes / f"{path}instanceIds.png")
    assert "1 of 2 images would be left out: 1 with a label map that cannot" in refusal(
        capsys, "cityscapes", "masks", cityscapes, tmp_path / "o1"
    )
    assert "1 of 2 images would be left out: 1 of another size than its" in refusal(
        capsys, "cityscapes", "coco", cityscapes, tmp_path / "o2"
    )
    output = converted("cityscapes", "masks", cityscapes, tmp_path / "o3", "--data.max_left_out=1")
    assert len(list((output / "labels/train").rglob("*.png"))) == 1
    assert len(list((output / "images/train").rglob("*.png"))) == 1


def test_trimaps_of_oxford_pets_are_classes(tmp_path, capsys):
    root = tmp_path / "oxford-iiit-pet"
    (root / "annotations/trimaps").mkdir(parents=True)
    names = [f"Abyssinian_{number}" for number in range(10)]
    for seed, name in enumerate(names):
        picture(root / f"images/{name}.jpg", seed=seed)
        values = np.random.default_rng(seed).integers(1, 4, (30, 40), dtype=np.uint8)
        Image.fromarray(values).save(root / f"annotations/trimaps/{name}.png")
    lines = [f"{name} 1 1 1\n" for name in names]
    (root / "annotations/trainval.txt").write_text("".join(lines[:8]))
    (root / "annotations/test.txt").write_text("".join(lines[8:]))
    output = converted("pets", "masks", tmp_path, tmp_path / "out", "--cut_validation=0.25")
    parts = {
        part: sorted((output / "labels" / part).iterdir()) for part in ("train", "val", "test")
    }
    assert {part: len(found) for part, found in parts.items()} == {"train": 6, "val": 2, "test": 2}
    for path in [path for found in parts.values() for path in found]:
        assert np.array_equal(
            labels_of(path) + 1, labels_of(root / f"annotations/trimaps/{path.name}")
        )
    data = SegmentationFolderDataModule(str(output), num_workers=0)
    assert data.class_names == ["pet", "background", "border"]


# What all have in common.


def test_images_are_copied_or_linked(voc, tmp_path):
    copied = converted("voc", "coco", voc, tmp_path / "a") / "train/2008_000001.jpg"
    linked = converted("voc", "coco", voc, tmp_path / "b", "--images=link") / copied.relative_to(
        tmp_path / "a"
    )
    assert not copied.is_symlink()
    assert linked.is_symlink()
    assert copied.read_bytes() == linked.read_bytes()


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    root = tmp_path / "in"
    for seed, folder in enumerate("ab"):
        picture(root / folder / "images/x.jpg", seed=seed)
        (root / folder / "labels").mkdir()
        (root / folder / "labels/x.txt").write_text(f"{seed} .1 .1 .5 .1 .5 .5")
    content = {"train": ["a/images", "b/images"], "names": ["ant", "bee"]}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    file = coco(converted("yolo", "coco", root, tmp_path / "out"))
    assert [image["file_name"] for image in file.imgs.values()] == ["x.jpg", "x_1.jpg"]
    for image, folder in zip(file.imgs.values(), "ab", strict=True):
        written = tmp_path / "out/train" / image["file_name"]
        assert written.read_bytes() == (root / folder / "images/x.jpg").read_bytes()


@pytest.mark.parametrize("form", ["voc", "yolo", "labelme", "cityscapes"])
def test_an_empty_folder_is_refused(form, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for to in ("coco", "masks"):
        assert "--root" in refusal(capsys, form, to, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(voc, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    assert "there is something already" in refusal(capsys, "voc", "coco", voc, tmp_path / "out")
    assert [path.name for path in Path(tmp_path / "out").iterdir()] == ["mine.txt"]
