"""Depthwise convolutions of maps of a few pixels on a CPU, as one matrix product per channel.

On 4x4 pixels a 9x9 kernel has more taps than a pixel has neighbours, and a convolution's start
takes longer than its sums. Here each kernel is written out as the matrix from every pixel to every
pixel, those of all kernels below each other, so that each pass is one batched product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_overlock.ops.kept import kept
from lightning_overlock.ops.tracing import is_tracing

# Most pixels of a map: on 6x6 the convolutions are as fast (measured with AVX-512).
FEW = 16
DTYPES = (torch.float32, torch.float64)


def is_faster(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Tell whether maps (B, C, H, W) are convolved faster with these weights here.

    They are where the largest kernel reaches past the whole map from every pixel, and one map alone
    if it is a single pixel.
    """
    height, width = x.shape[2:]
    if x.dtype not in DTYPES or type(x) is not Tensor or is_tracing():
        return False
    if height * width == 1:
        return True
    largest = max(weight.shape[-1] for weight in weights)
    return len(weights) > 1 and height * width <= FEW and largest > 2 * max(height, width)


def correlate(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None
) -> list[Tensor]:
    """Return x (B, C, H, W) convolved with each weight (C, 1, k, k); bias goes to the first."""
    products = torch.bmm(_matrices(weights, dilations, x), _by_channel([x]))
    outputs = [_maps(each, x.shape[2:]) for each in products.chunk(len(weights), 1)]
    if bias is not None:
        outputs[0] += bias.view(-1, 1, 1)
    return outputs


def input_gradient(grads: list[Tensor], weights: list[Tensor], dilations: list[int]) -> Tensor:
    """Return the gradient (B, C, H, W) of the input."""
    matrices = _matrices(weights, dilations, grads[0])
    return _maps(torch.bmm(matrices.mT, _by_channel(grads)), grads[0].shape[2:])


def weight_gradients(
    x: Tensor, grads: list[Tensor], weights: list[Tensor], dilations: list[int]
) -> list[Tensor]:
    """Return the gradients (C, 1, k, k) of the weights."""
    of_matrices = torch.bmm(_by_channel(grads), _by_channel([x]).mT)
    parts = of_matrices.view(x.shape[1], len(weights), -1).unbind(1)
    return [
        (part @ _taps(weight.shape[-1], dilation, *x.shape[2:]).to(part).t()).view_as(weight)
        for part, weight, dilation in zip(parts, weights, dilations, strict=True)
    ]


def _by_channel(maps: list[Tensor]) -> Tensor:
    """Return maps (B, C, H, W) below each other, (C, maps * H * W, B)."""
    return torch.cat([each.permute(1, 2, 3, 0).flatten(1, 2) for each in maps], 1)


def _maps(pixels: Tensor, size: torch.Size) -> Tensor:
    """Return (C, H * W, B) as (B, C, H, W), channels-last."""
    maps = pixels.view(pixels.shape[0], *size, -1).permute(3, 0, 1, 2)
    return maps.contiguous(memory_format=torch.channels_last)


def _matrices(weights: Sequence[Tensor], dilations: Sequence[int], x: Tensor) -> Tensor:
    """Return each channel's matrices from pixels to pixels, (C, kernels * H * W, H * W)."""
    size = x.shape[2:]
    rows = [
        weight.flatten(1) @ _taps(weight.shape[-1], dilation, *size).to(weight)
        for weight, dilation in zip(weights, dilations, strict=True)
    ]
    return torch.cat(rows, 1).view(x.shape[1], -1, size.numel())


@kept
def _taps(kernel: int, dilation: int, height: int, width: int) -> Tensor:
    """Return which tap leads from an output's pixel to an input's, (k * k, pixels * pixels)."""
    pixel = torch.arange(height * width)
    y, x = pixel // width, pixel % width
    found = torch.zeros(len(pixel), len(pixel), dtype=torch.long)
    known = torch.ones_like(found, dtype=torch.bool)
    for place in (y, x):
        distance = place - place[:, None]
        tap = distance.div(dilation, rounding_mode="floor") + kernel // 2
        known &= (distance % dilation == 0) & (tap >= 0) & (tap < kernel)
        found = found * kernel + tap
    taps = F.one_hot(torch.where(known, found, kernel**2).flatten(), kernel**2 + 1)
    return taps[:, :-1].t().float().contiguous()
