"""What people's own jsons have in them: read as it is meant, counted where left out, or refused."""

import codecs
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lightning_overlock.data.coco_file import CocoFile, read_coco
from lightning_overlock.data.coco_objects import decode_mask, number, run_lengths, whole
from lightning_overlock.errors import InputError
from lightning_overlock.metrics.coco import average_precision

SIDE = 64


def content(images: int = 4, per: int = 2) -> dict[str, Any]:
    """Images of 64 x 64 with rectangles of 21 x 21, as boxes and as polygons, of two classes."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(per):
            x, y = random.integers(2, SIDE // 2 - 2, 2).tolist()
            right, bottom = x + 21, y + 21
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1 + len(annotations) % 2,
                    "bbox": [x, y, 21, 21],
                    "area": 441,
                    "iscrowd": 0,
                    "segmentation": [[x, y, right, y, right, bottom, x, bottom]],
                }
            )
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": SIDE, "width": SIDE}
            for n in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "box"}, {"id": 2, "name": "disc"}],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for place in range(1, 41):
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(folder / f"{place}.png")
    return folder


@pytest.fixture
def read(folder, tmp_path):
    def read(data: Any, **options: Any) -> CocoFile:
        path = tmp_path / "some.json"
        path.write_text(json.dumps(data))
        return read_coco(path, folder, **options)

    return read


def changed(every: Any = None, one: Any = None, **size: int) -> dict[str, Any]:
    """Return the content with each annotation updated by `every`, the first one by `one`."""
    data = content(**size)
    for annotation in data["annotations"]:
        annotation.update(every or {})
    data["annotations"][0].update(one or {})
    return data


def objects(file: CocoFile) -> list[dict[str, Any]]:
    return [a for index in range(len(file.ids)) for a in file.annotations(index)]


def perfect(file: CocoFile, kind: str = "bbox") -> float:
    """Return the AP of a detector that finds every object of `content` where it is."""
    truth = content()["annotations"]
    results = []
    for a in truth:
        code = coco_mask.merge(coco_mask.frPyObjects(a["segmentation"], SIDE, SIDE))
        entry = {key: a[key] for key in ("image_id", "category_id", "bbox")}
        results.append({**entry, "score": 0.9, "segmentation": code})
    images = [{"id": int(n), "height": SIDE, "width": SIDE} for n in file.ids]
    found = average_precision(images, objects(file), results, [1, 2], kind)
    return found["map_small"]


# Numbers and ids


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (64, 64),
        (64.0, 64),
        ("64", 64),
        ("64.0", 64),
        (" 64 ", 64),
        ("-3", -3),
        ("6.4e1", 64),
        (64.5, None),
        (True, None),
        (None, None),
        ("", None),
        ("sixty", None),
        ("nan", None),
        ("inf", None),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
        (2**63, None),
        ("9" * 5000, None),
        ("1_000", None),
        ([64], None),
    ],
)
def test_whole_numbers_of_any_type_mean_the_same(value, expected):
    assert whole(value) == expected


def test_numbers_keep_their_fractions():
    assert number("341.5") == 341.5
    assert number(0.25) == 0.25
    assert number("1e400") is None


@pytest.mark.parametrize("kind", [float, str, lambda value: f"{value}.0"])
def test_sizes_ids_and_boxes_of_another_type_are_read_the_same(read, kind):
    data, same = content(), objects(read(content()))
    for image in data["images"]:
        image |= {key: kind(image[key]) for key in ("id", "height", "width")}
    for category in data["categories"]:
        category["id"] = kind(category["id"])
    for a in data["annotations"]:
        a |= {key: kind(a[key]) for key in ("id", "image_id", "category_id", "area", "iscrowd")}
        a["bbox"] = [kind(side) for side in a["bbox"]]
        a["segmentation"] = [[kind(value) for value in part] for part in a["segmentation"]]
    file = read(data)
    assert objects(file) == same
    assert file.ids.tolist() == [1, 2, 3, 4]
    assert file.sizes.tolist() == [[SIDE, SIDE]] * 4
    assert file.categories == [(1, "box"), (2, "disc")]
    assert file.notes == []


@pytest.mark.parametrize("value", [0, None, "a7", [1], {"$oid": "5f"}, 1.5])
def test_ids_of_annotations_are_not_needed(read, value):
    for data in (changed({"id": value}), changed(one={"id": value})):
        file = read(data)
        assert len(objects(file)) == 8
        assert perfect(file) == 1
        if value or value is None:
            assert [a["id"] for a in objects(file)] == list(range(1, 9))
            assert "numbered anew" in file.notes[0]


def test_annotations_without_ids_are_named_by_their_place(read):
    data = changed({"id": 0})
    data["annotations"][5]["category_id"] = 9
    with pytest.raises(InputError, match=r"1 of an unknown category \(annotations\[5\]: 9\)"):
        read(data)


# Boxes without masks


@pytest.mark.parametrize(
    "segmentation", [None, [], [[]], {}, "no", [[1, 2]], {"size": [1, 2], "counts": "PPYo0b0"}]
)
def test_segmentations_do_not_matter_without_masks(read, segmentation):
    data = content()
    for a in data["annotations"][::2]:
        a["segmentation"] = segmentation
    del data["annotations"][1]["segmentation"]
    for purpose in ("train", "eval"):
        file = read(data, purpose=purpose, masks=False)
        assert len(objects(file)) == 8
        assert file.notes == []
        assert not file.has_masks
    assert perfect(file) == 1


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_boxes_only_with_masks_wanted_names_the_option(read, skip_invalid):
    for data in (changed({"segmentation": []}), changed({"segmentation": None})):
        with pytest.raises(InputError, match=r"8 of 8 boxes.*8 without a segm.*ation 1:") as caught:
            read(data, masks=True, skip_invalid=skip_invalid)
        assert "model.masks false" in str(caught.value)
    for a in (data := content())["annotations"][::2]:
        del a["segmentation"]
    for masks in (True, None):
        with pytest.raises(InputError, match=r"4 of 8 boxes .*4 without a segmentation"):
            read(data, masks=masks, skip_invalid=skip_invalid)


# What is computed


@pytest.mark.parametrize(
    "area", [None, "", "large", 0, -5, 1e11, 10**400, float("nan"), True, [441], {}]
)
def test_an_area_that_is_none_is_computed(read, area):
    for masks, expected in ((True, 441), (False, 441)):
        file = read(changed({"area": area}), masks=masks)
        assert [a["area"] for a in objects(file)] == [expected] * 8
        assert file.notes == ["computed from masks or boxes: 8 areas"]
        assert perfect(file) == 1


def test_the_area_is_that_of_the_mask_if_there_is_one(read):
    triangle = [[10, 10, 30, 10, 30, 30]]
    one = {"area": None, "bbox": [10, 10, 20, 20], "segmentation": triangle}
    expected = coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(triangle, SIDE, SIDE)))
    for masks in (True, False):
        assert objects(read(changed(one=one), masks=masks))[0]["area"] == expected
    one["segmentation"] = "broken"
    assert objects(read(changed(one=one), masks=False))[0]["area"] == 400


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 0), (False, 0), ("0", 0), (0.0, 0), ("", 0), ("false", 0), (True, 1), ("1", 1)],
)
def test_iscrowd_of_any_type_means_the_same(read, value, expected):
    assert objects(read(changed(one={"iscrowd": value})))[0]["iscrowd"] == expected
    data = content()
    del data["annotations"][0]["iscrowd"]
    assert objects(read(data))[0]["iscrowd"] == 0


@pytest.mark.parametrize(
    "bbox", [None, [], [0, 0, 0, 0], ["a"] * 4, [1, 2, 3], "1 2 3 4", [5, 5, -3, 3]]
)
@pytest.mark.parametrize("masks", [True, False])
def test_a_box_that_is_none_is_that_of_the_mask(read, bbox, masks):
    data = changed({"bbox": bbox})
    x, y, *_ = content()["annotations"][1]["bbox"]
    code = np.zeros((SIDE, SIDE), np.uint8, order="F")
    code[y : y + 21, x : x + 21] = 1
    counts = coco_mask.encode(code)["counts"].decode()
    data["annotations"][1]["segmentation"] = {"size": [SIDE, SIDE], "counts": counts}
    file = read(data, masks=masks)
    assert [a["bbox"] for a in objects(file)] == [a["bbox"] for a in content()["annotations"]]
    assert file.notes == ["computed from masks or boxes: 8 boxes"]


def test_sizes_that_are_missing_are_read_from_the_files(read):
    data = content()
    data["images"][0] |= {"height": None, "width": None}
    del data["images"][1]["width"]
    assert read(data).sizes.tolist() == [[SIDE, SIDE]] * 4


# Parts of objects


def test_a_bad_polygon_costs_itself_not_the_object(read):
    data = content(images=20)
    good = data["annotations"][0]["segmentation"][0]
    data["annotations"][0]["segmentation"] = [[1, 2, 3, 4], good]
    with pytest.raises(
        InputError, match=r"1 of 41 polygons .* three points or more \(annotation 1"
    ):
        read(data)
    file = read(data, skip_invalid=True)
    assert len(objects(file)) == 40
    assert objects(file)[0]["segmentation"] == [good]
    assert file.notes[0].startswith("used 40 of 41 polygons, 1 left out: 1 with a polygon")
    assert len(objects(read(data, masks=False))) == 40


def test_a_polygon_that_is_not_in_a_list_or_of_points_is_one(read):
    (polygon,) = content()["annotations"][0]["segmentation"]
    points = [polygon[place : place + 2] for place in range(0, 8, 2)]
    for shape in (polygon, points, [points]):
        file = read(changed(one={"segmentation": shape}))
        assert objects(file)[0]["segmentation"] == [polygon]


def test_normalised_polygons_give_no_area_and_no_box(read):
    data = content()
    for a in data["annotations"]:
        a["segmentation"] = [[value / SIDE for value in a["segmentation"][0]]]
        a["area"] = None
    with pytest.raises(InputError, match="8 with polygons smaller than a pixel"):
        read(data)
    assert [a["area"] for a in objects(read(data, masks=False))] == [441] * 8
    with pytest.raises(InputError, match="8 without a bbox"):
        read(
            {**data, "annotations": [{**a, "bbox": None} for a in data["annotations"]]}, masks=False
        )


def test_the_remedy_for_masks_is_told_where_masks_are_the_trouble(read):
    with pytest.raises(InputError) as caught:
        read(changed(one={"category_id": 9}))
    assert "model.masks" not in str(caught.value)


# Run-length codes


def test_run_lengths_are_those_of_pycocotools():
    random = np.random.default_rng(0)
    for size in ((1, 1), (3, 200), (480, 640)):
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = np.asfortranarray((random.random(size) < share).astype(np.uint8))
            runs = run_lengths(coco_mask.encode(mask)["counts"].decode())
            assert sum(runs) == size[0] * size[1]
            values = np.arange(len(runs)) % 2
            assert np.array_equal(np.repeat(values, runs), mask.ravel(order="F"))


def code_of(data: dict[str, Any], place: int = 0) -> dict[str, Any]:
    polygons = data["annotations"][place]["segmentation"]
    code = coco_mask.merge(coco_mask.frPyObjects(polygons, SIDE, SIDE))
    return {"size": [SIDE, SIDE], "counts": code["counts"].decode()}


@pytest.mark.parametrize("skip_invalid", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 3, -1, -2])
def test_a_code_that_was_cut_off_is_found(read, cut, skip_invalid):
    counts = code_of(content())["counts"]
    broken = changed(one={"segmentation": {"size": [SIDE, SIDE], "counts": counts[:cut]}})
    for purpose in ("train", "eval"):
        with pytest.raises(InputError, match=r"1 of 8 boxes|1 of 4 boxes of the class"):
            read(broken, purpose=purpose, masks=True, skip_invalid=skip_invalid)
    assert len(objects(read(broken, masks=False))) == 8


@pytest.mark.parametrize("size", [[64.0, "64"], None])
def test_a_code_s_size_may_be_of_another_type_or_missing(read, size):
    code = {**code_of(content()), "size": size}
    file = read(changed(one={"segmentation": code}))
    expected = decode_mask(content()["annotations"][0]["segmentation"], SIDE, SIDE)
    assert np.array_equal(decode_mask(objects(file)[0]["segmentation"], SIDE, SIDE), expected)
    assert perfect(file, "segm") == 1


def test_counts_may_be_of_another_type(read):
    runs = run_lengths(code_of(content())["counts"])
    for counts in (runs, [float(run) for run in runs], [str(run) for run in runs]):
        file = read(changed(one={"segmentation": {"size": [SIDE, SIDE], "counts": counts}}))
        assert objects(file)[0]["segmentation"]["counts"] == runs
        assert perfect(file, "segm") == 1


# Boxes that no image could have


def boxes(data: dict[str, Any], change: Any) -> dict[str, Any]:
    for a in data["annotations"]:
        a["bbox"] = change(*a["bbox"])
    return data


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("skip_invalid", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, w, h: [x / 64, y / 64, w / 64, h / 64], "normalised .*\n.* width and height"),
        (lambda x, y, w, h: [x, y, w / 64, h / 64], "no larger than a pixel"),
        (lambda x, y, w, h: [0, 0, 1, 1], "no larger than a pixel"),
        (lambda x, y, w, h: [x, y, 1, 1] if x > 10 else [x, y, w, h], "no larger than a pixel"),
        (
            lambda x, y, w, h: [x, y, x + w, y + h],
            r"are \[x1, y1, x2, y2\].*\n.*subtract the first",
        ),
        (lambda x, y, w, h: [x + 640, y, w, h], "lie outside of their images.*\n.*resized"),
        (lambda x, y, w, h: [10 * x, 10 * y, 10 * w, 10 * h], "beyond their images|outside of"),
        (lambda x, y, w, h: [x - 300, y, w, h], "outside of their images"),
    ],
)
def test_boxes_that_no_image_could_have_stop_the_run(read, change, message, masks, skip_invalid):
    with pytest.raises(InputError, match=message) as caught:
        read(boxes(content(), change), masks=masks, skip_invalid=skip_invalid, max_left_out=1)
    assert len(str(caught.value).splitlines()) <= 3
    assert " of 8 boxes" in str(caught.value)
    assert "expected [x, y, width, height] in pixels" in str(caught.value)


def test_corners_are_told_by_the_polygons_and_the_areas_too(read):
    small = content(images=10)
    for place, a in enumerate(small["annotations"], 2):  # far from the right edge, where none shows
        a["bbox"] = [2, 2, 2 + place, 2 + place]
        a["area"] = place**2
        a["segmentation"] = [[2, 2, 2 + place, 2, 2 + place, 2 + place, 2, 2 + place]]
    with pytest.raises(InputError, match=r"are \[x1, y1, x2, y2\]"):
        read(small)
    for a in small["annotations"]:
        del a["segmentation"]
    with pytest.raises(InputError, match=r"are \[x1, y1, x2, y2\]"):
        read(small, masks=False)


def test_large_boxes_in_the_corner_are_no_corners(read):
    whole_image = boxes(content(), lambda *_: [1, 1, 62, 62])
    file = read(boxes(whole_image, lambda *_: [1, 1, 62, 62]), masks=False)
    assert len(objects(file)) == 8


def test_boxes_smaller_than_a_pixel_are_evaluated_but_not_trained_on(read):
    data = content(images=20)
    data["annotations"][0]["bbox"] = [5, 5, 0.5, 20]
    assert len(objects(read(data))) == 40
    with pytest.raises(InputError, match=r"1 of 40 boxes .*1 with a bbox smaller than a pixel"):
        read(data, purpose="train")
    file = read(data, purpose="train", skip_invalid=True)
    assert len(objects(file)) == 39
    assert "used 39 of 40 boxes, 1 left out: 1 with a bbox smaller than a pixel" in file.notes[0]


# How much may be left out


def test_a_tenth_may_be_left_out_and_is_counted(read):
    data = content(images=20)
    for place in (0, 1, 2, 3):
        data["annotations"][place]["category_id"] = 77
    file = read(data, skip_invalid=True)
    assert file.notes == [
        "used 36 of 40 boxes, 4 left out: 4 of an unknown category (annotation 1: 77)"
    ]
    data["annotations"][4]["category_id"] = 77
    with pytest.raises(InputError, match=r"5 of 40 boxes would be left out: 5 of an unknown"):
        read(data, skip_invalid=True)
    assert len(objects(read(data, skip_invalid=True, max_left_out=0.2))) == 35


def test_a_tenth_of_a_class_may_be_left_out(read):
    data = content(images=20)
    for a in data["annotations"][:4]:
        a["category_id"] = 1
        a["bbox"] = [100, 100, 5, 5]
    message = r'4 of 22 boxes of the class "box" would be left out: 4 with a bbox outside of the im'
    with pytest.raises(InputError, match=message):
        read(data, skip_invalid=True)
    assert len(objects(read(data, skip_invalid=True, max_left_out=0.2))) == 36


def test_objects_of_images_left_out_count_as_well(read):
    data = content(images=40)
    for entry in data["images"][:4]:
        entry["file_name"] = "gone.png"
    file = read(data, skip_invalid=True)
    assert [note.split(" (")[0] for note in file.notes] == [
        "used 36 of 40 images, 4 left out: 4 whose file is not there",
        "used 72 of 80 boxes, 8 left out: 8 of an image left out",
    ]
    data["images"][4]["file_name"] = "gone.png"
    with pytest.raises(InputError, match="5 of 40 images would be left out"):
        read(data, skip_invalid=True)


def test_all_as_crowds_is_refused_for_training(read):
    with pytest.raises(InputError, match=r"8 of 8 boxes .*crowd regions.*\n.*iscrowd 0 for single"):
        read(changed({"iscrowd": 1}), purpose="train")
    file = read(changed(one={"iscrowd": 1}), purpose="train")
    assert file.notes == [
        "used 7 of 8 boxes, 1 left out: 1 crowd regions, which are not trained on (annotation 1)"
    ]


# Images


def test_two_images_of_one_id_are_told_apart_or_refused(read):
    data = content()
    data["images"].append(dict(data["images"][0]))
    with pytest.raises(
        InputError, match=r"1 of 5 images cannot be used: 1 there twice \(image 1\)"
    ):
        read(data)
    file = read(data, skip_invalid=True, max_left_out=0.2)
    assert file.ids.tolist() == [1, 2, 3, 4]
    data["images"][-1]["file_name"] = "7.png"
    with pytest.raises(InputError, match=r'two images have the id 1: "1.png" and "7.png"'):
        read(data, skip_invalid=True, max_left_out=1)


@pytest.mark.parametrize("name", ["train/{}", "train\\{}", "/data/train/{}", "C:\\train\\{}"])
def test_folders_in_file_names_are_told(read, folder, name):
    data = content()
    for image in data["images"]:
        image["file_name"] = name.format(image["file_name"])
    with pytest.raises(InputError, match=r"4 whose file is not there") as caught:
        read(data)
    assert f'{folder} has "1.png"' in str(caught.value)


@pytest.mark.parametrize("name", ["deep\\{}", ".\\deep\\{}", "deep/{}", "deep\\deeper\\..\\{}"])
@pytest.mark.parametrize("purpose", ["train", "eval", "predict"])
def test_windows_names_of_folders_are_found(tmp_path, name, purpose):
    (tmp_path / "deep/deeper").mkdir(parents=True)
    data = content()
    for image in data["images"]:
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "deep" / image["file_name"])
        image["file_name"] = name.format(image["file_name"])
    (tmp_path / "some.json").write_text(json.dumps(data))
    file = read_coco(tmp_path / "some.json", tmp_path, purpose)
    assert all((tmp_path / written.decode()).is_file() for written in file.names)
    assert len(file.ids) == 4


def test_a_backslash_in_a_file_s_own_name_stays(tmp_path):
    data = content(images=1)
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a\\b.png")
    data["images"][0]["file_name"] = "a\\b.png"
    (tmp_path / "some.json").write_text(json.dumps(data))
    assert read_coco(tmp_path / "some.json", tmp_path).names.tolist() == [b"a\\b.png"]


def test_two_images_of_one_file_must_have_the_same_objects(read):
    data = content()
    data["images"][3]["file_name"] = "1.png"
    with pytest.raises(
        InputError,
        match=r"2 of 4 images cannot be used: 2 whose file is that of another with other objects "
        r'\("1.png" of the images 1, 4\)\n.*or all objects of a file given to one image',
    ):
        read(data)
    file = read(data, skip_invalid=True, max_left_out=0.5)
    assert file.ids.tolist() == [2, 3]
    assert {a["image_id"] for a in objects(file)} == {2, 3}
    assert any("2 left out" in note for note in file.notes)
    assert len(read(data, purpose="predict").ids) == 4  # annotations do not matter


@pytest.mark.parametrize("purpose", ["train", "eval"])
def test_two_images_of_one_file_with_half_the_objects_each_are_doubles_as_well(read, purpose):
    data = content()
    data["images"].append(data["images"][0] | {"id": 9})  # and no object of its own
    with pytest.raises(InputError, match=r"2 of 5 images cannot be used"):
        read(data, purpose=purpose)
    again = [a | {"image_id": 9, "id": 90 + a["id"]} for a in data["annotations"][:2]]
    data["annotations"] += again[::-1]
    file = read(data, purpose=purpose)
    assert file.ids.tolist() == [1, 2, 3, 4, 9]
    assert "1 images have the file and the objects of another" in file.notes


def test_classes_without_an_object_are_told(read):
    data = content()
    data["categories"] += [{"id": 3, "name": "[ring]"}, {"id": 4, "name": "no"}]
    for purpose in ("train", "eval"):
        file = read(data, purpose=purpose)
        assert file.notes == ["there is no object of the classes [ring], no"]
        assert file.categories[2:] == [(3, "[ring]"), (4, "no")]
    data["annotations"] = []
    assert read(data).notes == []
    assert not read(data).has_objects.any()


def test_names_that_differ_in_case_or_composition_are_told(read, folder, tmp_path):
    (folder / "Cafe\u0301.png").write_bytes((folder / "1.png").read_bytes())
    data = content()
    data["images"][3]["file_name"] = "caf\u00e9.PNG"
    with pytest.raises(InputError, match=r"1 whose file is not there") as caught:
        read(data)
    assert f'{folder} has "Cafe\u0301.png"' in str(caught.value)


@pytest.mark.parametrize("name", ["a\x00b.png", "\ud800.png", "x" * 300, "", "..", 5, None])
def test_a_name_that_no_file_can_have_is_named(read, name):
    data = content()
    data["images"][0]["file_name"] = name
    with pytest.raises(InputError, match=r"1 of 4 images cannot be used"):
        read(data)


def test_what_is_no_image_is_found_before_it_is_read(read, folder):
    (folder / "text.png").write_text("no image")
    data = content()
    data["images"][2]["file_name"] = "text.png"
    with pytest.raises(InputError, match=r"1 that cannot be read \(image 3: .*text.png: no intact"):
        read(data)


def test_the_real_sizes_count_turned_as_exif_says(read, folder, tmp_path):
    mine = tmp_path / "turned"
    shutil.copytree(folder, mine)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.new("RGB", (50, 30)).save(mine / f"turned.{suffix}", exif=exif)
        data = content()
        data["images"][0] |= {"file_name": f"turned.{suffix}", "height": 50, "width": 30}
        data["annotations"] = []
        path = tmp_path / "turned.json"
        path.write_text(json.dumps(data))
        assert read_coco(path, mine).sizes[0].tolist() == [50, 30]
        data["images"][0] |= {"height": 30, "width": 50}
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=r"of another size .* has 30 x 50 pixels, turned as"):
            read_coco(path, mine)


def test_sizes_do_not_matter_to_predict(read):
    data = content()
    data["images"][0] |= {"height": 1, "width": None}
    data["annotations"] = "broken"
    file = read(data, purpose="predict")
    assert len(file.ids) == 4


# Files


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-32"),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(codecs.BOM_UTF8 + text.encode()),
    ],
)
def test_files_may_have_a_mark_be_in_utf_16_or_gzipped(folder, tmp_path, encode):
    path: Path = tmp_path / "some.json"
    data = content()
    data["categories"][0]["name"] = "bøx"
    path.write_bytes(encode(json.dumps(data, ensure_ascii=False)))
    assert read_coco(path, folder).categories[0] == (1, "bøx")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x1f\x8b",
        gzip.compress(json.dumps(content()).encode(), mtime=0)[:-20],
        gzip.compress(b"{}", mtime=0) + b"more",
        "{'images': []}".encode("utf-16"),
        '{"categories": "é"}'.encode("latin-1"),
        b"PK\x03\x04",
        b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=[
        "empty",
        "gzip header alone",
        "gzip cut off",
        "gzip and more",
        "python's quotes",
        "latin-1",
        "zip",
        "deeply nested",
        "one large number",
    ],
)
def test_files_that_are_no_json_are_named(folder, tmp_path, raw):
    path: Path = tmp_path / "some.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"some\.json: no intact") as caught:
        read_coco(path, folder)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_folder_or_nothing_in_the_place_of_the_json_is_named(folder, tmp_path):
    for path, message in ((tmp_path, "directory"), (tmp_path / "no.json", "No such file")):
        with pytest.raises(InputError, match=message):
            read_coco(path, folder)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "box"}, {"id": "1.0", "name": "disc"}], "two categories have the id 1"),
        ([{"id": 1, "name": "box"}, {"id": 2, "name": " "}], "the name ' ' of class 1 is empty"),
        ([{"id": 1, "name": "a\nb"}, {"id": 2, "name": "b"}], "line break"),
        ([{"id": 1, "name": "\ud800"}, {"id": 2, "name": "b"}], "no UTF-8"),
        ([{"id": None, "name": "box"}], "the id null"),
        ([{"id": 1, "name": ["box"]}], r"the name \[\"box\"\]"),
        ([3], "the id null and the name null"),
    ],
)
def test_categories_that_cannot_be_told_apart_are_refused(read, categories, message):
    with pytest.raises(InputError, match=message) as caught:
        read({**content(), "categories": categories})
    assert len(str(caught.value).splitlines()) <= 3


def test_numbers_are_names(read):
    data = {**content(), "categories": [{"id": 1, "name": 7}, {"id": 2, "name": 8.5}]}
    assert read(data).categories == [(1, "7"), (2, "8.5")]
