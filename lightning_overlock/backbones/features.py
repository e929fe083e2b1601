"""The four maps of any timm backbone that dense prediction starts from."""

import re
from collections.abc import Mapping
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from lightning_overlock.backbones.create import class_count, create_backbone, refusal_explained
from lightning_overlock.errors import InputError
from lightning_overlock.layers.conv_mlp import ChannelScale

REDUCTIONS = [4, 8, 16, 32]
# What only the dense models of OverLoCK's release have, by their names and by ours.
_RELEASE_NAMES = {f"extra_norm.{level}": f"norms.{level}" for level in range(4)} | {
    "extra_norm.4": "overview_norm",
    "h_proj.0": "overview_proj",
    "h_proj.1": "overview_scale",
}


class DenseFeatures(nn.Module):
    """A timm backbone without its classifier, and a channel LayerNorm on each of its four maps.

    With `overview`, the last map becomes norm(last) + scale(1x1(norm(overview))), where overview
    is the map that the backbone declares by its attribute `overview_index` (OverLoCK's
    Overview-Net), and scale is a factor per channel, 1e-5 at the start. Both are as in the dense
    variants of OverLoCK's release: detection with the overview, segmentation without. As there,
    a backbone with an overview goes on to H/16 from the normalised map at H/8.

    Args:
        backbone: Name of a timm model.
        backbone_args: Arguments of that model, for example `{drop_path_rate: 0.2}`.
        overview: Add the overview to the last map; None adds it where the backbone has one.

    Attributes:
        backbone: The timm model; its parameters keep their names.
        channels: C of the four maps.
        reductions: [4, 8, 16, 32], input pixels per pixel of a map.

    Raises:
        InputError: There is no such backbone, it has no map at one of the reductions (as plain
            vision transformers), or no overview.
    """

    # timm's models share more than nn.Module has, but no type.
    backbone: Any

    def __init__(
        self,
        backbone: str,
        backbone_args: dict[str, Any] | None = None,
        overview: bool | None = False,
    ) -> None:
        super().__init__()
        self.name = backbone
        self.arguments = dict(backbone_args or {})
        self.backbone = create_backbone(backbone, self.arguments, num_classes=0)
        infos = getattr(self.backbone, "feature_info", [])
        found = [info["reduction"] for info in infos]
        missing = [reduction for reduction in REDUCTIONS if reduction not in found]
        if missing or not hasattr(self.backbone, "forward_intermediates"):
            raise InputError(
                f"{backbone} has maps at the reductions {sorted(set(found))}\n"
                f"dense prediction needs {REDUCTIONS} by timm's forward_intermediates, as "
                "overlock_t, convnext_tiny or resnet50 have them"
            )
        # The first of each reduction: a second one at H/32 is an overview.
        self.indices = [found.index(reduction) for reduction in REDUCTIONS]
        self.channels = [int(infos[index]["num_chs"]) for index in self.indices]
        self.reductions = list(REDUCTIONS)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.channels)
        extra: int | None = getattr(self.backbone, "overview_index", None)
        if overview and extra is None:
            raise InputError(
                f"{backbone} has no overview; expected overview false, or an OverLoCK backbone "
                "with dds true"
            )
        self.overview = extra is not None and overview is not False
        if extra is not None and self.overview:
            self.indices.append(extra)
            self.overview_norm = LayerNorm2d(infos[extra]["num_chs"])
            self.overview_proj = nn.Conv2d(infos[extra]["num_chs"], self.channels[-1], 1)
            self.overview_scale = ChannelScale(self.channels[-1])
            nn.init.constant_(self.overview_scale.weight, 1e-5)
        # The dense variants of OverLoCK's release compute the map at H/16 from the normalised one
        # at H/8, and so their weights expect it. Other backbones norm what leaves them only.
        self.inner_norm = extra is not None
        if self.inner_norm:
            stage = self.backbone.get_submodule(infos[self.indices[1]]["module"])
            stage.register_forward_hook(self._norm_inside)
        # Parameters without a gradient would stop training on several processes.
        self.backbone.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W), normalised, to four maps (B, C_i, H / r_i, W / r_i)."""
        with refusal_explained(self.name, self.backbone, images):
            maps = self.backbone.forward_intermediates(
                images, indices=self.indices, output_fmt="NCHW", intermediates_only=True
            )
        out = [
            x if level == 1 and self.inner_norm else norm(x)
            for level, (norm, x) in enumerate(zip(self.norms, maps, strict=False))
        ]
        if self.overview:
            overview = self.overview_proj(self.overview_norm(maps[4]))
            out[3] = self.overview_scale(overview, out[3])
        return out

    def _norm_inside(self, stage: nn.Module, inputs: Any, x: Tensor) -> Tensor:  # noqa: ARG002
        return self.norms[1](x)

    def map_norms(self) -> list[nn.Module]:
        """Return the norms on the maps."""
        return [*self.norms, *([self.overview_norm] if self.overview else [])]

    def load_weights(
        self, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[list[str], list[str]]:
        """Start from the weights of a classifier or of a dense model.

        Args:
            weights: A state dict: of a classifier with this backbone (by the names of timm, or of
                the release in either form), of the release's detection or segmentation model (with
                or without the prefix `backbone.`), or of a network around a `DenseFeatures`. None:
                timm's own weights for the backbone.

        Returns:
            Names of the entries that were not used (a classifier's head, for example), and names
            here that are not among the weights and keep their values (the norms, for example).

        Raises:
            RuntimeError: The weights belong to another network.
        """
        given, unused = self._by_our_names(weights)
        own = self.state_dict()
        start = "backbone."
        backbone = {n.removeprefix(start): v for n, v in given.items() if n.startswith(start)}
        self.backbone.load_state_dict(backbone)
        # Weights of segmentation have fewer of the other modules, those of detection more.
        self.load_state_dict({n: v for n, v in given.items() if n in own}, strict=False)
        unused += [name for name in given if name not in own]
        return unused, [name for name in own if name not in given]

    def _by_our_names(
        self, weights: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return the weights for this module by its own names, and the names of all others."""
        if weights is None:
            return self._from_classifier(None)
        around = re.search(r"^(|\S*\.)norms\.0\.weight$", "\n".join(weights), re.MULTILINE)
        prefix = around[1] if around else "backbone."
        if not any(name.startswith(prefix) for name in weights):
            prefix = ""
        unused = [name for name in weights if not name.startswith(prefix)]
        bare = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
        if around:
            return bare, unused
        extras = {n: bare.pop(n) for n in list(bare) if n.rpartition(".")[0] in _RELEASE_NAMES}
        if extras:
            # timm loads and checks whole classifiers; a new one lends its head.
            whole = create_backbone(self.name, self.arguments, num_classes=0).state_dict()
            kept = self.backbone.state_dict()
            bare |= {name: value for name, value in whole.items() if name not in kept}
            given, _ = self._from_classifier(bare, num_classes=0)
        else:
            given, head = self._from_classifier(bare)
            unused += head
        own = self.state_dict()
        for name, value in extras.items():
            part, _, leaf = name.rpartition(".")
            ours = f"{_RELEASE_NAMES[part]}.{leaf}"
            given[ours] = value.reshape(own[ours].shape) if ours in own else value
        return given, unused

    def _from_classifier(
        self, weights: dict[str, Tensor] | None, num_classes: int | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return the backbone's weights as timm reads them, and the names of the head's."""
        config = self.backbone.pretrained_cfg
        if num_classes is None:
            num_classes = class_count(weights or {}, config["classifier"]) or config["num_classes"]
        source: dict[str, Any] = {}
        if weights is not None:
            overlay = {"state_dict": weights, "num_classes": num_classes}
            source = {"pretrained_cfg_overlay": overlay}
        donor = create_backbone(
            self.name, self.arguments, num_classes=num_classes, pretrained=True, **source
        ).state_dict()
        kept = self.backbone.state_dict()
        unused = [name for name in donor if name not in kept]
        unused += [n for n in weights or () if n.startswith(("aux_head.", "overview_head."))]
        return {f"backbone.{name}": donor[name] for name in donor if name in kept}, unused
