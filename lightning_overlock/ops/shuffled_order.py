"""An order that looks random and is the same everywhere."""

import torch
from torch import Tensor


def shuffled_order(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a permutation of 0 to count - 1 that looks random and is the same everywhere.

    The places are sorted by a hash of their number (the finaliser of MurmurHash3, in integers), so
    that it needs no generator and can be traced, compiled and exported.

    Args:
        count: Number of tokens.
        device: Device that the permutation is made on.

    Returns:
        (count,) int64: the place in raster order of the token that comes first, second, ...
    """
    x = (torch.arange(count, device=device) + 1) * 0x9E3779B1 & 0xFFFFFFFF
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x.argsort()
