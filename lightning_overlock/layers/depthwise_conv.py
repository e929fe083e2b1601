"""Large depthwise convolution."""

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from lightning_overlock.ops.depthwise.operator import depthwise


@register_notrace_module
class DepthwiseConv(nn.Conv2d):
    """Depthwise KxK convolution with bias, in the form that `ops.depthwise` takes.

    Args:
        channels: C.
        kernel_size: K, odd.
        dilation: Pixels between the kernel's taps.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
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
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=channels,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return depthwise(x, [self.weight], [self.dilation[0]], bias=self.bias)[0]
