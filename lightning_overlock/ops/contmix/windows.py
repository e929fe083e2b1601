"""Clamped windows: where the taps of a pixel lie, and which entry of a bias table each one takes.

A window of K x K taps starts at clamp(i - K // 2, 0, L - K) on each axis: it never leaves the map,
so that nothing is padded (OverLoCK, arXiv 2502.20087, section 3.3). The bias of a tap depends on
its position relative to the pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_overlock.ops.kept import kept


def side(taps: int) -> int:
    """Return K of a window of K * K taps."""
    return round(int(taps) ** 0.5)  # under torch.jit.trace sizes are tensors


@kept
def starts(length: int, size: int, device: torch.device) -> Tensor:
    """First row (or column) of every pixel's window: (length,) int64."""
    return (torch.arange(length, device=device) - size // 2).clamp(0, length - size)


@kept
def window_index(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Position in the map of each pixel's taps: (H*W, K*K) int64."""
    tap = torch.arange(size, device=device)
    rows = starts(height, size, device)[:, None, None, None] + tap[:, None]
    columns = starts(width, size, device)[:, None, None] + tap
    return (rows * width + columns).reshape(height * width, size * size)


@kept
def offsets(length: int, size: int, device: torch.device) -> Tensor:
    """Which of the K windows of a bias table a pixel sees: start - pixel + K - 1, (length,)."""
    return starts(length, size, device) - torch.arange(length, device=device) + size - 1


def bias_rows(bias: Tensor, height: int) -> Tensor:
    """Windows of (G, 2K-1, 2K-1) tables for each pixel row: (G, H, K column offsets, K*K)."""
    size = (bias.shape[1] + 1) // 2
    windows = bias.unfold(1, size, 1).unfold(2, size, 1).flatten(3)
    return windows.index_select(1, offsets(height, size, bias.device))


def sum_offsets(x: Tensor, dim: int, size: int) -> Tensor:
    """Sum the pixels of an axis that see the same window of a bias table: length to K = size.

    Offsets fall from K - 1 to 0; all pixels but K // 2 at either end share the middle one.
    """
    half, length = size // 2, x.shape[dim]
    middle = x.narrow(dim, half, length - 2 * half).sum(dim, keepdim=True)
    parts = (x.narrow(dim, 0, half), middle, x.narrow(dim, length - half, half))
    return torch.cat(parts, dim).flip(dim)


def bias_grad(rows: Tensor) -> Tensor:
    """Adjoint of `bias_rows`: (G, H, K, K*K) to (G, 2K-1, 2K-1)."""
    groups, _, size, _ = rows.shape
    windows = sum_offsets(rows, 1, size).reshape(groups, size * size, size * size)
    return F.fold(windows.mT, (2 * size - 1, 2 * size - 1), size).squeeze(1)
