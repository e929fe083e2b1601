"""ContMix by gathering every pixel's window: the baseline that the other backends are held against.

What the authors' code falls back to without natten. Takes K * K times the memory of the map.
Importing this module adds it to ContMix's backends as "unfold".
"""

import torch
from torch import Tensor

from lightning_overlock.ops.contmix.operator import contmix_backend, contmix_kernels
from lightning_overlock.ops.contmix.windows import side, starts


def unfold(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    small_kernel: int | None,
    large_bias: Tensor | None,
    small_bias: Tensor | None,
) -> Tensor:
    """Mix values by plain operations of torch, with the arguments and the result of `contmix`."""
    small, large = contmix_kernels(
        query, tap_weights, tap_bias, large_bias, small_bias, small_kernel
    )
    if small is None:
        return _mix(value, large)
    first, second = value.chunk(2, dim=1)
    return torch.cat((_mix(first, small), _mix(second, large)), dim=1)


def _mix(value: Tensor, kernels: Tensor) -> Tensor:
    """Gather windows (B, C, H, W, K, K) and multiply them with kernels (B, G, H*W, K*K)."""
    batch, channels, height, width = value.shape
    groups, taps = kernels.shape[1], kernels.shape[3]
    size = side(taps)
    rows = starts(height, size, value.device)[:, None]
    columns = starts(width, size, value.device)
    windows = value.unfold(2, size, 1).unfold(3, size, 1)[:, :, rows, columns]
    windows = windows.reshape(batch, groups, channels // groups, height * width, taps)
    product = torch.einsum("bgcnk,bgnk->bgcn", windows, kernels.to(value.dtype))
    return product.reshape(value.shape)


contmix_backend.add("unfold", unfold)
