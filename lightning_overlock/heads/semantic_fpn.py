"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, arXiv 1901.02446)."""

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from lightning_overlock.heads.conv import classifier, conv_norm_relu


class SemanticFPNHead(nn.Module):
    """A feature pyramid whose levels are convolved and upsampled to the finest and summed.

    Settings after mmsegmentation's FPN neck and head: each level is brought up by log2 of its
    distance, one 3x3 convolution, batch norm, ReLU and doubling at a time.

    Args:
        channels: C of the maps, finest first, each half as large as the one before.
        num_classes: Width of the output.
        width: Channels of the summed levels.
        pyramid_width: Channels of the feature pyramid.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(
        self,
        channels: list[int],
        num_classes: int,
        width: int = 128,
        pyramid_width: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(channels, pyramid_width)
        self.levels = nn.ModuleList()
        for level in range(len(channels)):
            steps: list[nn.Module] = []
            for step in range(max(level, 1)):
                steps.append(conv_norm_relu(width if step else pyramid_width, width, 3))
                if level:
                    steps.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.levels.append(nn.Sequential(*steps))
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map four (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        pyramid = self.fpn({str(index): x for index, x in enumerate(maps)})
        levels = [level(x) for level, x in zip(self.levels, pyramid.values(), strict=True)]
        total = levels[0]
        for x in levels[1:]:
            # Sides that are no multiples of 32 do not double to the same size.
            total = total + F.interpolate(x, total.shape[-2:], mode="bilinear")
        return self.classifier(total)
