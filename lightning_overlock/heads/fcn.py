"""Fully convolutional head (Long et al., arXiv 1411.4038), the auxiliary head of UPerNet."""

from torch import Tensor, nn

from lightning_overlock.heads.conv import classifier, conv_norm_relu


class FCNHead(nn.Module):
    """3x3 convolutions and a classifier per pixel on one map.

    Args:
        channels: C of the map, for example `features.channels[2]`.
        num_classes: Width of the output.
        width: Channels of the convolutions.
        depth: Number of convolutions.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        width: int = 256,
        depth: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(conv_norm_relu(width if index else channels, width, 3) for index in range(depth))
        )
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes, H, W)."""
        return self.classifier(self.convs(x))
