"""The convolution that segmentation heads are made of."""

from torch import Tensor, nn
from torch.nn import functional as F


class HeadNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch has one value per channel.

    Variance has no meaning there and plain batch norm raises: pooled to 1x1, a batch of one image
    on a process is such a case. (mmsegmentation's heads raise then, too.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    """Return convolution without bias, batch norm, ReLU; maps keep their size."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, HeadNorm(out_channels), nn.ReLU())


def classifier(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return channel dropout and the 1x1 convolution to logits."""
    conv = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(dropout), conv)
