"""Detections as COCO results, and their average precision by pycocotools' rules."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lightning_overlock.errors import InputError

Evaluator = Literal["auto", "pycocotools", "faster_coco_eval"]

# The first six of the twelve numbers that COCOeval sums up.
NAMES = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


def find_evaluator(name: Evaluator) -> tuple[Any, Any]:
    """Return the classes COCO and COCOeval of a library; both give the same figures.

    Args:
        name: "auto" takes faster_coco_eval where it is installed.

    Raises:
        InputError: `faster_coco_eval` is asked for and not installed.
    """
    if name != "pycocotools":
        try:
            from faster_coco_eval.core import COCO as FASTER_COCO
            from faster_coco_eval.core import COCOeval_faster
        except ImportError as error:
            if name == "faster_coco_eval":
                raise InputError(
                    f"model.evaluator is faster_coco_eval, which cannot be imported ({error})\n"
                    "expected pip install faster-coco-eval, or model.evaluator pycocotools"
                ) from error
        else:
            return FASTER_COCO, COCOeval_faster
    return COCO, COCOeval


def coco_results(
    detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Write the detections in one image as entries of a COCO result file.

    Args:
        detections: What torchvision's detectors return for an image: `boxes` (N, 4) x1, y1, x2, y2
            in pixels, `labels` (N,) from 1, `scores` (N,), and where there are masks, `masks`
            (N, 1, H, W), probabilities.
        image_id: The image's id.
        category_ids: The category of label i is `category_ids[i - 1]`.

    Returns:
        N entries: image_id, category_id, bbox [x, y, width, height], score, and with masks
        `segmentation`, the pixels above one half as compressed RLE.
    """
    corners = detections["boxes"].double().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    entries: list[dict[str, Any]] = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }
        for box, label, score in zip(
            boxes.tolist(),
            detections["labels"].tolist(),
            detections["scores"].tolist(),
            strict=True,
        )
    ]
    if "masks" in detections and entries:
        # pycocotools encodes masks that lie one after the other, each column by column.
        inside = (detections["masks"][:, 0] > 0.5).byte().permute(1, 2, 0).cpu().numpy()
        for entry, code in zip(entries, rle.encode(np.asfortranarray(inside)), strict=True):
            entry["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    return entries


def average_precision(
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
    kind: str,
    evaluator: Evaluator = "auto",
) -> dict[str, float]:
    """Measure results as pycocotools does a result file.

    Crowd regions, areas and absent classes are treated by its rules: a class without an instance
    does not count; an image without annotations has false positives only. As in
    `COCO.loadRes`, the size of a detection that has a box is that of the box, for masks too
    (mmdetection takes the mask's, which can move the AP of masks by size, not the others).
    Annotations are numbered anew, since pycocotools counts one with the id 0 as never found.

    Args:
        images: COCO `images`: id, height, width.
        annotations: COCO `annotations`: image_id, category_id, bbox, area, iscrowd, and
            `segmentation` for masks (polygons or RLE).
        results: Entries of a result file, see `coco_results`.
        category_ids: The categories that count.
        kind: "bbox" or "segm".
        evaluator: What computes it; see `find_evaluator`.

    Returns:
        `map` (IoU .5 to .95), `map50`, `map75`, `map_small`, `map_medium`, `map_large`; NaN where
        pycocotools says -1: there is no object (of this size).
    """
    coco_class, evaluation_class = find_evaluator(evaluator)
    # Both add keys to what they are given, and report on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = {
            "images": [dict(image) for image in images],
            "categories": [{"id": category} for category in category_ids],
            "annotations": [
                {**annotation, "id": number} for number, annotation in enumerate(annotations, 1)
            ],
        }
        truth.createIndex()
        if results:
            found = truth.loadRes([dict(entry) for entry in results])
        else:  # loadRes looks at the first entry
            found = coco_class()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluation = evaluation_class(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = zip(NAMES, map(float, evaluation.stats), strict=False)
    return {name: value if value >= 0 else float("nan") for name, value in values}
