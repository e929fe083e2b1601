"""COCO results and their average precision, against pycocotools on files and known answers."""

import contextlib
import io
import json
import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lightning_overlock.errors import InputError
from lightning_overlock.metrics.coco import (
    NAMES,
    average_precision,
    coco_results,
    find_evaluator,
)

SIDE = 120


def square(box):
    """Return the polygon of a box x, y, width, height."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(image_id, category_id, box, **more):
    return {
        "id": more.pop("id", 1),
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": square(box),
    } | more


def result(image_id, category_id, box, score):
    encoded = rle.merge(rle.frPyObjects(square(box), SIDE, SIDE))
    mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "score": score,
        "segmentation": mask,
    }


def images(count):
    return [{"id": 10 * i, "height": SIDE, "width": SIDE} for i in range(1, count + 1)]


def by_files(folder, images, annotations, results, categories, kind):
    """Return what pycocotools says of files, the way its own demonstration goes."""
    truth, found = folder / "truth.json", folder / "found.json"
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": category, "name": str(category)} for category in categories]
    truth.write_text(json.dumps(content))
    found.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(found)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats[:6], strict=True))


def assert_equal(ours, theirs):
    for name, value in theirs.items():
        if value == -1:
            assert math.isnan(ours[name])
        else:
            assert ours[name] == pytest.approx(value, abs=1e-12)


def random_scenes(seed, categories):
    """Draw annotations (crowds among them) and results near them, and some beside them."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for image in images(6)[:-1]:  # the last has no annotation
        for _ in range(random.integers(0, 5)):
            box = [*random.uniform(0, 40, 2).tolist(), *random.uniform(5, 70, 2).tolist()]
            crowd = int(random.random() < 0.2)
            category = int(random.choice(categories[:-1]))  # the last has no instance
            mask = rle.merge(rle.frPyObjects(square(box), SIDE, SIDE))
            shape = {"size": mask["size"], "counts": mask["counts"].decode()}
            annotations.append(
                annotation(
                    image["id"],
                    category,
                    box,
                    id=len(annotations) + 1,
                    iscrowd=crowd,
                    segmentation=shape if crowd else square(box),
                )
            )
            for _ in range(random.integers(0, 3)):
                moved = np.clip(np.array(box) + random.normal(0, 3, 4), 1, None).tolist()
                other = int(random.choice(categories)) if random.random() < 0.2 else category
                results.append(result(image["id"], other, moved, float(random.random())))
    results.append(result(60, categories[0], [5, 5, 20, 20], 0.7))
    results.append(result(60, categories[-1], [5, 5, 20, 20], 0.8))
    return annotations, results


# The second is an extra.
needs_faster = pytest.mark.skipif(not find_spec("faster_coco_eval"), reason="not installed")
evaluators = pytest.mark.parametrize(
    "evaluator", ["pycocotools", pytest.param("faster_coco_eval", marks=needs_faster)]
)


@evaluators
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools_on_files(tmp_path, seed, kind, evaluator):
    categories = [2, 7, 90]
    annotations, results = random_scenes(seed, categories)
    ours = average_precision(images(6), annotations, results, categories, kind, evaluator)
    assert_equal(ours, by_files(tmp_path, images(6), annotations, results, categories, kind))


@evaluators
@pytest.mark.parametrize("kind", ["bbox", "segm"])
class TestKnownAnswers:
    def test_perfect_results_have_one_and_absent_sizes_none(self, kind, evaluator):
        truth = [annotation(10, 3, [10, 10, 20, 20]), annotation(20, 5, [0, 0, 50, 50], id=2)]
        found = [result(10, 3, [10, 10, 20, 20], 0.9), result(20, 5, [0, 0, 50, 50], 0.8)]
        values = average_precision(images(2), truth, found, [3, 5], kind, evaluator)
        assert [values[n] for n in NAMES[:5]] == pytest.approx([1] * 5)
        assert math.isnan(values["map_large"])

    def test_a_class_without_an_instance_does_not_count(self, kind, evaluator):
        truth = [annotation(10, 3, [10, 10, 20, 20])]
        found = [result(10, 3, [10, 10, 20, 20], 0.9), result(10, 5, [10, 10, 20, 20], 0.95)]
        assert average_precision(images(1), truth, found, [3, 5], kind, evaluator)[
            "map"
        ] == pytest.approx(1)

    def test_no_result_is_zero_and_no_object_is_none(self, kind, evaluator):
        truth = [annotation(10, 3, [10, 10, 20, 20])]
        assert average_precision(images(1), truth, [], [3], kind, evaluator)["map"] == 0
        found = [result(10, 3, [10, 10, 20, 20], 0.9)]
        assert math.isnan(average_precision(images(1), [], found, [3], kind, evaluator)["map"])

    def test_results_inside_a_crowd_are_not_held_against_the_detector(self, kind, evaluator):
        truth = [
            annotation(10, 3, [0, 0, 20, 20]),
            annotation(10, 3, [30, 30, 60, 60], id=2, iscrowd=1),
        ]
        found = [
            result(10, 3, [0, 0, 20, 20], 0.5),
            result(10, 3, [35, 35, 20, 20], 0.9),
            result(10, 3, [60, 60, 20, 20], 0.8),
        ]
        assert average_precision(images(1), truth, found, [3], kind, evaluator)[
            "map"
        ] == pytest.approx(1)
        truth[1]["iscrowd"] = 0
        assert average_precision(images(1), truth, found, [3], kind, evaluator)["map"] < 0.5

    def test_an_annotation_numbered_zero_is_found(self, kind, evaluator):
        truth = [annotation(10, 3, [10, 10, 20, 20], id=0)]
        found = [result(10, 3, [10, 10, 20, 20], 0.9)]
        assert average_precision(images(1), truth, found, [3], kind, evaluator)[
            "map"
        ] == pytest.approx(1)

    def test_what_is_given_stays_as_it_is(self, kind, evaluator):
        truth, found = [annotation(10, 3, [10, 10, 20, 20])], [result(10, 3, [1, 1, 9, 9], 0.9)]
        before = json.dumps([truth, found])
        average_precision(images(1), truth, found, [3], kind, evaluator)
        assert json.dumps([truth, found]) == before


# pycocotools 2.0 decodes by an interface that numpy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@settings(max_examples=25, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 59), st.integers(1, 59)),
        max_size=4,
    )
)
def test_results_name_the_file_s_categories_and_keep_boxes_and_pixels(boxes):
    masks = torch.zeros(len(boxes), 1, SIDE, SIDE)
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        mask[0, y : y + h, x : x + w] = 0.6
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    detections = {
        "boxes": corners,
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "scores": torch.linspace(1, 0.5, len(boxes)),
        "masks": masks,
    }
    entries = coco_results(detections, 7, [4, 90, 11])
    assert [entry["category_id"] for entry in entries] == [4, 90, 11, 4][: len(boxes)]
    json.dumps(entries)
    for entry, box, mask in zip(entries, boxes, masks, strict=True):
        assert entry["image_id"] == 7
        assert entry["bbox"] == list(box)
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]), mask[0].numpy() > 0.5)


def test_the_detections_given_stay_as_they_are():
    boxes = torch.tensor([[1.0, 2.0, 5.0, 9.0]], dtype=torch.float64)
    detections = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    (entry,) = coco_results(detections, 1, [1])
    assert boxes.tolist() == [[1, 2, 5, 9]]
    assert entry["bbox"] == [1, 2, 4, 7]
    assert "segmentation" not in entry


def test_the_faster_evaluator_is_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)  # as if it were not
    assert find_evaluator("auto") == find_evaluator("pycocotools") == (COCO, COCOeval)
    with pytest.raises(InputError, match=r"expected pip install faster-coco-eval") as caught:
        find_evaluator("faster_coco_eval")
    assert "model.evaluator" in str(caught.value)


@needs_faster
def test_auto_is_the_faster_evaluator():
    assert find_evaluator("auto") == find_evaluator("faster_coco_eval") != (COCO, COCOeval)
