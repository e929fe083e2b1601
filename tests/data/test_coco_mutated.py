"""A COCO json with anything wrong in it is read in full, or refused in words; nothing else."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from lightning_overlock.data import CocoDataModule
from lightning_overlock.data.coco_objects import decode_mask
from lightning_overlock.errors import InputError
from lightning_overlock.metrics.coco import average_precision

# One json is both, so that what is changed is met in both places.
pytestmark = pytest.mark.filterwarnings("ignore:the validation has the training's own images")

SIZES = [(40, 60), (60, 40), (48, 48)]


def compressed(box: list[int], size: tuple[int, int]) -> dict[str, Any]:
    left, top, width, height = box
    mask = np.zeros(size, np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    code = coco_mask.encode(mask)
    return {"size": list(size), "counts": code["counts"].decode()}


def content() -> dict[str, Any]:
    """Three images with two objects each: polygons, both run-length codes, one crowd."""
    annotations: list[dict[str, Any]] = []
    for image, size in enumerate(SIZES):
        for left, top, width, height in ([4, 6, 20, 12], [22, 20, 10, 16]):
            right, bottom = left + width, top + height
            outline = [left, top, right, top, right, bottom, left, bottom]
            shape: Any = [outline, [1, 1, 4, 1, 4, 4]]
            if image == 1:
                shape = compressed([left, top, width, height], size)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": 3 + len(annotations) % 2,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": shape,
                }
            )
    counts = [20 * 48, 10, 48 * 48 - 20 * 48 - 10]
    annotations[-1] |= {"iscrowd": 1, "segmentation": {"size": [48, 48], "counts": counts}}
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            for number, (height, width) in enumerate(SIZES, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "car"}, {"id": 4, "name": "dog"}],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    for number, (height, width) in enumerate(SIZES, 1):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.sampled_from([0.5, 64.0, 1e300, -1e300, 2**63, 10**400, float("nan"), float("inf")]),
    st.sampled_from(["", "1", "64.0", "3e8", "nan", "1_000", "\x00", "a\nb", "\ud800", "PPYo0b0"]),
    st.text(max_size=5),
    st.lists(st.integers(-3, 70), max_size=8),
    st.lists(st.lists(st.floats(-3, 70), max_size=8), max_size=2),
    st.sampled_from(
        [{}, {"counts": "0"}, {"size": [40, 60], "counts": [1, 2]}, [None], [[]], [{}]]
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a json, but for single coordinates of long lists."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        children = list(enumerate(value))[:4]
    for key, child in children:
        found += places(child, (*path, key))
    return found


def mutate(data: Any, draw: Any) -> Any:
    """Change one thing: a value, a type, a key, a size, an order, or how often it is there."""
    path = draw(st.sampled_from(places(data)))
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    kind = draw(
        st.sampled_from(["junk", "text", "float", "list", "drop", "extra", "twice", "turn"])
    )
    if kind == "junk":
        parent[key] = draw(JUNK)
    elif kind == "text":
        parent[key] = str(value)
    elif kind == "float" and isinstance(value, int):
        parent[key] = float(value) + draw(st.sampled_from([0, 0, 0.5]))
    elif kind == "list":
        parent[key] = [value]
    elif kind == "drop":
        del parent[key]
    elif kind == "extra" and isinstance(value, dict):
        value[draw(st.sampled_from(["ignore", "score", "_ignore", "caption"]))] = draw(JUNK)
    elif kind == "twice" and isinstance(value, list) and value:
        value.append(copy.deepcopy(value[draw(st.integers(0, len(value) - 1))]))
    elif kind == "turn" and isinstance(value, list):
        value.reverse()
    return data


def run(folder: Path, path: Path, masks: bool | None, **options: Any) -> CocoDataModule:
    """Do with a json what training, validation and its metric do; return the data module."""
    data = CocoDataModule(
        train_json=str(path),
        train_images=str(folder),
        val_json=str(path),
        val_images=str(folder),
        num_workers=0,
        batch_size=1,
        hflip=0,
        empty_images=True,
        **options,
    )
    if masks is not None:  # as the task says
        task = SimpleNamespace(hparams={"masks": masks})
        data.trainer = SimpleNamespace(lightning_module=task)
    for stage in ("fit", "predict"):
        data.setup(stage)
    data.trainer = None
    data.masks = masks
    for images, targets in data.train_dataloader():
        check_target(images[0], targets[0], data)
    images, annotations, results = [], [], []
    for _, (target,) in data.val_dataloader():
        height, width = target["size"]
        images.append({"id": target["image_id"], "height": height, "width": width})
        annotations += target["annotations"]
        results += [found_as(a, height, width) for a in target["annotations"]]
    for kind in ("bbox", "segm"):
        if kind == "bbox" or data.file("val", "eval").has_masks:
            for evaluator in ("pycocotools", "auto"):  # the other one where it is installed
                values = average_precision(
                    images, annotations, results, data.category_ids, kind, evaluator
                )
                # What is found as it is counts as found.
                assert np.isnan(values["map"]) or values["map"] > 0.99
    list(data.predict_dataloader())
    return data


def found_as(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return the result of a detector that finds an object exactly."""
    entry = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    if "segmentation" in annotation:
        mask = decode_mask(annotation["segmentation"], height, width)
        entry["segmentation"] = coco_mask.encode(np.asfortranarray(mask))
    return {**entry, "score": 0.9}


def check_target(image: Any, target: dict[str, Any], data: CocoDataModule) -> None:
    boxes = target["boxes"]
    assert boxes.isfinite().all()
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0.9).all()
    assert (boxes >= 0).all()
    height, width = image.shape[1:]
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert set(target["labels"].tolist()) <= set(range(1, len(data.class_names) + 1))
    if "masks" in target:
        assert target["masks"].shape == (len(boxes), *image.shape[1:])


def check(folder: Path, drawn: Any) -> None:
    draw = drawn.draw
    data = content()
    for _ in range(draw(st.integers(1, 3))):
        if places(data):
            mutate(data, draw)
    masks = draw(st.sampled_from([True, False, None]))
    skip = draw(st.booleans())
    limit = draw(st.sampled_from([0.1, 1.0]))
    path = folder / "mutated.json"
    path.write_text(json.dumps(data))
    refused: InputError | None = None
    try:
        module = run(folder, path, masks, skip_invalid=skip, max_left_out=limit)
    except InputError as error:
        refused = error
    event("refused" if refused else "run")
    if refused is not None:
        assert 1 <= len(str(refused).splitlines()) <= 3
        assert str(refused).startswith(str(folder)), "it names the file"
    elif not skip:  # then nothing may be missing
        train = [target for _, (target,) in module.train_dataloader()]
        val = [target for _, (target,) in module.val_dataloader()]
        every = [a for target in val for a in target["annotations"]]
        assert len(every) == len(data["annotations"])
        singles = sum(not a["iscrowd"] for a in every)
        assert sum(len(target["labels"]) for target in train) == singles


OPTIONS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


def test_the_json_that_is_changed_runs_as_it_is(folder):
    path = folder / "whole.json"
    path.write_text(json.dumps(content()))
    for masks in (True, False, None):
        run(folder, path, masks)


@settings(max_examples=30, derandomize=True, **OPTIONS)
@given(drawn=st.data())
def test_a_changed_json_is_read_in_full_or_refused(folder, drawn):
    check(folder, drawn)


@pytest.mark.long
@pytest.mark.timeout(7200)
@settings(max_examples=600, **OPTIONS)
@given(drawn=st.data())
def test_many_changed_jsons_are_read_in_full_or_refused(folder, drawn):
    check(folder, drawn)
