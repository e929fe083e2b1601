"""ContMix in torch's standard operations, for sizes that may be symbolic: what is exported."""

import torch
from torch import Tensor

from lightning_overlock.ops.contmix.windows import bias_rows, offsets, side, starts


def standard(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
) -> Tensor:
    """Return one kernel size of `contmix`, a row of taps at a time.

    Nothing is larger than K maps, no loop depends on the map's size, and no operator is ours.

    Args:
        value: (B, C, H, W).
        query: (B, G * d, H, W).
        tap_weights: (B, G, d, K*K).
        tap_bias: (K*K,) or None.
        table: (G, 2K-1, 2K-1), the bias by relative position, or None.

    Returns:
        (B, C, H, W) in the dtype of `value`.
    """
    groups, taps = tap_weights.shape[1], int(tap_weights.shape[3])
    size, device = side(taps), value.device
    batch, channels, height, width = value.shape
    logits = query.reshape(batch, groups, -1, height * width).mT @ tap_weights
    logits = logits.reshape(batch, groups, height, width, taps)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if tap_bias is not None:
        logits = logits + tap_bias
    if table is not None:
        logits = logits + bias_rows(table, height).index_select(2, offsets(width, size, device))
    kernels = logits.softmax(-1).to(value.dtype).reshape(batch, groups, 1, height, width, taps)
    tap = torch.arange(size, device=device)
    columns = (starts(width, size, device)[:, None] + tap).reshape(-1)
    source = value.index_select(3, columns).reshape(
        batch, groups, channels // groups, height, width, size
    )
    first = starts(height, size, device)
    rows = (
        source.index_select(3, first + row) * kernels[..., row * size : (row + 1) * size]
        for row in range(size)
    )
    mixed = next(rows).sum(-1)
    for row in rows:
        mixed = mixed + row.sum(-1)
    return mixed.reshape(batch, channels, height, width)
