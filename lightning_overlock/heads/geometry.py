"""Where anchors, boxes, pooled regions and masks lie, to the fraction of a pixel.

torchvision's detectors compute with boxes in the maps' type and by conventions that cannot be set.
The classes here compute in at least 32 bits and, on request, by mmdetection's conventions, for
which weights that were trained there are made.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align

Geometry = Literal["torchvision", "mmdetection"]

# Boxes with a side of less than twice this many pixels are pooled from the finest map.
FINEST_SIDE = 56
RATIOS = (0.5, 1.0, 2.0)  # height over width


def _at_least_32_bits(dtype: torch.dtype) -> torch.dtype:
    # bfloat16 tells apart only every eighth pixel above 1024.
    return torch.promote_types(dtype, torch.float32)


class Anchors(AnchorGenerator):
    """Anchors of one size and three ratios per level, in at least 32 bits.

    Args:
        scale: Side of a square anchor over the stride of its level.
        strides: Input pixels per pixel of each level.
        geometry: "mmdetection" has anchors of any fraction of a pixel, `strides` apart.
            "torchvision" rounds their corners, and takes for the stride how often a level's side
            goes into the image's: 61 in place of 64 where the side is 800 and the level's 13.
    """

    def __init__(self, scale: float, strides: Sequence[int], geometry: Geometry) -> None:
        self.exact = geometry == "mmdetection"
        sizes = tuple((scale * stride,) for stride in strides)
        super().__init__(sizes, (RATIOS,) * len(sizes))  # type: ignore[no-untyped-call]
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Any,
        aspect_ratios: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - torchvision's signature
    ) -> Tensor:
        """Return anchors (len(aspect_ratios) * len(scales), 4) around 0."""
        if not self.exact:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        side = torch.tensor(scales, dtype=torch.float64, device=device)
        root = torch.tensor(aspect_ratios, dtype=torch.float64, device=device).sqrt()[:, None]
        half = torch.stack((side / root, side * root), dim=-1).reshape(-1, 2) / 2
        return torch.cat((-half, half), dim=1)

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the anchors around 0 to the maps' device, in at least 32 bits."""
        super().set_cell_anchors(_at_least_32_bits(dtype), device)

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        """Return (height * width * 3, 4) anchors for the (height, width) of each level."""
        if self.exact:
            strides = [(stride, stride) for stride in self.strides]
        return super().grid_anchors(grid_sizes, strides)


class Deltas(BoxCoder):
    """Boxes as offsets from others, in at least 32 bits.

    Args:
        weights: Factors on the offsets of x, y, width and height.
        geometry: "mmdetection" lets a box shrink as it lets it grow, to 16 / 1000 at the least.
    """

    def __init__(self, weights: tuple[float, float, float, float], geometry: Geometry) -> None:
        super().__init__(weights)
        limits = [-factor * self.bbox_xform_clip for factor in weights[2:]]
        if geometry == "torchvision":
            limits = [-float("inf")] * 2
        self.least = [-float("inf")] * 2 + limits

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Map offsets (N, 4 K) from boxes (N, 4) to boxes (N, 4 K)."""
        deltas = rel_codes.to(_at_least_32_bits(rel_codes.dtype))
        least = deltas.new_tensor(self.least).repeat(deltas.shape[-1] // 4)
        return super().decode_single(torch.maximum(deltas, least), boxes)


class AlignedRoIAlign(MultiScaleRoIAlign):
    """RoIAlign by mmdetection: shifted by half a pixel, boxes of less than a pixel as they are.

    Args:
        output_size: Side of what a box is pooled to.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__(["0", "1", "2", "3"], output_size, sampling_ratio=0)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: Any) -> Tensor:  # noqa: ARG002
        """Pool the boxes of each image, (N_i, 4), to (sum of N_i, C, side, side)."""
        maps = [x[name] for name in self.featmap_names]
        rois = torch.cat([F.pad(found, (1, 0), value=i) for i, found in enumerate(boxes)])
        levels = pyramid_levels(rois[:, 1:])
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, features in enumerate(maps):
            here = torch.where(levels == level)[0]
            part = roi_align(
                features, rois[here], self.output_size, 1 / 2 ** (level + 2), 0, aligned=True
            )
            pooled[here] = part.to(pooled.dtype)
        return pooled


def pyramid_levels(boxes: Tensor) -> Tensor:
    """Return which of the four maps boxes (N, 4) are pooled from by mmdetection, (N,) int64."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(-1).sqrt()
    return torch.log2(sides / FINEST_SIDE + 1e-6).floor().clamp(0, 3).long()


class AlignedTransform(GeneralizedRCNNTransform):
    """Resizes images, normalises them, and brings what was found back, as mmdetection does.

    Sizes are rounded to the nearest pixel (torchvision: down), and a mask is laid into its box as
    it is, to the fraction of a pixel (torchvision: into the whole pixels of the box).
    """

    min_size: Any  # a sequence, whatever torchvision's annotation says

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image (3, H, W), and boxes and masks with it."""
        height, width = image.shape[-2:]
        short = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(short / min(height, width), self.max_size / max(height, width))
        size = [int(side * scale + 0.5) for side in (height, width)]
        image = F.interpolate(image[None], size, mode="bilinear")[0]
        if target is None:
            return image, target
        if "masks" in target:
            masks = F.interpolate(target["masks"][:, None].float(), size)
            target["masks"] = masks[:, 0].byte()
        target["boxes"] = scaled_boxes(target["boxes"], (height, width), (size[0], size[1]))
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Bring boxes and masks to the pixels of the images as they were given."""
        for found, seen, size in zip(result, image_shapes, original_image_sizes, strict=False):
            boxes = found["boxes"] = scaled_boxes(found["boxes"], seen, size)
            if "masks" in found:
                with torch.autocast(boxes.device.type, enabled=False):
                    masks = paste_masks(found["masks"][:, 0].to(boxes), boxes, size)
                found["masks"] = masks[:, None]
        return result


def scaled_boxes(boxes: Tensor, size: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bring boxes (N, 4) in an image of a (height, width) to its pixels at a new one."""
    return boxes * boxes.new_tensor([new[1] / size[1], new[0] / size[0]]).repeat(2)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay masks into their boxes, interpolated (bilinear) at the centres of the image's pixels.

    Args:
        masks: (N, m, m), probabilities.
        boxes: (N, 4) as x1, y1, x2, y2 in pixels of the image.
        size: (height, width) of the image.

    Returns:
        (N, height, width), 0 outside of the boxes.
    """
    side = masks.shape[-1]
    columns = _shares(boxes[:, 0], boxes[:, 2], size[1], side)
    rows = _shares(boxes[:, 1], boxes[:, 3], size[0], side)
    return rows @ masks @ columns.mT


def _shares(low: Tensor, high: Tensor, length: int, side: int) -> Tensor:
    """Return (N, length, side): how much of each value of a mask's axis each pixel gets."""
    pixels = torch.arange(length, device=low.device) + 0.5
    place = (pixels - low[:, None]) / (high - low)[:, None] * side - 0.5
    values = torch.arange(side, device=low.device)
    return (1 - (place[:, :, None] - values).abs()).clamp(min=0)
