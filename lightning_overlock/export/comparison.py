"""An exported network beside the one that it was made from: values and latency."""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.ops import box_iou

from lightning_overlock.bench.exported import Outputs, Runner
from lightning_overlock.bench.measure import Step, time_interleaved
from lightning_overlock.errors import InputError

# Largest difference of logits over the size of the logits, by the weights' type.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# What near-ties may turn round: boxes at a threshold, labels beyond what rounding explains.
FEWEST_EQUAL = 0.99
SAME_BOX = 0.99


def compare(
    eager: Runner, exported: Runner, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Compare both on random images.

    Args:
        eager: The network in float32.
        exported: What was made of it.
        shapes: (B, 3, H, W) of the images.
        dtype: Type of the exported weights, which the tolerance depends on.

    Returns:
        A row per shape: "shape", "difference" (of logits over the largest logit, or of scores) and
        "equal", the share of labels that are equal but for ties within the tolerance, or of objects
        that both have found.

    Raises:
        InputError: They differ.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for shape in shapes:
        images = torch.rand(shape, generator=generator)
        expected, found = eager(images), exported(images)
        match = _objects if "boxes" in expected else _logits
        difference, equal = match(expected, found, TOLERANCES[dtype])
        if not difference <= TOLERANCES[dtype] or equal < FEWEST_EQUAL:
            raise InputError(
                f"the exported network differs from the task's on images of {list(shape)}: by "
                f"{difference:.2g} (at most {TOLERANCES[dtype]:g}), {equal:.1%} of labels equal\n"
                "nothing was written"
            )
        rows.append({"shape": list(shape), "difference": difference, "equal": equal})
    return rows


def _logits(expected: Outputs, found: Outputs, tolerance: float) -> tuple[float, float]:
    """Compare logits, and count labels that are the best but for a tie within the tolerance."""
    a, b = expected["logits"].double(), found["logits"].double()
    if a.shape != b.shape:
        return float("inf"), 0.0
    labels = found["labels"] if "labels" in found else b.argmax(1)
    largest = a.abs().max().clamp(min=1e-12)
    short = a.amax(1) - a.gather(1, labels[:, None])[:, 0]
    equal = (short <= tolerance * largest).double().mean()
    return float((a - b).abs().max() / largest), float(equal)


def _objects(expected: Outputs, found: Outputs, _: float) -> tuple[float, float]:
    """Match each object with the one of its class that overlaps most, and compare their scores."""
    count, other = len(expected["boxes"]), len(found["boxes"])
    if count == 0 or other == 0:
        return 0.0, float(count == other)
    overlap = box_iou(expected["boxes"].double(), found["boxes"].double())
    overlap[expected["labels"][:, None] != found["labels"]] = 0
    best, match = overlap.max(1)
    same = best > SAME_BOX
    if not same.any():
        return 0.0, 0.0
    difference = (expected["scores"] - found["scores"][match])[same].abs().max()
    if "masks" in expected:
        masks = (expected["masks"] - found["masks"][match])[same].abs().mean()
        difference = torch.maximum(difference, masks)
    return float(difference), float(same.double().mean()) * min(1.0, count / other)


def latencies(
    eager: Runner, exported: Runner, shape: tuple[int, ...], seconds: float
) -> dict[str, float]:
    """Return the median milliseconds of both, taken in turn on the same images."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    steps: dict[str, Step] = {"eager": lambda: eager(images), "exported": lambda: exported(images)}
    found = time_interleaved(steps, seconds)
    return {name: 1000 * value for name, value in found.items()}
