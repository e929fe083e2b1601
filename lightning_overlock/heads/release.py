"""Heads of OverLoCK's released dense models by the names and in the order that ours have.

The release's detectors are mmdetection's Mask R-CNN and its segmenters mmsegmentation's UPerNet
with an FCN head. No file of them was at hand: the names are those of the release's configurations
and of both libraries.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Beginnings of names there, as regular expressions, and here.
_PARTS = {
    r"decode_head\.psp_modules\.(\d+)\.1": r"decoder.pools.\1.1",
    r"decode_head\.bottleneck": r"decoder.pooled",
    r"decode_head\.lateral_convs\.(\d+)": r"decoder.laterals.\1",
    r"decode_head\.fpn_convs\.(\d+)": r"decoder.smooth.\1",
    r"decode_head\.fpn_bottleneck": r"decoder.merge",
    r"decode_head\.conv_seg": r"decoder.classifier.1",
    r"auxiliary_head\.convs\.(\d+)": r"auxiliary.convs.\1",
    r"auxiliary_head\.conv_seg": r"auxiliary.classifier.1",
    r"neck\.lateral_convs\.(\d+)": r"backbone.fpn.inner_blocks.\1",
    r"neck\.fpn_convs\.(\d+)": r"backbone.fpn.layer_blocks.\1",
    r"rpn_head\.rpn_conv": r"rpn.head.conv.0.0",
    r"rpn_head\.rpn_cls": r"rpn.head.cls_logits",
    r"rpn_head\.rpn_reg": r"rpn.head.bbox_pred",
    r"roi_head\.bbox_head\.shared_fcs\.0": r"roi_heads.box_head.fc6",
    r"roi_head\.bbox_head\.shared_fcs\.1": r"roi_heads.box_head.fc7",
    r"roi_head\.bbox_head\.fc_cls": r"roi_heads.box_predictor.cls_score",
    r"roi_head\.bbox_head\.fc_reg": r"roi_heads.box_predictor.bbox_pred",
    r"roi_head\.mask_head\.convs\.(\d+)": r"roi_heads.mask_head.\1",
    r"roi_head\.mask_head\.upsample": r"roi_heads.mask_predictor.conv5_mask",
    r"roi_head\.mask_head\.conv_logits": r"roi_heads.mask_predictor.mask_fcn_logits",
}
# A convolution and its norm are named there and numbered here.
_LAYERS = {"conv": ".0", "bn": ".1", None: ""}


def released_heads(weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Return the heads of a released detector or segmenter for ours.

    Args:
        weights: The state dict of a file, of the release or any other.

    Returns:
        By the name in the file, for each entry of a head of mmdetection or mmsegmentation: the name
        in `heads.mask_rcnn` or `tasks.segmentation.Segmenter`, and the values in our order. The
        background is class 0 here and the last one there; boxes and masks of the background, which
        mmdetection has none of, are 0.
    """
    found = {}
    for name, value in weights.items():
        for pattern, ours in _PARTS.items():
            match = re.fullmatch(rf"{pattern}(?:\.(conv|bn))?\.(\w+)", name)
            if match:
                *_, layer, leaf = match.groups()
                place = match.expand(ours) + _LAYERS[layer]
                found[name] = (f"{place}.{leaf}", _background_first(place, value))
    return found


def _background_first(place: str, value: Tensor) -> Tensor:
    if place.endswith("box_predictor.cls_score"):
        return torch.cat((value[-1:], value[:-1]))
    if place.endswith("box_predictor.bbox_pred"):
        return torch.cat((torch.zeros_like(value[:4]), value))
    if place.endswith("mask_fcn_logits"):
        return torch.cat((torch.zeros_like(value[:1]), value))
    return value
