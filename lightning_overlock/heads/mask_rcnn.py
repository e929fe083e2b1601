"""Mask R-CNN (He et al., arXiv 1703.06870) of torchvision on any backbone's feature pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.heads.geometry import (
    AlignedRoIAlign,
    AlignedTransform,
    Anchors,
    Deltas,
    Geometry,
)


class Pyramid(nn.Module):
    """Dense features and their feature pyramid, five levels as torchvision wants them.

    Args:
        features: The four maps.
        width: C of every level, `out_channels` for torchvision.
    """

    def __init__(self, features: DenseFeatures, width: int) -> None:
        super().__init__()
        self.features = features
        self.fpn = FeaturePyramidNetwork(features.channels, width, LastLevelMaxPool())
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to "0" … "3" and "pool", (B, width, H / r, W / r) for r = 4 … 64."""
        return self.fpn({str(index): x for index, x in enumerate(self.features(images))})


def mask_rcnn(
    features: DenseFeatures,
    num_classes: int,
    masks: bool = True,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    fpn_width: int = 256,
    box_head_width: int = 1024,
    mask_head_width: int = 256,
    anchor_scale: float = 8.0,
    proposals: int = 1000,
    rpn_batch_size: int = 256,
    roi_batch_size: int = 512,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
    geometry: Geometry = "torchvision",
) -> FasterRCNN:
    """Return Mask R-CNN, or Faster R-CNN without masks, after mmdetection's 1x configuration.

    The network takes images (3, H, W) in [0, 1] of any size; it resizes and normalises them (mean
    and std of the backbone's `data_config`) and pads batches to multiples of 32. Labels are 1 to
    `num_classes`. In training it returns the losses `loss_objectness`, `loss_rpn_box_reg`,
    `loss_classifier`, `loss_box_reg` and `loss_mask`, whose sum is the loss; in evaluation a dict
    per image with `boxes` (N, 4) in pixels of the image as it was given, `labels` (N,), `scores`
    (N,) and `masks` (N, 1, H, W), probabilities.

    Set as in mmdetection: pyramid of 256 channels and five levels, anchors of one scale and three
    ratios, 2000 candidates per level in training and 1000 in evaluation, RPN NMS at .7, 1000
    proposals in both, 256 anchors (half positive) and 512 RoIs (a quarter positive) per image,
    adaptive RoIAlign, two layers of 1024 for boxes, four convolutions for masks.

    Where boxes and masks lie follows `geometry`. With "mmdetection", and the same weights, the
    network detects what mmdetection's does (`tests/heads/test_released_heads.py` holds it to 1e-8)
    but for boxes with a side below a hundredth of a pixel, which are dropped here and kept there.
    With "torchvision" anchors are rounded to whole pixels and, on the level of stride 64, stand
    nearer together than 64 pixels on most images; RoIAlign lacks the half-pixel shift; a box may
    shrink to nothing; resized sides are rounded down; and masks fill whole pixels.

    Anchors and boxes are computed in at least 32 bits. torchvision computes them in the type of the
    maps, and bfloat16 tells apart only every eighth pixel above 1024.

    torchvision's training differs from mmdetection's in either geometry:

    - boxes are trained on smooth L1 with beta 1/9 (mmdetection: L1);
    - mask targets are interpolated values (mmdetection: cut at .5);
    - each true box makes its best anchors positive at any IoU (mmdetection: from .3 on), and no
      proposal beyond those of IoU .5 (mmdetection's matcher allows low quality there, too);
    - the box head's layers start as torch's linear layers do (mmdetection: Xavier and small
      normals).

    Args:
        features: The backbone.
        num_classes: Number of classes, the background not counted.
        masks: Whether there is a mask head.
        min_size: Short side after resizing, in pixels. From several, training draws one per image
            and evaluation takes the last.
        max_size: Limit of the long side.
        fpn_width: C of the pyramid.
        box_head_width: Features of the two layers of the box head.
        mask_head_width: Channels of the four convolutions of the mask head.
        anchor_scale: Side of a square anchor over the stride (4 to 64) of its level.
        proposals: RPN boxes per image that are kept after NMS.
        rpn_batch_size: Anchors per image that the RPN's loss is computed of.
        roi_batch_size: Proposals per image that the heads' losses are computed of.
        score_threshold: Boxes with a lower score are no detections.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        detections_per_image: The best so many are returned.
        geometry: By whose conventions anchors, boxes, pooled regions and masks lie.
    """
    config = resolve_model_data_config(features.backbone)
    mmdetection = geometry == "mmdetection"

    def roi_pool(side: int) -> MultiScaleRoIAlign:
        if mmdetection:
            return AlignedRoIAlign(side)
        # Boxes are pooled from the four maps; a sampling ratio of 0 is the adaptive one.
        return MultiScaleRoIAlign(["0", "1", "2", "3"], side, sampling_ratio=0)

    sizes: dict[str, Any] = dict(
        min_size=min_size,
        max_size=max_size,
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )
    arguments: dict[str, Any] = dict(
        backbone=Pyramid(features, fpn_width),
        **sizes,
        rpn_anchor_generator=Anchors(anchor_scale, (*features.reductions, 64), geometry),
        rpn_pre_nms_top_n_train=2 * proposals,
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        rpn_batch_size_per_image=rpn_batch_size,
        box_roi_pool=roi_pool(7),
        box_head=TwoMLPHead(fpn_width * 7 * 7, box_head_width),
        box_predictor=FastRCNNPredictor(box_head_width, num_classes + 1),
        box_score_thresh=score_threshold,
        box_nms_thresh=nms_threshold,
        box_detections_per_img=detections_per_image,
        box_batch_size_per_image=roi_batch_size,
    )
    network: Any
    if masks:
        network = MaskRCNN(
            **arguments,
            mask_roi_pool=roi_pool(14),
            mask_head=MaskRCNNHeads(fpn_width, (mask_head_width,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(mask_head_width, mask_head_width, num_classes + 1),
        )
    else:
        network = FasterRCNN(**arguments)
    for part in (network.rpn, network.roi_heads):
        part.box_coder = Deltas(part.box_coder.weights, geometry)
    if mmdetection:
        network.transform = AlignedTransform(**sizes)
        network.rpn.min_size = torch.finfo(torch.float32).tiny  # any box that has an area
    return network
