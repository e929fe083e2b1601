"""Depthwise convolution on a CPU: all three passes as forward convolutions that oneDNN is fast at.

oneDNN's kernels for the gradients of large or dilated depthwise convolutions, and for padding of 7
and more, are plain loops, up to a hundred times slower than its best ones. Both gradients are
depthwise convolutions themselves, and padding can be put around the map beforehand.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOW_STRIDE = 4  # from which oneDNN 3 leaves its fast kernels
NCHW_KERNEL = 13


class Rules(NamedTuple):
    """Where oneDNN is fast on a kind of CPU.

    Args:
        slow_padding: Padding in pixels from which it leaves its fast kernels.
        nchw_width: Widest map on which `NCHW_KERNEL` is faster in NCHW, the way there and back
            included.
        last_width: Widest map whose slow weight gradients are faster channels-last, unpadded.
    """

    slow_padding: int
    nchw_width: int
    last_width: int


# Measured with each: NCHW is twice as fast with AVX-512 and up to 70 times as slow with AVX2, where
# channels-last gives up to 20 times the speed.
RULES = {
    "AVX512": Rules(slow_padding=7, nchw_width=28, last_width=0),
    "AVX2": Rules(slow_padding=5, nchw_width=0, last_width=16),
}
rules = RULES["AVX512" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "AVX2"]


def correlate(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None
) -> list[Tensor]:
    """Return x (B, C, H, W) convolved with each weight (C, 1, k, k); bias goes to the first."""
    return [
        _convolve(x, weight, None if index else bias, dilation)
        for index, (weight, dilation) in enumerate(zip(weights, dilations, strict=True))
    ]


def input_gradient(grads: list[Tensor], weights: list[Tensor], dilations: list[int]) -> Tensor:
    """Return the gradient (B, C, H, W) of the input: each output's convolved with flipped taps."""
    parts = zip(grads, weights, dilations, strict=True)
    grad, weight, dilation = next(parts)
    total = _convolve(grad, weight.flip(2, 3), None, dilation)
    for grad, weight, dilation in parts:
        total += _convolve(grad, weight.flip(2, 3), None, dilation)
    return total


def weight_gradients(
    x: Tensor, grads: list[Tensor], weights: list[Tensor], dilations: list[int]
) -> list[Tensor]:
    """Return the gradients (C, 1, k, k) of the weights.

    Every map of x is convolved with the map of the gradient as its kernel; the dilation is the
    stride of that. Images become channels, whose results are summed.
    """
    batch, channels, height, width = x.shape
    maps = x.contiguous().view(1, batch * channels, height, width)
    found = []
    for grad, weight, dilation in zip(grads, weights, dilations, strict=True):
        padding = dilation * (weight.shape[-1] // 2)
        source = maps
        if dilation >= SLOW_STRIDE or padding >= min(rules.slow_padding, height, width):
            if max(height, width) <= rules.last_width:
                source = maps.contiguous(memory_format=torch.channels_last)
            else:
                source, padding = F.pad(maps, (padding,) * 4), 0
        kernel = grad.contiguous().view(batch * channels, 1, height, width)
        taps = F.conv2d(source, kernel, None, dilation, padding, 1, batch * channels)
        by_image = taps.view(batch, *weight.shape)
        wide = torch.promote_types(weight.dtype, torch.float32)
        found.append(by_image.sum(0, dtype=wide).to(weight.dtype))
    return found


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    # Without dilation the channels-last kernel takes any padding.
    plain = dilation == 1 and x.is_contiguous(memory_format=torch.channels_last)
    # On maps smaller than the padding NCHW is 40 times as slow.
    fits = padding <= min(x.shape[-2:]) and x.shape[-1] <= rules.nchw_width
    if plain and fits and weight.shape[-1] == NCHW_KERNEL:
        # The weight of a channels-last network says so by its strides, and torch would go back.
        weight = weight.flatten(1, 2).unsqueeze(1)
        y = F.conv2d(x.contiguous(), weight, bias, 1, padding, 1, x.shape[1])
        return y.contiguous(memory_format=torch.channels_last)
    if not plain and padding >= min(rules.slow_padding, *x.shape[-2:]):
        x, padding = F.pad(x, (padding,) * 4), 0
    return F.conv2d(x, weight, bias, 1, padding, dilation, x.shape[1])
