"""COCO files that these tests write, with what COCO has: crowds, gaps, empty images, polygons."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from lightning_overlock.data import CocoDataModule
from lightning_overlock.data.coco_file import read_coco
from lightning_overlock.data.coco_objects import decode_mask
from lightning_overlock.errors import InputError

# As in COCO, ids have gaps; and they are in no order.
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
SIZES = {11: (60, 40), 7: (40, 60), 25: (40, 60), 9: (60, 40), 30: (40, 60), 31: (60, 40)}


def content() -> dict[str, Any]:
    """Six images (height, width as in SIZES): objects, a crowd only (9), nothing at all (30)."""
    crowd = [100, 200, 2100]  # uncompressed RLE: 200 pixels in column order
    return {
        "images": [
            {"id": number, "file_name": f"{number:04d}.png", "height": height, "width": width}
            for number, (height, width) in SIZES.items()
        ],
        "categories": CATEGORIES,
        "annotations": [
            {
                "id": 101,
                "image_id": 11,
                "category_id": 3,
                "bbox": [5.5, 10.25, 20.0, 30.5],
                "area": 600.5,
                "iscrowd": 0,
                "segmentation": [[5.5, 10.25, 25.5, 10.25, 25.5, 40.75, 5.5, 40.75]],
            },
            {
                "id": 102,
                "image_id": 11,
                "category_id": 18,
                "bbox": [30, 30, 15, 10],  # over the right edge, as rounding makes them
                "area": 120,
                "iscrowd": 0,
                "segmentation": [[30, 30, 39, 30, 39, 40, 30, 40], [1, 1, 4, 1, 4, 4]],
            },
            {
                "id": 103,
                "image_id": 7,
                "category_id": 18,
                "bbox": [2, 0, 6, 40],
                "area": 200,
                "iscrowd": 1,
                "segmentation": {"size": [40, 60], "counts": crowd},
            },
            *(
                {
                    "id": 110 + number,
                    "image_id": image,
                    "category_id": 3,
                    "bbox": [4, 4, 8, 8],
                    "area": 64,
                    "iscrowd": 0,
                    "segmentation": compressed(SIZES[image]),
                }
                for number, image in enumerate((7, 25, 31))
            ),
            {
                "id": 104,
                "image_id": 9,
                "category_id": 3,
                "bbox": [0, 0, 10, 10],
                "area": 100,
                "iscrowd": 1,
                "segmentation": {"size": [60, 40], "counts": [0, 100, 2300]},
            },
        ],
    }


def compressed(size: tuple[int, int]) -> dict[str, Any]:
    mask = np.zeros(size, np.uint8, order="F")
    mask[4:12, 4:12] = 1
    code = coco_mask.encode(mask)
    return {"size": list(size), "counts": code["counts"].decode()}


def write(root: Path, data: dict[str, Any], split: str = "train") -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(data))
    for number, (height, width) in SIZES.items():
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{split}2017/{number:04d}.png")


@pytest.fixture
def root(tmp_path):
    write(tmp_path, content(), "train")
    write(tmp_path, content(), "val")
    return tmp_path


def coco(root: Path, **options: Any) -> CocoDataModule:
    return CocoDataModule(str(root), **{"num_workers": 0, "batch_size": 1, "hflip": 0, **options})


def by_id(loader: Any) -> dict[int, tuple[torch.Tensor, dict[str, Any]]]:
    return {
        target["image_id"]: (image, target)
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    }


# What is read.


def test_labels_count_from_one_and_lead_back_to_the_files_categories(root):
    data = coco(root)
    assert data.class_names == ["dog", "car"]
    assert data.category_ids == [18, 3]
    _, target = by_id(data.train_dataloader())[11]
    assert target["labels"].tolist() == [2, 1]
    assert [data.category_ids[label - 1] for label in target["labels"]] == [3, 18]


def test_training_leaves_out_crowds_and_images_without_objects(root):
    found = by_id(coco(root).train_dataloader())
    assert sorted(found) == [7, 11, 25, 31]
    assert found[7][1]["labels"].tolist() == [2]
    kept = by_id(coco(root, empty_images=True).train_dataloader())
    assert sorted(kept) == sorted(SIZES)
    for number in (9, 30):
        target = kept[number][1]
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["masks"].shape == (0, *SIZES[number])


def test_boxes_are_corners_within_the_image_and_masks_are_pycocotools(root):
    truth = COCO(str(root / "annotations/instances_train2017.json"))
    for number, (image, target) in by_id(coco(root).train_dataloader()).items():
        height, width = SIZES[number]
        file = np.asarray(Image.open(root / f"train2017/{number:04d}.png")) / 255
        assert np.allclose(image.permute(1, 2, 0).numpy(), file, atol=1e-6)
        annotations = [a for a in truth.imgToAnns[number] if not a["iscrowd"]]
        masks = np.stack([truth.annToMask(a) for a in annotations])
        assert np.array_equal(target["masks"].numpy(), masks)
        left, top, wide, high = np.array([a["bbox"] for a in annotations]).T
        right, bottom = np.minimum(left + wide, width), np.minimum(top + high, height)
        corners = np.stack([left, top, right, bottom], axis=1)
        assert np.array_equal(target["boxes"].numpy(), corners.astype(np.float32))
        assert [target[name].dtype for name in ("boxes", "labels", "masks")] == [
            torch.float32,
            torch.int64,
            torch.uint8,
        ]


def test_evaluation_has_every_image_once_with_the_files_own_annotations(root):
    found = by_id(coco(root, batch_size=4).val_dataloader())
    assert list(found) == list(SIZES)
    for number, (image, target) in found.items():
        own = [a for a in content()["annotations"] if a["image_id"] == number]
        assert target == {
            "image_id": number,
            "file_name": f"{number:04d}.png",
            "size": SIZES[number],
            "annotations": own,
        }
        assert tuple(image.shape) == (3, *SIZES[number])


@given(
    polygon=st.lists(st.floats(0, 30, width=32), min_size=6, max_size=12),
    bits=st.lists(st.booleans(), min_size=30 * 20, max_size=30 * 20),
)
@settings(max_examples=50, deadline=None)
def test_masks_of_every_kind_survive_the_round_trip(polygon, bits):
    mask = np.asfortranarray(np.array(bits, np.uint8).reshape(20, 30))
    code = coco_mask.encode(mask)
    code["counts"] = code["counts"].decode()
    assert np.array_equal(decode_mask(code, 20, 30), mask)
    columns = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(columns)) + 1
    runs = np.diff([0, *changes, columns.size]).tolist()
    uncompressed = {"size": [20, 30], "counts": [0] * int(columns[0]) + runs}
    assert np.array_equal(decode_mask(uncompressed, 20, 30), mask)
    polygon = polygon[: len(polygon) // 2 * 2]
    truth = COCO()
    truth.imgs = {1: {"height": 20, "width": 30}}
    expected = truth.annToMask({"image_id": 1, "segmentation": [polygon]})
    assert np.array_equal(decode_mask([polygon], 20, 30), expected)


def test_without_segmentations_there_are_no_masks(root):
    data = content()
    for annotation in data["annotations"]:
        annotation["segmentation"] = []
        del annotation["area"], annotation["iscrowd"]  # pycocotools wants them
    write(root, data, "train")
    write(root, data, "val")
    module = coco(root)
    assert all("masks" not in target for _, target in by_id(module.train_dataloader()).values())
    first = by_id(module.val_dataloader())[11][1]["annotations"][0]
    assert first["area"] == 20 * 30.5
    assert first["iscrowd"] == 0


def test_flips_turn_images_boxes_and_masks(root):
    plain = by_id(coco(root).train_dataloader())
    for number, (image, target) in by_id(coco(root, hflip=1).train_dataloader()).items():
        before, known = plain[number]
        assert torch.equal(image, before.flip(-1))
        assert torch.equal(target["masks"], known["masks"].flip(-1))
        width = SIZES[number][1]
        assert torch.allclose(target["boxes"][:, 0], width - known["boxes"][:, 2])
        assert torch.equal(target["labels"], known["labels"])


def test_crops_drop_the_objects_they_cut_away(root, monkeypatch):
    monkeypatch.setattr("lightning_overlock.data.dense_transforms.CROP_SHORT_SIDES", (40,))
    monkeypatch.setattr("lightning_overlock.data.dense_transforms.CROP_SIDES", (8, 12))
    data = coco(root, scale_and_crop=True)
    loader = data.train_dataloader()
    counts = set()
    for epoch in range(20):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for image, target in by_id(loader).values():
            assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
            assert target["masks"].shape[1:] == image.shape[1:]
            sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
            assert (sides >= 1).all()
            counts.add(len(target["labels"]))
    assert 0 in counts  # an image whose objects are outside is a picture of background


def test_workers_read_the_same(root):
    alone = by_id(coco(root, hflip=0.5).train_dataloader())
    helped = coco(root, hflip=0.5, num_workers=2)
    for number, (image, target) in by_id(helped.train_dataloader()).items():
        assert torch.equal(image, alone[number][0])
        assert torch.equal(target["boxes"], alone[number][1]["boxes"])
    helped.teardown("")


def test_two_processes_share_every_image(root):
    found: list[list[int]] = []
    for rank in range(2):
        data = coco(root)
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            num_devices=2,
            overfit_batches=0,
            training=False,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        found.append(list(by_id(data.val_dataloader())))
    assert found[0] + found[1] == list(SIZES)
    assert len(found[0]) == len(found[1])


def test_steps_are_all_upright_or_all_wide(root):
    data = coco(root, batch_size=2)
    for epoch in range(5):
        loader = data.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 2
        assert all(images[0].shape == images[1].shape for images, _ in batches)
    mixed = coco(root, batch_size=2, group_by_shape=False)
    loader, shapes = mixed.train_dataloader(), set()
    for epoch in range(5):
        loader.batch_sampler.sampler.set_epoch(epoch)
        shapes |= {images[0].shape == images[1].shape for images, _ in loader}
    assert shapes == {True, False}


def test_prediction_takes_any_folder_or_the_validation_images(root, tmp_path):
    (tmp_path / "mine/deep").mkdir(parents=True)
    turned = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "mine/deep/turned.jpg", exif=exif)
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "mine/grey.png")
    data = CocoDataModule(predict_dir=str(tmp_path / "mine"), num_workers=0)
    assert data.class_names == []
    found = by_id(data.predict_dataloader())
    assert {n: (t["file_name"], t["size"]) for n, (_, t) in found.items()} == {
        1: ("deep/turned.jpg", (30, 20)),
        2: ("grey.png", (8, 9)),
    }
    assert found[1][1]["path"] == str(tmp_path / "mine/deep/turned.jpg")
    assert found[1][0].shape == (3, 30, 20)
    val = by_id(coco(root).predict_dataloader())
    assert list(val) == list(SIZES)
    assert set(val[11][1]) == {"image_id", "file_name", "path", "size"}


def test_a_turned_image_is_read_as_its_annotations_have_it(root):
    # The file is 60 high and 40 wide and says that it is to be turned: a viewer shows 40 x 60.
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((60, 40, 3), np.uint8)
    Image.fromarray(pixels).save(root / "val2017/0007.png", exif=exif)
    assert by_id(coco(root).val_dataloader())[7][0].shape == (3, 40, 60)
    Image.fromarray(pixels).save(root / "val2017/0011.png", exif=exif)
    with pytest.raises(InputError, match=r"0011\.png. has 60 x 40 pixels, .* json has 40 x 60"):
        coco(root).setup("validate")


# What is not as it should be.


def broken(change: Any) -> dict[str, Any]:
    data = content()
    change(data)
    return data


def set_first(**values: Any) -> Any:
    return lambda data: data["annotations"][0].update(values)


def set_image(**values: Any) -> Any:
    return lambda data: data["images"][0].update(values)


RLE = {"size": [60, 40], "counts": [1, 2, 3]}
CODE = {"size": [60, 40], "counts": "PPYo0b0"}
IMAGE_PROBLEMS = [
    (set_image(file_name="gone.png"), r"whose file is not there \(images\[0\]: .*gone"),
    (set_image(file_name="no/where.png"), "whose file is not there"),
    (set_image(file_name=None), r"without a file_name \(images\[0\]: null"),
    (set_image(width=0), "of another size than the json says .*40 x 60 .* json has 0 x 60"),
    (set_image(width=60, height=40), "of another size .*40 x 60 pixels.*json has 60 x 40"),
    (set_image(height="big"), "of another size"),
    (set_image(id="eleven"), r"without a whole number as id \(images\[0\]: "),
]
PROBLEMS = [
    (set_first(image_id=99), r"of an unknown image \(annotation 101: 99\)"),
    (set_first(image_id="eleven"), "of an unknown image"),
    (set_first(category_id=1), r"of an unknown category \(annotation 101: 1\)"),
    (set_first(category_id="car"), "of an unknown category"),
    (set_first(bbox=[5, 5, 0, 3], segmentation=[]), "without a segmentation"),
    (set_first(bbox=[50, 5, 3, 3]), r"with a bbox outside of the image .*\[50, 5, 3, 3\] in 40 x"),
    (set_first(bbox=[-5, 5, 5, 3]), "outside of the image"),
    (set_first(bbox=[0, 0, 1e9, 3]), "far larger than the image"),
    (set_first(iscrowd=2), "with an iscrowd other than 0 and 1"),
    (set_first(iscrowd="yes"), "with an iscrowd other than 0 and 1"),
    (set_first(segmentation=[[1, 2, 3]]), "with a polygon that is not x, y of three points or mo"),
    (set_first(segmentation=[[1, 2, 3, 4, 5, "a"]]), "with a polygon that is not x, y"),
    (set_first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "with a polygon that is not x, y"),
    (set_first(segmentation=[[90, 2, 93, 4, 95, 6]]), "with a polygon outside of the image"),
    (set_first(segmentation=[[0, 2, 1e9, 4, 5, 6]]), "with a polygon that reaches far beyond"),
    (set_first(segmentation=[[3, 2, 3, 2, 3, 2]]), "with a polygon of one point"),
    (set_first(segmentation=[[0.1, 0.2, 0.6, 0.2, 0.3, 0.4]]), "with polygons smaller than a pix"),
    (set_first(segmentation="polygon"), "that is neither polygons nor RLE"),
    (set_first(segmentation=None), "without a segmentation"),
    (set_first(segmentation=RLE), "an RLE whose counts do not fill .*6 of 2,400"),
    (set_first(segmentation=CODE), "an RLE whose counts do not fill"),
    (set_first(segmentation={**CODE, "counts": "b'PP'"}), "an RLE whose counts do not fill"),
    (set_first(segmentation={**RLE, "counts": [2400]}), "with an RLE of an empty mask"),
    (set_first(segmentation={**RLE, "counts": [3000, -600]}), "an RLE whose counts do not fill"),
    (set_first(segmentation={**RLE, "counts": None}), "an RLE whose counts do not fill"),
    (set_first(segmentation={**RLE, "size": [40, 60]}), r"an RLE of another size .*\[40, 60\], no"),
]


@pytest.mark.parametrize(("change", "message"), IMAGE_PROBLEMS + PROBLEMS)
def test_what_is_wrong_is_named_before_training_or_left_out(root, change, message):
    write(root, broken(change), "train")
    path = root / "annotations/instances_train2017.json"
    with pytest.raises(InputError, match=message) as caught:
        coco(root).setup("fit")
    assert str(caught.value).startswith(f"{path}: 1 of ")
    assert len(str(caught.value).splitlines()) <= 3
    assert "data.skip_invalid" in str(caught.value)
    with pytest.raises(InputError, match=message) as caught:  # one of seven, and of five cars
        coco(root, skip_invalid=True).setup("fit")
    assert "data.max_left_out" in str(caught.value)
    data = coco(root, skip_invalid=True, max_left_out=0.5)
    assert re.search(f"left out: .*{message}", data.examine("train"))
    assert len(data.source("train")) in {3, 4}


@pytest.mark.parametrize(("change", "message"), PROBLEMS)
def test_the_validation_data_are_checked_as_well(root, change, message):
    write(root, broken(change), "val")
    for stage in ("fit", "validate"):
        with pytest.raises(InputError, match=message):
            coco(root).setup(stage)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([5, 5, 0, 3], r"with a bbox without an area \(annotation 101: \[5, 5, 0, 3\]\)"),
        ([5, 5, -3, 3], "with a bbox without an area"),
        ([1, 2, 3], r"without a bbox \[x, y, width, height\] of numbers .*\[1, 2, 3\]"),
        ([1, 2, 3, float("nan")], "without a bbox"),
        ([1, 2, 3, "wide"], "without a bbox"),
        (None, "without a bbox"),
        ({"x": 1}, "without a bbox"),
    ],
)
def test_a_box_that_is_none_is_computed_from_the_mask_or_named(root, bbox, message):
    write(root, broken(set_first(bbox=bbox)), "train")
    found = by_id(coco(root).train_dataloader())[11][1]["boxes"]
    assert found[0].tolist() == [5.5, 10.25, 25.5, 40.75]
    write(root, broken(set_first(bbox=bbox, segmentation=None)), "train")
    with pytest.raises(InputError, match=message):
        coco(root, masks=False).setup("fit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no intact JSON"),
        ("", "no intact JSON"),
        ("[" * 100_000, "no intact JSON"),
        ("[]", "a list where a COCO json has an object"),
        ("null", "a NoneType where a COCO json has an object"),
        ('{"images": [{}], "annotations": []}', "no categories"),
        ('{"images": {}, "annotations": [], "categories": []}', "no categories"),
        (json.dumps({**content(), "categories": []}), "no categories"),
        (json.dumps({**content(), "categories": {}}), r"categories is \{\}"),
        (json.dumps({**content(), "categories": [None]}), "a category has the id null"),
        (json.dumps({**content(), "categories": CATEGORIES * 2}), "two categories have the id 18"),
        (
            json.dumps(
                {**content(), "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}
            ),
            "the name 'a' of class 1 is that of class 0",
        ),
        (json.dumps({**content(), "categories": [{"id": "a", "name": "b"}]}), 'the id "a" and the'),
        (json.dumps({**content(), "categories": [{"id": 1}]}), "the id 1 and the name null"),
        (json.dumps({**content(), "images": [], "annotations": []}), "no images"),
        (json.dumps({**content(), "images": "none"}), 'images is "none"'),
        (json.dumps({**content(), "annotations": None}), "annotations is null"),
        (json.dumps({k: v for k, v in content().items() if k != "annotations"}), "no annotations"),
    ],
)
def test_a_file_that_is_no_coco_json_is_refused(root, text, message):
    path = root / "annotations/instances_val2017.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        coco(root, skip_invalid=True, max_left_out=1).setup("fit")
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) <= 3


def test_missing_files_and_half_a_split_are_named(root, tmp_path):
    with pytest.raises(InputError, match=r"instances_val2017\.json: No such file"):
        coco(tmp_path / "empty")
    with pytest.raises(InputError, match=r"found neither data\.root nor"):
        CocoDataModule()
    with pytest.raises(InputError, match=r"data\.test_json .* and data\.test_images None"):
        coco(root, test_json="test.json")
    with pytest.raises(InputError, match="there is no test split"):
        coco(root).test_dataloader()
    with pytest.raises(InputError, match=r"nowhere: no folder"):
        coco(root, val_images=str(root / "nowhere")).setup("fit")
    with pytest.raises(InputError, match=r"data\.hflip is 2"):
        coco(root, hflip=2)


def test_splits_with_other_categories_are_refused(root):
    write(root, {**content(), "categories": [*CATEGORIES, {"id": 5, "name": "cat"}]}, "train")
    with pytest.raises(InputError, match=r"train2017\.json has 3 categories, other splits have 2"):
        coco(root).setup("fit")


def test_categories_in_another_order_are_the_same(root):
    write(root, {**content(), "categories": CATEGORIES[::-1]}, "train")
    assert by_id(coco(root).train_dataloader())[11][1]["labels"].tolist() == [2, 1]


def test_a_test_set_without_annotations_can_be_predicted_for(root):
    data = content()
    del data["annotations"]
    (root / "test.json").write_text(json.dumps(data))
    module = coco(root, test_json=str(root / "test.json"), test_images=str(root / "val2017"))
    assert list(by_id(module.predict_dataloader())) == list(SIZES)


def test_an_image_that_is_missing_costs_its_own_prediction_alone(root):
    (root / "val2017/0007.png").unlink()
    data = coco(root)
    assert data.examine("predict").startswith(
        "used 5 of 6 images, 1 left out: 1 whose file is not there (images[1]: "
    )
    assert sorted(by_id(data.predict_dataloader())) == sorted(SIZES.keys() - {7})
    with pytest.raises(InputError, match="1 of 6 images cannot be used"):
        data.setup("validate")


def as_task(masks: bool | None) -> Any:
    """Return what a data module sees of a trainer with a task that wants masks, or not."""
    return SimpleNamespace(lightning_module=SimpleNamespace(hparams={"masks": masks}))


def test_the_task_says_whether_masks_are_read(root):
    data = content()
    for annotation in data["annotations"][::2]:
        annotation["segmentation"] = []
    write(root, data, "train")
    write(root, data, "val")
    module = coco(root)
    module.trainer = as_task(True)
    with pytest.raises(InputError, match=r"4 without a segmentation .*\n.*model\.masks false"):
        module.setup("fit")
    module.trainer = as_task(False)
    module.setup("fit")
    assert not module.source("train").file.has_masks
    module.trainer = None
    with pytest.raises(InputError, match="4 without a segmentation"):  # some have one
        module.setup("fit")
    contradiction = coco(root, masks=False)
    contradiction.trainer = as_task(True)
    with pytest.raises(InputError, match=r"data\.masks is false, model\.masks is true"):
        contradiction.setup("fit")
    found = by_id(coco(root, masks=False).train_dataloader())
    assert sum(len(target["labels"]) for _, target in found.values()) == 5
    assert all("masks" not in target for _, target in found.values())


def test_a_data_module_is_built_for_prediction_from_its_state_alone(root, tmp_path):
    state = json.loads(json.dumps(coco(root).prediction_state()))
    assert state == {"class_names": ["dog", "car"], "category_ids": [18, 3]}
    (root / "val2017").rename(tmp_path / "photos")
    gone = {"root": str(tmp_path / "gone"), "num_workers": 0}
    with pytest.raises(InputError, match=r"instances_val2017\.json: No such file"):
        CocoDataModule(**gone)
    data = CocoDataModule(**gone, predict_dir=str(tmp_path / "photos"))
    data.load_prediction_state(state)
    data.setup("predict")
    assert (data.class_names, data.category_ids) == (["dog", "car"], [18, 3])
    assert len(by_id(data.predict_dataloader())) == len(SIZES)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_or_skipped(root, workers):
    path = root / "val2017/0025.png"
    path.write_bytes(path.read_bytes()[:200])
    data = coco(root, num_workers=workers)
    with pytest.raises(InputError, match=r"0025\.png: no intact image") as caught:
        list(data.val_dataloader())
    assert "data.skip_invalid" in str(caught.value)
    data.teardown("")
    data = coco(root, num_workers=workers, skip_invalid=True)
    with pytest.raises(InputError, match=r"1 of 6 images would be left out"):
        list(data.val_dataloader())
    data.teardown("")
    data = coco(root, num_workers=workers, skip_invalid=True, max_left_out=0.3)
    with pytest.warns(UserWarning, match=r"1 unreadable .*0025\.png"):
        assert sorted(by_id(data.val_dataloader())) == sorted(SIZES.keys() - {25})
    data.teardown("")


def test_annotations_are_kept_as_bytes_not_as_python_objects(root):
    # A list of dictionaries would be copied into each worker, touched reference by reference.
    file = read_coco(root / "annotations/instances_train2017.json", root / "train2017")
    assert isinstance(file.content, bytes)
    assert all(isinstance(a, np.ndarray) for a in (file.ids, file.names, file.sizes, file.offsets))
    assert json.loads(file.content[: file.offsets[1]]) == content()["annotations"][:2]
