"""Segmentation of images window by window, and the class of every pixel from several views."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Values (classes x pixels) that are resized to the label's size at a time: 64 MB.
VALUES_AT_ONCE = 2**24


def slide(
    network: Callable[[Tensor], Tensor], images: Tensor, num_classes: int, window: int, stride: int
) -> Tensor:
    """Return the mean of a network's logits over overlapping windows.

    Args:
        network: Maps images (B, 3, h, w) to logits (B, num_classes, h / r, w / r).
        images: (B, 3, H, W).
        num_classes: Number of classes.
        window: Side of a window in pixels.
        stride: Pixels from one window to the next; the last one lies at the end.

    Returns:
        Logits (B, num_classes, H, W), float32.
    """
    height, width = images.shape[-2:]
    total = images.new_zeros(len(images), num_classes, height, width)
    count = images.new_zeros(height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            crop = images[place]
            logits = network(crop).float()
            total[place] += F.interpolate(logits, crop.shape[-2:], mode="bilinear")
            count[place] += 1
    return (total / count).float()


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin: `stride` apart, the last one at the end."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def likeliest(views: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the class of every pixel by the mean probability of several views.

    Logits are resized (bilinear) before the softmax, a strip of rows at a time: 150 classes of a
    large photo would take gigabytes.

    Args:
        views: Logits (classes, h, w), of one size or several.
        size: (height, width) of the result.
    """
    height, width = size
    first = views[0]
    rows, columns = (
        (2 * torch.arange(length, device=first.device) + 1) / length - 1 for length in size
    )
    labels = torch.empty(size, dtype=torch.int64, device=first.device)
    strip = max(VALUES_AT_ONCE // (len(first) * width), 1)
    for top in range(0, height, strip):
        grid = torch.stack(torch.meshgrid(columns, rows[top : top + strip], indexing="xy"), dim=-1)
        resized = (
            F.grid_sample(view[None], grid[None], padding_mode="border", align_corners=False)[0]
            for view in views
        )
        probabilities = (logits.softmax(0) for logits in resized)
        total = sum(probabilities, torch.zeros(()).to(first))
        labels[top : top + strip] = total.argmax(0)
    return labels
