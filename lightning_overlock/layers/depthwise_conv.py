"""Large depthwise convolution."""

from torch import Tensor, nn

from lightning_overlock.ops.depthwise.operator import depthwise


class DepthwiseConv(nn.Conv2d):
    """Depthwise KxK convolution with bias, in the form that `ops.depthwise` takes.

    Args:
        channels: C.
        kernel_size: K, odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return depthwise(x, [self.weight], bias=self.bias)[0]
