"""Context-mixing dynamic convolution."""

from typing import Any

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.conv_norm import ConvNorm
from lightning_overlock.layers.shapes import map_size
from lightning_overlock.layers.tap import Tap
from lightning_overlock.ops.contmix.operator import contmix, contmix_kernels
from lightning_overlock.ops.tracing import is_open


@register_notrace_module
class ContMix(nn.Module):
    """Convolution whose kernel at every pixel is made from that pixel's affinity to the context.

    The context is pooled to a grid x grid summary; the affinities of a pixel (query) to its cells
    (keys) are mapped linearly to the weights of a KxK kernel and, for half of the channels, of a
    small kernel. So every kernel has seen the whole context, while the aggregation stays local.
    Source: OverLoCK (arXiv 2502.20087), section 3.3. A map whose short side is less than K is
    resized to K for the aggregation and averaged back.

    Args:
        dim: C of input and output.
        context_dim: C of the context; None where `forward` gets no context and x is its own.
        kernel_size: Side K of the large kernel in pixels, odd.
        small_kernel: Side in pixels of the kernel of the first half of the channels; 0 or None
            gives all of them the KxK kernel.
        num_heads: Heads H; the channels fall into 2 H groups, each with kernels of its own.
        context_grid: Side in cells of the grid that the context is pooled to.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Raises:
        ConfigError: Channels do not divide by the groups, a kernel is even, or the small kernel is
            not smaller.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        kernel_size: int = 13,
        small_kernel: int | None = 5,
        num_heads: int = 4,
        context_grid: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        groups = 2 * num_heads
        small_kernel = small_kernel or None
        if dim % (2 * groups):
            raise ConfigError(f"dim is {dim}; expected a multiple of 4 * num_heads = {2 * groups}")
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {kernel_size}; expected an odd number")
        if small_kernel is not None and (small_kernel % 2 == 0 or small_kernel >= kernel_size):
            raise ConfigError(
                f"small_kernel is {small_kernel}; expected an odd number below {kernel_size}"
            )
        if context_grid < 1:
            raise ConfigError(f"context_grid is {context_grid}; expected at least 1")
        self.groups = groups
        self.kernel_size = kernel_size
        self.small_kernel = small_kernel
        self.context_grid = context_grid
        self.query_scale = (dim // groups) ** -0.5
        self.query = ConvNorm(dim, dim // 2, **dd)
        self.key = ConvNorm(context_dim or dim, dim // 2, **dd)
        taps = [kernel_size] if small_kernel is None else [small_kernel, kernel_size]
        self.kernel_map = nn.Linear(context_grid**2, sum(k * k for k in taps), **dd)
        self.large_bias = nn.Parameter(torch.zeros(groups, *[2 * kernel_size - 1] * 2, **dd))
        self.small_bias = (
            nn.Parameter(torch.zeros(groups, *[2 * small_kernel - 1] * 2, **dd))
            if small_kernel
            else None
        )
        self.kernel_tap = Tap()
        self.small_kernel_tap = Tap()
        self.proj = ConvNorm(dim, dim, **dd)

    def forward(
        self, x: Tensor, context: Tensor | None = None, value: Tensor | None = None
    ) -> Tensor:
        """Mix `value` with the kernels that x and its context make.

        Args:
            x: (B, C, H, W), the queries.
            context: (B, context_dim, H', W'), any size; None takes x.
            value: (B, C, H, W), what is aggregated; None takes x.

        Returns:
            (B, C, H, W).
        """
        context = x if context is None else context
        value = x if value is None else value
        size = map_size(x)
        resized = self.aggregation_size(*size)
        if resized != size:
            same = context is x
            x = F.interpolate(x, resized, mode="bilinear")
            context = x if same else F.interpolate(context, resized, mode="bilinear")
            value = F.interpolate(value, resized, mode="bilinear")
        query, tap_weights = self._query_and_tap_weights(x, context)
        if self.kernel_tap.wanted or self.small_kernel_tap.wanted:
            small, large = contmix_kernels(
                query,
                tap_weights,
                self.kernel_map.bias,
                self.large_bias,
                self.small_bias,
                self.small_kernel,
            )
            self.kernel_tap(large)
            if small is not None:
                self.small_kernel_tap(small)
        mixed = contmix(
            value,
            query,
            tap_weights,
            self.kernel_map.bias,
            small_kernel=self.small_kernel,
            large_bias=self.large_bias,
            small_bias=self.small_bias,
        )
        if resized != size:
            mixed = F.adaptive_avg_pool2d(mixed, size)
        return self.proj(mixed)

    def aggregation_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the map's size, or that with a short side of K if it is smaller."""
        k = self.kernel_size
        if height >= k and width >= k:  # apart: `min` of symbolic sizes would compare them
            return height, width
        if is_open(height):
            raise ValueError(
                f"a map is smaller than ContMix's kernel of {k}x{k} pixels and would be resized, "
                "which an exported network with open sizes cannot do"
            )
        short = min(height, width)
        return (k * height // short, k * width // short)

    def _query_and_tap_weights(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, C/2, H, W) and tap_weights (B, G, C/2/G, k*k + K*K)."""
        query = self.query(x)
        key = self.key(F.adaptive_avg_pool2d(context, self.context_grid))
        key = key.reshape(key.shape[0], self.groups, -1, self.context_grid**2)
        # (query . key) . map = query . (key . map): the second order never holds an affinity per
        # pixel and costs a third.
        return query, F.linear(key * self.query_scale, self.kernel_map.weight)
