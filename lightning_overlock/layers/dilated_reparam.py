"""Large depthwise convolution trained with parallel dilated branches (UniRepLKNet)."""

from typing import Any

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.conv_norm import ConvNorm, norm_affine
from lightning_overlock.layers.depthwise_conv import DepthwiseConv
from lightning_overlock.ops.depthwise.operator import depthwise

# Kernel size -> (kernel, dilation) of each parallel branch, as OverLoCK's release trains them.
BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}


@register_notrace_module
class DilatedReparamConv(nn.Module):
    """Depthwise KxK convolution plus dilated branches, each with BatchNorm; BatchNorm of the sum.

    While training every branch has its own batch statistics. In evaluation mode all of them are
    one linear map, so they are merged into a single KxK kernel before the one convolution.
    Structure: Ding et al., UniRepLKNet (arXiv 2311.15599), section 3.

    Args:
        channels: C.
        kernel_size: K, a key of `BRANCHES`.
        dilation: Factor on the distances of all taps, for maps of a smaller stride than the
            weights were trained with.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Raises:
        ConfigError: No branches are defined for `kernel_size`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if kernel_size not in BRANCHES:
            raise ConfigError(f"kernel_size is {kernel_size}; expected one of {sorted(BRANCHES)}")
        self.dilation = dilation
        self.large = ConvNorm(channels, channels, kernel_size, groups=channels, **dd)
        self.branches = nn.ModuleList(
            ConvNorm(channels, channels, kernel, dilation=dilation, groups=channels, **dd)
            for kernel, dilation in BRANCHES[kernel_size]
        )
        self.norm = nn.BatchNorm2d(channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if not self.norm.training:
            weight, bias = self.merged()
            return depthwise(x, [weight], [self.dilation], bias=bias)[0]
        parts = [self.large, *self.branches]
        weights = [part.conv.weight for part in parts]
        maps = depthwise(x, weights, [self.dilation * part.conv.dilation[0] for part in parts])
        y = self.large.norm(maps[0])
        for part, found in zip(parts[1:], maps[1:], strict=True):
            y = y + part.norm(found)
        return self.norm(y)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return the (C, 1, K, K) weight and the (C,) bias of evaluation mode."""
        weight, bias = self.large.merged()
        size = weight.shape[-1]
        for branch in self.branches:
            assert isinstance(branch, ConvNorm)
            branch_weight, branch_bias = branch.merged()
            dilation = int(branch.conv.dilation[0])
            reach = dilation * (branch_weight.shape[-1] - 1) + 1
            taps = slice((size - reach) // 2, (size + reach) // 2, dilation)
            spread = torch.zeros_like(weight)
            spread[:, :, taps, taps] = branch_weight
            weight = weight + spread
            bias = bias + branch_bias
        factor, shift = norm_affine(self.norm)
        dtype = self.large.conv.weight.dtype  # the norms may be kept in float32
        return (weight * factor.view(-1, 1, 1, 1)).to(dtype), (bias * factor + shift).to(dtype)

    def fuse(self) -> DepthwiseConv:
        """Return the equivalent single convolution."""
        weight, bias = self.merged()
        fused = DepthwiseConv(
            weight.shape[0],
            weight.shape[-1],
            dilation=self.dilation,
            device=weight.device,
            dtype=weight.dtype,
        )
        fused.weight = nn.Parameter(weight.detach().clone())
        fused.bias = nn.Parameter(bias.detach().clone())
        return fused.train(self.training)


def large_depthwise(
    channels: int,
    kernel_size: int,
    *,
    dilation: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DilatedReparamConv | ConvNorm:
    """Return OverLoCK's static depthwise KxK convolution with its BatchNorm.

    Args:
        channels: C.
        kernel_size: K, a key of `BRANCHES`; or 3, which has no room for dilated branches and is a
            plain convolution.
        dilation: Pixels between the kernel's taps.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Raises:
        ConfigError: No branches are defined for `kernel_size`.
    """
    dd: dict[str, Any] = {"dilation": dilation, "device": device, "dtype": dtype}
    if kernel_size == 3:
        return ConvNorm(channels, channels, 3, groups=channels, **dd)
    if kernel_size not in BRANCHES:
        raise ConfigError(f"kernel_size is {kernel_size}; expected one of {[3, *sorted(BRANCHES)]}")
    return DilatedReparamConv(channels, kernel_size, **dd)
