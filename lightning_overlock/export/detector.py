"""Detection in operations that can be exported: no Python loop over what was found."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from lightning_overlock.heads.geometry import AlignedRoIAlign, paste_masks, pyramid_levels

DIVISOR = 32
SMALLEST_BOX = 1e-2  # pixels, of what the second stage returns


class ExportedDetector(nn.Module):
    """torchvision's Mask R-CNN or Faster R-CNN for one image at a time, of the size it sees.

    What its forward decides by Python (which images, which levels, which objects are left) is said
    here in tensors: dropped boxes get a score below any other, and boxes are pooled from every
    level with those of other levels shrunk to a pixel. Images are not resized: the task does that,
    to a short side of `min_size` and a long side of at most `max_size` pixels.

    Args:
        model: The task's network.
    """

    model: Any  # torchvision's parts have no types
    mean: Tensor
    std: Tensor
    outputs: tuple[str, ...]

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = network = cast("Any", model)
        self.has_masks = network.roi_heads.has_mask()
        self.aligned = isinstance(network.roi_heads.box_roi_pool, AlignedRoIAlign)
        self.outputs = ("boxes", "scores", "labels", *(("masks",) if self.has_masks else ()))
        cells = network.rpn.anchor_generator.cell_anchors
        for level, cell in enumerate(cells):
            self.register_buffer(f"anchors{level}", cell.clone(), persistent=False)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(network.transform, f"image_{name}")).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map an image (1, 3, H, W) in [0, 1] to its objects, those of the highest scores first.

        Returns:
            Boxes (N, 4) as x1, y1, x2, y2 in pixels, scores (N,), labels (N,) from 1 on, and with
            masks the probabilities (N, H, W) that a pixel is the object's.
        """
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        # Rounded up by a sum: ONNX's division of a negative number rounds the other way.
        right, bottom = (
            (side + DIVISOR - 1) // DIVISOR * DIVISOR - side for side in (width, height)
        )
        x = F.pad(x, (0, right, 0, bottom))
        features = self.model.backbone(x)
        proposals = self._proposals(
            list(features.values()), (x.shape[-2], x.shape[-1]), (height, width)
        )
        maps = list(features.values())[:4]
        found = self._boxes(maps, *proposals, (height, width))
        if not self.has_masks:
            boxes, scores, labels = found
            some = (scores > 0).nonzero()[:, 0]
            return boxes[some], scores[some], labels[some]
        return self._with_masks(maps, *found, (height, width))

    def _proposals(
        self, maps: list[Tensor], padded: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (P, 4) of the first stage, and whether each is one; the rest are a pixel."""
        rpn: Any = self.model.rpn
        objectness, deltas = rpn.head(maps)
        boxes, scores = [], []
        for level, (logits, delta) in enumerate(zip(objectness, deltas, strict=True)):
            rows, columns = logits.shape[-2:]
            cells = getattr(self, f"anchors{level}")
            # The level's own stride, or what torchvision takes for it.
            own = rpn.anchor_generator.strides[level]
            strides = (own, own) if self.aligned else (padded[0] // rows, padded[1] // columns)
            anchors = _anchors(cells, rows, columns, strides)
            score = logits[0].permute(1, 2, 0).reshape(-1)
            delta = delta[0].reshape(len(cells), 4, rows, columns).permute(2, 3, 0, 1)
            count = torch.sym_min(rpn.pre_nms_top_n(), rows * columns * len(cells))
            best, index = score.topk(count)
            decoded = rpn.box_coder.decode_single(delta.reshape(-1, 4)[index], anchors[index])
            decoded = clip_boxes_to_image(decoded, size)
            best = best.sigmoid().masked_fill(~_large(decoded, rpn.min_size), -1)
            boxes.append(decoded)
            scores.append(best.masked_fill(~_kept(decoded, best, rpn.nms_thresh), -1))
        together = torch.cat(scores)
        best, index = together.topk(torch.sym_min(rpn.post_nms_top_n(), together.shape[0]))
        pixel = together.new_tensor([0.0, 0.0, 1.0, 1.0])
        real = best >= 0
        return torch.where(real[:, None], torch.cat(boxes)[index], pixel), real

    def _boxes(
        self, maps: list[Tensor], proposals: Tensor, real: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of the best so many; a score of -1 is none at all."""
        heads: Any = self.model.roi_heads
        pooled = _pool(maps, proposals, heads.box_roi_pool.output_size, self.aligned)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        scores = logits.softmax(-1)[:, 1:]
        boxes = heads.box_coder.decode_single(deltas, proposals)
        boxes = boxes.reshape(-1, logits.shape[1], 4)[:, 1:]
        boxes = clip_boxes_to_image(boxes, size).reshape(-1, 4)
        labels = torch.arange(1, logits.shape[1], device=boxes.device).expand_as(scores).reshape(-1)
        scores = scores.masked_fill(~real[:, None], -1).reshape(-1)
        keep = (scores > heads.score_thresh) & _large(boxes, SMALLEST_BOX)
        scores = scores.masked_fill(~keep, -1)
        some = _some(keep)
        boxes, scores, labels = boxes[some], scores[some], labels[some]
        # Boxes of another class lie elsewhere and overlap none of this one.
        offset = labels.to(boxes)[:, None] * (torch.sym_max(*size) + 1)
        scores = scores.masked_fill(~_kept(boxes + offset, scores, heads.nms_thresh), -1)
        count = torch.sym_min(heads.detections_per_img, scores.shape[0])
        some = scores.topk(count).indices
        return boxes[some], scores[some], labels[some]

    def _with_masks(
        self,
        maps: list[Tensor],
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """Return what was found, and its masks (N, H, W)."""
        heads: Any = self.model.roi_heads
        some = _some(scores > 0)
        boxes, scores, labels = boxes[some], scores[some], labels[some]
        pooled = _pool(maps, boxes, heads.mask_roi_pool.output_size, self.aligned)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        index = labels[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
        paste = paste_masks if self.aligned else _paste
        masks = paste(logits.gather(1, index)[:, 0].sigmoid(), boxes, size)
        real = (scores > 0).nonzero()[:, 0]
        return boxes[real], scores[real], labels[real], masks[real]


def _some(keep: Tensor) -> Tensor:
    """Return the places of what is kept of N, and the first one, which its score tells apart.

    So no operation meets an empty tensor.
    """
    first = torch.arange(keep.shape[0], device=keep.device) == 0
    some = (keep | first).nonzero()[:, 0]
    torch._check(some.shape[0] > 0)
    return some


def _anchors(cells: Tensor, rows: int, columns: int, strides: tuple[int, int]) -> Tensor:
    """Return (rows * columns * len(cells), 4) anchors of a level."""
    y = torch.arange(rows, device=cells.device) * strides[0]
    x = torch.arange(columns, device=cells.device) * strides[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), -1).to(cells)
    return (shifts[:, :, None] + cells).reshape(-1, 4)


def _large(boxes: Tensor, least: float) -> Tensor:
    """Return whether both sides of boxes (N, 4) have at least so many pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(-1)


def _kept(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return whether non-maximum suppression keeps boxes (N, 4)."""
    # Two boxes outside of all images are always kept, last: torchvision promises torch.export two.
    outside = boxes.new_tensor([[-3.0, -3.0, -2.0, -2.0], [-6.0, -6.0, -5.0, -5.0]])
    last = torch.full_like(outside[:, 0], -2)
    boxes, scores = torch.cat((boxes, outside)), torch.cat((scores, last))
    kept = nms(boxes, scores, threshold)
    return (torch.zeros_like(scores).scatter(0, kept, 1.0) > 0)[:-2]


def _pool(maps: list[Tensor], boxes: Tensor, output: tuple[int, int], aligned: bool) -> Tensor:
    """Return (N, C, h, w), each box pooled from the level of its size, H/4 to H/32."""
    if aligned:
        level = pyramid_levels(boxes)
    else:
        side = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
        level = (4 + torch.log2(side / 224 + 1e-30) + 1e-6).floor().clamp(2, 5) - 2
    pixel = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    pooled: Any = 0
    for index, x in enumerate(maps):
        here = level == index
        rois = torch.where(here[:, None], boxes, pixel)
        rois = torch.cat((torch.zeros_like(rois[:, :1]), rois), 1)
        scale = 1 / 2 ** (index + 2)
        part = roi_align(x, rois, output, scale, sampling_ratio=0, aligned=aligned)
        pooled = pooled + part * here[:, None, None, None]
    return pooled


def _paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, H, W) with each mask (N, m, m) resized, bilinear, into its box; 0 elsewhere."""
    masks = F.pad(masks, (1, 1, 1, 1))
    side = masks.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half * (side / (side - 2))
    low, high = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    columns = _weights(low[:, 0], high[:, 0], size[1], side).to(masks)
    rows = _weights(low[:, 1], high[:, 1], size[0], side).to(masks)
    return rows @ masks @ columns.mT


def _weights(low: Tensor, high: Tensor, length: int, side: int) -> Tensor:
    """Return (N, length, side), how an axis of a mask is interpolated to the pixels of an image."""
    count = (high - low + 1).clamp(min=1)
    pixel = torch.arange(length, device=low.device) - low[:, None]
    source = ((pixel + 0.5) * (side / count)[:, None] - 0.5).clamp(0, side - 1)
    tap = torch.arange(side, device=low.device)
    weight = (1 - (source[:, :, None] - tap).abs()).clamp(min=0)
    inside = (pixel >= 0) & (pixel < count[:, None])
    return weight * inside[:, :, None]
