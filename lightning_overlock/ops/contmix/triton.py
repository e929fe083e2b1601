"""The fused ContMix on a GPU: its forward and backward, launched as Triton kernels."""

# mypy: disable-error-code="no-untyped-call"

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lightning_overlock.ops.contmix.triton_kernels import (
    COLUMNS,
    backward_query_kernel,
    backward_value_kernel,
    forward_kernel,
)
from lightning_overlock.ops.contmix.windows import sum_offsets

# A tile has as many pixels of a row as the smallest side of a product, and a warp per row. It has
# at most so many rows, and fewer where heads are so wide that this many bytes of values would not
# do: then shared memory (99 KiB on the smaller chips) would not either.
MAX_ROWS = 8
TILE_BYTES = 8192

_DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def forward(
    value: Tensor, query: Tensor, tap_weights: Tensor, tap_bias: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mix the values with one kernel size.

    Args:
        value: (B, C, H, W).
        query: (B, G * d, H, W).
        tap_weights: (B, G, d, K*K).
        tap_bias: (K*K,), contiguous, or None.
        table: (G, 2K-1, 2K-1), contiguous, or None.

    Returns:
        (B, C, H, W) like `value`, and the logarithm of each pixel's sum of exponentials,
        (B, G, H, W) float32, from which `backward` makes the weights again.
    """
    output = torch.empty_like(value)
    log_sums = value.new_empty(
        (value.shape[0], tap_weights.shape[1], *value.shape[2:]), dtype=torch.float32
    )
    _launch(
        forward_kernel,
        value,
        query,
        tap_weights,
        tap_bias=tap_bias,
        table=table,
        output=output,
        log_sums=log_sums,
    )
    return output, log_sums


def backward(
    grad: Tensor,
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    output: Tensor,
    log_sums: Tensor,
    targets: Sequence[Tensor | None],
) -> None:
    """Fill in the gradients of `forward`'s arguments.

    Args:
        grad: Gradient of the output, (B, C, H, W).
        value: The argument of `forward`.
        query: The argument of `forward`.
        tap_weights: The argument of `forward`.
        tap_bias: The argument of `forward`.
        table: The argument of `forward`.
        output: What `forward` returned.
        log_sums: What `forward` returned.
        targets: Tensors for the gradients of the five arguments; None for what is not wanted.
    """
    inputs = value, query, tap_weights
    tensors: dict[str, Any] = dict(tap_bias=tap_bias, table=table, log_sums=log_sums, grad=grad)
    value_grad, query_grad, tap_weights_grad, tap_bias_grad, table_grad = targets
    if value_grad is not None:
        _launch(backward_value_kernel, *inputs, **tensors, value_grad=value_grad)
    if all(target is None for target in targets[1:]):
        return
    batch, groups, width, taps = tap_weights.shape
    size = math.isqrt(taps)
    across = triton.cdiv(value.shape[3], COLUMNS.value)
    tiles = triton.cdiv(value.shape[2], _tile_rows(*inputs)) * across

    def parts(*shape: int) -> Tensor:
        return value.new_empty((batch, groups, *shape), dtype=torch.float32)

    tap_weights_parts = parts(tiles, width, taps)
    tap_bias_parts = None if tap_bias is None else parts(tiles, taps)
    table_parts = None if table is None else parts(across, value.shape[2], size, 2 * size - 1)
    _launch(
        backward_query_kernel,
        *inputs,
        **tensors,
        output=output,
        query_grad=torch.empty_like(query) if query_grad is None else query_grad,
        tap_weights_parts=tap_weights_parts,
        tap_bias_parts=tap_bias_parts,
        table_parts=table_parts,
    )
    if tap_weights_grad is not None:
        tap_weights_grad.copy_(tap_weights_parts.sum(2))
    if tap_bias_grad is not None and tap_bias_parts is not None:
        tap_bias_grad.copy_(tap_bias_parts.sum((0, 1, 2)))
    if table_grad is not None and table_parts is not None:
        table_grad.copy_(_table_grad(table_parts.sum((0, 2))))


def _table_grad(rows: Tensor) -> Tensor:
    """Sum (G, H, K, 2K-1), by row of pixels and row of taps, to (G, 2K-1, 2K-1)."""
    groups, _, size, length = rows.shape
    # (G, row offset, row of taps, 2K-1): what offset and row of taps add up to is the table's row.
    # Padding the rows of taps from K to 2K and reading 2K-1 at a time moves each by its offset.
    by_offset = F.pad(sum_offsets(rows, 1, size), (0, 0, 0, size)).flatten(1, 2)
    return by_offset[:, : size * length].reshape(groups, size, length, length).sum(1)


def _block(length: int) -> int:
    """Length of a block's axis that holds `length` numbers: what products and Triton ask for."""
    return max(16, triton.next_power_of_2(length))


def _tile_rows(value: Tensor, query: Tensor, tap_weights: Tensor) -> int:
    """Rows of a tile, a power of two."""
    width = _block(max(tap_weights.shape[2], value.shape[1] // tap_weights.shape[1]))
    number = max(x.element_size() for x in (value, query, tap_weights))
    return max(1, min(MAX_ROWS, TILE_BYTES // (COLUMNS.value * width * number)))


def _launch(
    kernel: Any, value: Tensor, query: Tensor, tap_weights: Tensor, **others: Tensor | None
) -> None:
    """Run a kernel, one program per head and tile; it takes its arguments by their names."""
    batch, channels, height, width = value.shape
    groups, query_width, taps = tap_weights.shape[1:]
    size = math.isqrt(taps)
    value_width = channels // groups
    rows = _tile_rows(value, query, tap_weights)
    tensors = dict(value=value, query=query, tap_weights=tap_weights, **others)
    # The interpreter calculates wrongly in bfloat16.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    query_dtype = torch.promote_types(query.dtype, tap_weights.dtype)
    arguments = {
        **tensors,
        **{f"{name}_stride": x.stride() for name, x in tensors.items() if x is not None},
        "groups": groups,
        "height": height,
        "width": width,
        "SIZE": size,
        "QUERY_WIDTH": query_width,
        "VALUE_WIDTH": value_width,
        "QUERY_DTYPE": tl.float32 if interpreted else _DTYPES[query_dtype],
        "VALUE_DTYPE": tl.float32 if interpreted else _DTYPES[value.dtype],
        "ROWS": rows,
        "TAPS": _block(size),
        # Columns of the map that the windows of a tile's row of pixels cover together.
        "SPAN": _block(min(width, size + COLUMNS.value - 1)),
        "D": _block(query_width),
        "C": _block(value_width),
    }
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, COLUMNS.value)
    with torch.cuda.device_of(value):
        kernel[(batch * groups * tiles,)](
            **{name: arguments[name] for name in kernel.arg_names},
            num_warps=rows,
            num_stages=2,
            # Asked for by name: its default changes with Triton's version.
            enable_fp_fusion=True,
        )
