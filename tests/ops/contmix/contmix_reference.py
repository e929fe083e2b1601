"""ContMix's definition: slow, obvious, float64. What every backend is held against."""

import torch
from torch import Tensor


def contmix_reference(
    value: Tensor,
    large_logits: Tensor,
    small_logits: Tensor | None = None,
    *,
    large_bias: Tensor | None = None,
    small_bias: Tensor | None = None,
) -> Tensor:
    """The definition as plain loops over pixels and taps, from logits (B, G, H*W, K*K)."""
    if small_logits is not None:
        first, second = value.chunk(2, dim=1)
        return torch.cat(
            (
                contmix_reference(first, small_logits, large_bias=small_bias),
                contmix_reference(second, large_logits, large_bias=large_bias),
            ),
            dim=1,
        )
    batch, channels, height, width = value.shape
    groups = large_logits.shape[1]
    size = round(large_logits.shape[3] ** 0.5)
    rows = []
    for i in range(height):
        top = min(max(i - size // 2, 0), height - size)
        for j in range(width):
            left = min(max(j - size // 2, 0), width - size)
            logits = large_logits[:, :, i * width + j].clone()
            if large_bias is not None:
                for tap in range(size * size):
                    r, c = top + tap // size, left + tap % size
                    logits[:, :, tap] += large_bias[:, r - i + size - 1, c - j + size - 1]
            kernel = logits.softmax(-1)
            total = torch.zeros(batch, channels, dtype=value.dtype, device=value.device)
            for tap in range(size * size):
                weight = kernel[:, :, tap].repeat_interleave(channels // groups, dim=1)
                total = total + weight * value[:, :, top + tap // size, left + tap % size]
            rows.append(total)
    return torch.stack(rows, dim=-1).reshape(value.shape)


def logits_of(
    query: Tensor, tap_weights: Tensor, tap_bias: Tensor | None, small_kernel: int | None
) -> tuple[Tensor | None, Tensor]:
    """Return the logits of the small kernel, if there is one, and of the large one."""
    batch, groups, width = tap_weights.shape[:3]
    rows = query.reshape(batch, groups, width, -1)
    logits = torch.einsum("bgdn,bgdt->bgnt", rows, tap_weights)
    if tap_bias is not None:
        logits = logits + tap_bias
    split = (small_kernel or 0) ** 2
    return (logits[..., :split] if split else None), logits[..., split:]


def as_queries(value: Tensor, *logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return queries and tap weights whose products are given logits, the small kernel's first.

    Every pixel has a query of its own, a row of the identity; the tap weights are the logits.
    """
    batch, _, height, width = value.shape
    tap_weights = torch.cat([x for x in logits if x is not None], dim=-1)
    groups, pixels = tap_weights.shape[1], height * width
    eye = torch.eye(pixels, dtype=tap_weights.dtype, device=value.device)
    query = eye.repeat(groups, 1).reshape(1, groups * pixels, height, width)
    return query.expand(batch, -1, -1, -1), tap_weights
