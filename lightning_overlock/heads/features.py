"""The four maps of any timm backbone that dense prediction starts from."""

from collections.abc import Mapping
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from lightning_overlock.errors import InputError
from lightning_overlock.heads.backbone import create_backbone, size_explained
from lightning_overlock.layers.conv_mlp import ChannelScale

REDUCTIONS = [4, 8, 16, 32]


class DenseFeatures(nn.Module):
    """A timm backbone without its classifier, and a channel LayerNorm on each of its four maps.

    With `overview`, the last map becomes norm(last) + scale(1x1(norm(overview))), where overview
    is the map that the backbone's `feature_info` names behind that of H/32 (OverLoCK's
    Overview-Net), and scale is a factor per channel, 1e-5 at the start. Both are as in the dense
    variants of OverLoCK's release: detection with the overview, segmentation without.

    Args:
        backbone: Name of a timm model.
        backbone_args: Arguments of that model, for example `{drop_path_rate: 0.2}`.
        overview: Add the overview to the last map.

    Attributes:
        backbone: The timm model; its parameters keep their names.
        channels: C of the four maps.
        reductions: [4, 8, 16, 32], input pixels per pixel of a map.

    Raises:
        InputError: there is no such backbone, it has no map at one of the reductions (as plain
            vision transformers), or no overview.
    """

    def __init__(
        self, backbone: str, backbone_args: dict[str, Any] | None = None, overview: bool = False
    ) -> None:
        super().__init__()
        self.name = backbone
        self.arguments = dict(backbone_args or {})
        self.backbone: Any = create_backbone(backbone, self.arguments, num_classes=0)
        infos = getattr(self.backbone, "feature_info", [])
        found = [info["reduction"] for info in infos]
        missing = [reduction for reduction in REDUCTIONS if reduction not in found]
        if missing or not hasattr(self.backbone, "forward_intermediates"):
            raise InputError(
                f"{backbone} has maps at the reductions {sorted(set(found))}\n"
                f"dense prediction needs {REDUCTIONS} by timm's forward_intermediates, as "
                "overlock_t, convnext_tiny or resnet50 have them"
            )
        # The first of each reduction: a second one at H/32 is OverLoCK's overview.
        self.indices = [found.index(reduction) for reduction in REDUCTIONS]
        self.channels = [int(infos[index]["num_chs"]) for index in self.indices]
        self.reductions = list(REDUCTIONS)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.channels)
        self.overview = overview
        if overview:
            extra = self.indices[-1] + 1
            if len(found) <= extra:
                raise InputError(
                    f"{backbone} has no overview map behind its last one; expected overview false, "
                    "or an OverLoCK backbone with dds true"
                )
            self.indices.append(extra)
            self.overview_norm = LayerNorm2d(infos[extra]["num_chs"])
            self.overview_proj = nn.Conv2d(infos[extra]["num_chs"], self.channels[-1], 1)
            self.overview_scale = ChannelScale(self.channels[-1])
            nn.init.constant_(self.overview_scale.weight, 1e-5)
        # Parameters without a gradient would stop training on several processes.
        self.backbone.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W), normalised, to four maps (B, C_i, H / r_i, W / r_i)."""
        with size_explained(self.name, self.backbone, images):
            maps = self.backbone.forward_intermediates(
                images, indices=self.indices, output_fmt="NCHW", intermediates_only=True
            )
        out = [norm(x) for norm, x in zip(self.norms, maps, strict=False)]
        if self.overview:
            overview = self.overview_proj(self.overview_norm(maps[4]))
            out[3] = self.overview_scale(overview, out[3])
        return out

    def load_weights(self, weights: Mapping[str, Tensor] | None = None) -> list[str]:
        """Load a classifier's weights, or those of the release's or our own dense models.

        Args:
            weights: A state dict: of a classifier with this backbone (by the names of timm or of
                the release), of the release's detection or segmentation model (with or without
                the prefix `backbone.`, in either form), or of a network around a `DenseFeatures`.
                None: timm's own weights for the backbone.

        Returns:
            Names of the entries that were not used. The parameters that are not in `weights` (the
            norms, for a classifier's) keep their values.

        Raises:
            RuntimeError: the weights belong to another network.
        """
        raise NotImplementedError
