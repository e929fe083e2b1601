"""Class activation maps: where in the image a stage finds what speaks for a class.

Sources: Grad-CAM (Selvaraju et al., arXiv 1610.02391), which weighs channels by their mean
gradient; LayerCAM (Jiang et al., TIP 2021), which weighs every pixel by its own and so suits early
stages.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.hooks import evaluation, module_outputs, to_model_device
from lightning_overlock.analysis.style import draw_overlay, draw_picture, enlarged, panels, style
from lightning_overlock.models.overlock import OverLoCK

Method = Literal["grad_cam", "layer_cam"]
Output = Literal["logits", "overview"]


def stage_names(model: Any) -> list[str]:
    """Return the names of a backbone's stages in the order in which they see the image.

    Of OverLoCK these are Base-Net's three, Overview-Net and Focus-Net's two; of any other timm
    model those in its `feature_info`.

    Example:
        >>> import timm
        >>> stage_names(timm.create_model("test_overlock"))
        ['base.0', 'base.1', 'base.2', 'overview', 'focus.0', 'focus.1']
    """
    if isinstance(model, OverLoCK):
        if model.overview_index is None:
            return ["base.0", "base.1", "base.2", "focus.0", "base.3", "focus.1"]
        return ["base.0", "base.1", "base.2", "overview", "focus.0", "focus.1"]
    return [info["module"] for info in model.feature_info]


def activation_maps(
    model: nn.Module,
    images: Tensor,
    modules: Sequence[str] | None = None,
    classes: Tensor | Sequence[int] | None = None,
    method: Method = "grad_cam",
    output: Output = "logits",
) -> dict[str, NDArray[np.float32]]:
    """Return class activation maps of modules of a classifier.

    With features a (C, h, w) and the slope s of a class's logit with respect to them: Grad-CAM is
    relu(sum_c mean_hw(s_c) a_c), LayerCAM relu(sum_c relu(s_c) a_c).

    Args:
        model: A timm model, or any module that maps images to logits.
        images: (B, 3, H, W), normalised as the model wants them.
        modules: Names of modules that return maps (B, C, h, w), (B, h, w, C) as Swin's, or tokens
            as a ViT's; None takes `stage_names(model)`.
        classes: (B,) class of each image; None takes the class that the model finds.
        method: "grad_cam" or "layer_cam".
        output: "logits", or "overview" for those of OverLoCK's auxiliary head: what the overview
            alone finds. Focus-Net has no part in them and is left out.

    Returns:
        The module's name and its maps (B, h, w), not negative, in the logit's unit (per pixel and
        not comparable between modules).

    Raises:
        ValueError: A module, method or output is unknown, or a module that is named but has no part
            in the output or returns no map.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_overlock", num_classes=10)
        >>> maps = activation_maps(model, torch.randn(2, 3, 64, 64), ["overview", "focus.1"])
        >>> {name: found.shape for name, found in maps.items()}
        {'overview': (2, 2, 2), 'focus.1': (2, 2, 2)}
    """
    if method not in get_args(Method) or output not in get_args(Output):
        raise ValueError(
            f"method is {method!r} and output {output!r}; expected one of {get_args(Method)} and "
            f"of {get_args(Output)}"
        )
    if output == "overview" and getattr(model, "overview_index", None) is None:
        raise ValueError("output is 'overview', but the model has no overview")
    names = list(modules or stage_names(model))
    images = to_model_device(model, images).detach().clone().requires_grad_()
    with evaluation(model), torch.enable_grad(), module_outputs(model, names) as found:
        call: Any = model
        logits = call(images) if output == "logits" else call.forward_overview(images)[1]
        chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes)
        score = logits.gather(1, chosen.to(logits.device).reshape(-1, 1)).sum()
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"module '{missing[0]}' was not called in the forward pass")
        slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
            score, [found[name] for name in names], allow_unused=True
        )
    maps = {}
    for name, slope in zip(names, slopes, strict=True):
        if slope is None:
            if modules is None:
                continue
            raise ValueError(f"module '{name}' has no part in the {output}")
        size = (images.shape[2], images.shape[3])
        value, slope = (_as_map(x.detach(), model, name, size) for x in (found[name], slope))
        weights = slope.mean((2, 3), keepdim=True) if method == "grad_cam" else slope.relu()
        maps[name] = (weights * value).sum(1).relu().float().cpu().numpy()
    return maps


def _as_map(value: Tensor, model: Any, name: str, size: tuple[int, int]) -> Tensor:
    """Return an output of a module as (B, C, h, w)."""
    if value.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return value.permute(0, 3, 1, 2) if channels_last else value
    if value.ndim == 3 and hasattr(model, "patch_embed"):
        grid = model.patch_embed.dynamic_feat_size(size)
        tokens = value[:, getattr(model, "num_prefix_tokens", 0) :]
        return tokens.mT.reshape(value.shape[0], value.shape[2], *grid)
    raise ValueError(f"module '{name}' returns {tuple(value.shape)}; expected a map (B, C, h, w)")


def share_inside(
    maps: NDArray[np.float32], boxes: NDArray[Any], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the share of each map's mass that lies in a box of the image.

    The energy-based pointing game of Score-CAM (Wang et al., arXiv 1910.01279). Compare it with
    the box's share of the image, which a map without any preference has.

    Args:
        maps: (B, h, w), not negative.
        boxes: (B, 4), left, top, right and bottom in pixels of the image, the latter two outside.
        size: Height and width of the image.

    Returns:
        (B,) between 0 and 1; not a number where a map is zero everywhere.

    Example:
        >>> share_inside(np.ones((1, 4, 4)), np.array([[0, 0, 16, 8]]), (16, 16)).round(3)
        array([0.5])
    """
    shares = []
    for values, (left, top, right, bottom) in zip(enlarged(maps, size), boxes, strict=True):
        total = float(values.sum(dtype=np.float64))
        inside = float(values[top:bottom, left:right].sum(dtype=np.float64))
        shares.append(inside / total if total > 0 else float("nan"))
    return np.array(shares)


def plot_activation_maps(
    images: Tensor, maps: dict[str, NDArray[np.float32]], titles: Sequence[str] | None = None
) -> Figure:
    """Draw a row per image: the image, then its map at every stage, each to its own brightest.

    Args:
        images: (B, 3, H, W).
        maps: Maps by stage, each (B, h, w).
        titles: Titles, one per image, for example its class.

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> figure = plot_activation_maps(images, {"stage": np.ones((2, 4, 4), np.float32)})
        >>> len(figure.axes)
        4
    """
    with style():
        figure, axes = panels(len(images), 1 + len(maps), width=1.7, height=1.8)
        for index, (row, image) in enumerate(zip(axes, images, strict=True)):
            draw_picture(row[0], image, titles[index] if titles else "")
            for panel, (name, values) in zip(row[1:], maps.items(), strict=True):
                draw_overlay(panel, image, values[index], name if index == 0 else "")
    return figure
