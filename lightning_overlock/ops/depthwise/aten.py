"""Depthwise convolution by torch's own kernels, without cuDNN.

cuDNN before 9.24 has given wrong results of depthwise convolutions when different sizes ran one
after another, so that something else must stand beside it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


def correlate(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None
) -> list[Tensor]:
    """Return x (B, C, H, W) convolved with each weight (C, 1, k, k); bias goes to the first."""
    with torch.backends.cudnn.flags(enabled=False):
        return [
            F.conv2d(x, weight, None if index else bias, *_arguments(weight, dilation))
            for index, (weight, dilation) in enumerate(zip(weights, dilations, strict=True))
        ]


def input_gradient(grads: list[Tensor], weights: list[Tensor], dilations: list[int]) -> Tensor:
    """Return the gradient (B, C, H, W) of the input, summed over the kernels."""
    total = torch.zeros_like(grads[0])
    with torch.backends.cudnn.flags(enabled=False):
        for grad, weight, dilation in zip(grads, weights, dilations, strict=True):
            arguments = _arguments(weight, dilation)
            total += conv2d_input(grad.shape, weight, grad, *arguments)  # type: ignore[no-untyped-call]
    return total


def weight_gradients(
    x: Tensor, grads: list[Tensor], weights: list[Tensor], dilations: list[int]
) -> list[Tensor]:
    """Return the gradients (C, 1, k, k) of the weights."""
    with torch.backends.cudnn.flags(enabled=False):
        return [
            conv2d_weight(x, weight.shape, grad, *_arguments(weight, dilation))  # type: ignore[no-untyped-call]
            for grad, weight, dilation in zip(grads, weights, dilations, strict=True)
        ]


def _arguments(weight: Tensor, dilation: int) -> tuple[int, int, int, int]:
    """Stride, padding, dilation and groups."""
    return 1, weight.shape[-1] // 2 * dilation, dilation, weight.shape[0]
