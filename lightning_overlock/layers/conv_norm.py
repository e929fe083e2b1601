"""Convolutions that carry a BatchNorm or an identity while training and lose it for inference.

Each class has `fuse()`, which `timm.utils.reparameterize_model` calls: it returns the one plain
convolution that does the same in evaluation mode.
"""

from typing import Any

import torch
from torch import Tensor, nn


def norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the (C,) factor and shift that `norm` applies in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be merged")
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution with the stride, padding and groups of `conv` and these parameters.

    It has the type of `conv`, also where a norm merged into it is kept in float32.
    """
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (weight.shape[2], weight.shape[3]),
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        device=weight.device,
        dtype=conv.weight.dtype,
    )
    fused.weight = nn.Parameter(weight.detach().to(conv.weight.dtype, copy=True))
    fused.bias = nn.Parameter(bias.detach().to(conv.weight.dtype, copy=True))
    fused.train(conv.training)
    return fused


class ConvNorm(nn.Module):
    """Convolution without bias, then BatchNorm.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: Side of the kernel in pixels, odd; the padding keeps the map's size at stride
            1.
        stride: Stride of the convolution.
        dilation: Pixels between the taps of the convolution.
        groups: Channel groups of the convolution.
        bias: Whether to give the convolution a bias as the release does before some norms.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
            **dd,
        )
        self.norm = nn.BatchNorm2d(out_channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        return self.norm(self.conv(x))

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return the weight and the (C_out,) bias of the equivalent single convolution."""
        factor, shift = norm_affine(self.norm)
        if self.conv.bias is not None:
            shift = shift + self.conv.bias * factor
        return self.conv.weight * factor.view(-1, 1, 1, 1), shift

    def fuse(self) -> nn.Conv2d:
        """Return the equivalent single convolution."""
        return conv_like(self.conv, *self.merged())


class NormConv(nn.Module):
    """BatchNorm, then a 1x1 convolution with bias.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = nn.BatchNorm2d(in_channels, **dd)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return self.conv(self.norm(x))

    def fuse(self) -> nn.Conv2d:
        """Return the equivalent single convolution; exact because a 1x1 needs no padding."""
        assert self.conv.bias is not None
        factor, shift = norm_affine(self.norm)
        weight = self.conv.weight.to(factor.dtype)
        return conv_like(
            self.conv,
            weight * factor.view(1, -1, 1, 1),
            self.conv.bias + weight[:, :, 0, 0] @ shift,
        )


class ResidualDepthwise(nn.Module):
    """x plus a depthwise 3x3 convolution of x.

    Args:
        channels: C.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.conv(x)

    def fuse(self) -> nn.Conv2d:
        """Return the equivalent single convolution; the identity is a one in its centre."""
        assert self.conv.bias is not None
        weight = self.conv.weight.detach().clone()
        weight[:, :, 1, 1] += 1
        return conv_like(self.conv, weight, self.conv.bias)
