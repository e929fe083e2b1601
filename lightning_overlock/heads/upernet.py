"""UPerNet's head (Xiao et al., arXiv 1807.10221), settings after mmsegmentation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.heads.conv import classifier, conv_norm_relu


class UPerHead(nn.Module):
    """Pyramid pooling on the last map, a feature pyramid over all, fused at the finest.

    Every resize is bilinear with align_corners False. For the batch norm of what is pooled to one
    pixel see `HeadNorm`.

    Args:
        channels: C of the maps, finest first.
        num_classes: Width of the output.
        width: Channels of the pyramid.
        pool_scales: Sides of the grids that the last map is pooled to.
        dropout: Probability of dropping a channel before the classifier.
    """

    def __init__(
        self,
        channels: list[int],
        num_classes: int,
        width: int = 512,
        pool_scales: tuple[int, ...] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        last = channels[-1]
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(last, width, 1))
            for scale in pool_scales
        )
        self.pooled = conv_norm_relu(last + len(pool_scales) * width, width, 3)
        self.laterals = nn.ModuleList(conv_norm_relu(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(conv_norm_relu(width, width, 3) for _ in channels[:-1])
        # Not `fuse`: timm would take it for the method that makes the inference form.
        self.merge = conv_norm_relu(len(channels) * width, width, 3)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map four (B, C_i, H_i, W_i), finest first, to logits (B, num_classes, H_0, W_0)."""
        last = maps[-1]
        pools = [_resize(pool(last), last) for pool in self.pools]
        top = self.pooled(torch.cat([last, *pools], dim=1))
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=False)]
        levels.append(top)
        for index in range(len(levels) - 2, -1, -1):
            levels[index] = levels[index] + _resize(levels[index + 1], levels[index])
        levels = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=False)]
        levels.append(top)
        fused = self.merge(torch.cat([_resize(x, levels[0]) for x in levels], dim=1))
        return self.classifier(fused)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize (B, C, h, w) to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
