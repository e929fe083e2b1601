"""The logits of ContMix's kernels, made from queries for a block of pixels at a time."""

import torch
from torch import Tensor

from lightning_overlock.ops.contmix.windows import bias_rows, offsets, side


def unflatten(x: Tensor, dim: int, first: int, second: int) -> Tensor:
    """View one axis as two."""
    return x.view(*x.shape[:dim], first, second, *x.shape[dim + 1 :])


def grouped(x: Tensor, groups: int) -> Tensor:
    """View (B, C, H, W) as (B, G, H, W, C/G)."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).permute(0, 1, 3, 4, 2)


def softmax(logits: Tensor) -> Tensor:
    """Return kernels in float32 or wider."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class Bias:
    """The bias of logits: (G, H, K column offsets, K*K) as of `bias_rows`."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.last: tuple[tuple[slice, slice], Tensor] | None = None

    def of_pixels(self, groups: slice, rows: slice, width: int) -> Tensor:
        """Return the bias of some groups and rows of pixels: (groups, rows, W, K*K)."""
        if self.last is None or self.last[0] != (groups, rows):  # the next images ask again
            columns = offsets(width, self.rows.shape[2], self.rows.device)
            self.last = (groups, rows), self.rows[groups, rows].index_select(2, columns)
        return self.last[1]


class Logits:
    """Logits that are products of queries and tap weights, made anew wherever they are needed."""

    def __init__(
        self, query: Tensor, tap_weights: Tensor, tap_bias: Tensor | None, table: Tensor | None
    ) -> None:
        self.groups, self.taps = tap_weights.shape[1], tap_weights.shape[3]
        dtype = torch.promote_types(query.dtype, tap_weights.dtype)
        self.query = grouped(query, self.groups).to(dtype)
        self.tap_weights = tap_weights.to(dtype)
        bias = None if table is None else bias_rows(table, query.shape[2])
        if tap_bias is not None:
            shape = (self.groups, query.shape[2], side(self.taps), self.taps)
            bias = tap_bias.expand(shape) if bias is None else bias + tap_bias
        self.bias = None if bias is None else Bias(bias)
        self.query_grad: Tensor | None = None
        self.tap_weights_grad: Tensor | None = None

    def rows(self, block: tuple[slice, slice], rows: slice) -> Tensor:
        """Return biased logits of some images, groups and rows of pixels: (b, g, rows, W, K*K)."""
        query = self.query[block][:, :, rows]
        logits = unflatten(query.flatten(2, 3) @ self.tap_weights[block], 2, *query.shape[2:4])
        if self.bias is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits += self.bias.of_pixels(block[1], rows, query.shape[3])
        return logits

    def add_grad(self, grad: Tensor, block: tuple[slice, slice], rows: slice) -> None:
        """Add the gradient of what `rows` gave to those of queries and tap weights."""
        query = self.query[block][:, :, rows]
        flat = grad.flatten(2, 3).to(query.dtype)
        if self.query_grad is not None:
            product = flat @ self.tap_weights[block].mT
            self.query_grad[block][:, :, rows] = product.view_as(query)
        if self.tap_weights_grad is not None:  # in float32 or wider, over the rows
            self.tap_weights_grad[block] += query.flatten(2, 3).mT @ flat
