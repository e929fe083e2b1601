"""Mask R-CNN, UPerNet and the FCN head as mmdetection 2 and mmsegmentation 0 define them.

Computed in plain tensors from a state dict with their names, for comparison: nothing here comes
from torchvision's detectors or from this package. Names and settings are those of the release's
configurations (mask_rcnn_r50_fpn and upernet_r50 with OverLoCK's four maps).
"""

import math

import torch
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32, 64)


def _layer(name, outputs, inputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _conv_module(name, outputs, inputs, kernel):
    """mmcv's ConvModule with a norm: no bias."""
    norm = {f"{name}.bn.{leaf}": (outputs,) for leaf in ("weight", "bias")}
    norm |= {f"{name}.bn.{leaf}": (outputs,) for leaf in ("running_mean", "running_var")}
    norm[f"{name}.bn.num_batches_tracked"] = ()
    return {f"{name}.conv.weight": (outputs, inputs, kernel, kernel)} | norm


def upernet_shapes(channels, classes, width=512, auxiliary_width=256):
    """Shape of each entry of the heads of `upernet_overlock_*_ade20k.pth`."""
    last = channels[-1]
    shapes = _layer("decode_head.conv_seg", classes, width, 1)
    for index in range(4):
        shapes |= _conv_module(f"decode_head.psp_modules.{index}.1", width, last, 1)
    shapes |= _conv_module("decode_head.bottleneck", width, last + 4 * width, 3)
    for index in range(3):
        shapes |= _conv_module(f"decode_head.lateral_convs.{index}", width, channels[index], 1)
        shapes |= _conv_module(f"decode_head.fpn_convs.{index}", width, width, 3)
    shapes |= _conv_module("decode_head.fpn_bottleneck", width, 4 * width, 3)
    shapes |= _layer("auxiliary_head.conv_seg", classes, auxiliary_width, 1)
    return shapes | _conv_module("auxiliary_head.convs.0", auxiliary_width, channels[2], 3)


def mask_rcnn_shapes(channels, classes, width=256, box_width=1024, mask_width=256):
    """Shape of each entry of the heads of `maskrcnn1x_overlock_*_coco.pth`."""
    shapes = {}
    for index, count in enumerate(channels):
        shapes |= _layer(f"neck.lateral_convs.{index}.conv", width, count, 1)
        shapes |= _layer(f"neck.fpn_convs.{index}.conv", width, width, 3)
    shapes |= _layer("rpn_head.rpn_conv", width, width, 3)
    shapes |= _layer("rpn_head.rpn_cls", 3, width, 1) | _layer("rpn_head.rpn_reg", 12, width, 1)
    for name, outputs, inputs in (
        ("fc_cls", classes + 1, box_width),
        ("fc_reg", 4 * classes, box_width),
        ("shared_fcs.0", box_width, 49 * width),
        ("shared_fcs.1", box_width, box_width),
    ):
        shapes[f"roi_head.bbox_head.{name}.weight"] = (outputs, inputs)
        shapes[f"roi_head.bbox_head.{name}.bias"] = (outputs,)
    for index in range(4):
        inputs = mask_width if index else width
        shapes |= _layer(f"roi_head.mask_head.convs.{index}.conv", mask_width, inputs, 3)
    shapes["roi_head.mask_head.upsample.weight"] = (mask_width, mask_width, 2, 2)
    shapes["roi_head.mask_head.upsample.bias"] = (mask_width,)
    return shapes | _layer("roi_head.mask_head.conv_logits", classes, mask_width, 1)


# mmsegmentation


def _conv(state, name, x):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def _conv_norm(state, name, x):
    x = _conv(state, f"{name}.conv", x)
    mean, variance, weight, bias = (
        state[f"{name}.bn.{leaf}"][:, None, None]
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).relu()


def _like(x, other):
    return F.interpolate(x, other.shape[-2:], mode="bilinear", align_corners=False)


def upernet(state, maps):
    """Logits (B, classes, H / 4, W / 4)."""
    top = [maps[3]]
    for index, scale in enumerate((1, 2, 3, 6)):
        pooled = F.adaptive_avg_pool2d(maps[3], scale)
        pooled = _conv_norm(state, f"decode_head.psp_modules.{index}.1", pooled)
        top.append(_like(pooled, maps[3]))
    top = _conv_norm(state, "decode_head.bottleneck", torch.cat(top, 1))
    levels = [_conv_norm(state, f"decode_head.lateral_convs.{i}", maps[i]) for i in range(3)]
    levels[2] = levels[2] + _like(top, levels[2])
    levels[1] = levels[1] + _like(levels[2], levels[1])
    levels[0] = levels[0] + _like(levels[1], levels[0])
    out = [_conv_norm(state, f"decode_head.fpn_convs.{i}", levels[i]) for i in range(3)]
    together = torch.cat([_like(x, out[0]) for x in (*out, top)], 1)
    return _conv(
        state, "decode_head.conv_seg", _conv_norm(state, "decode_head.fpn_bottleneck", together)
    )


def fcn(state, maps):
    """Logits (B, classes, H / 16, W / 16)."""
    x = _conv_norm(state, "auxiliary_head.convs.0", maps[2])
    return _conv(state, "auxiliary_head.conv_seg", x)


# mmdetection


def resized(image, short, long):
    """The image (3, H, W) at the test size: sides rounded to the nearest pixel."""
    height, width = image.shape[-2:]
    factor = min(long / max(height, width), short / min(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def padded(image):
    """(1, 3, H, W) with sides that are multiples of 32, zeros at the right and the bottom."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % 32, 0, -height % 32))[None]


def pyramid(state, maps):
    """Five maps of the neck."""
    sums = [_conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    for index in (2, 1, 0):
        sums[index] = sums[index] + F.interpolate(sums[index + 1], sums[index].shape[-2:])
    out = [_conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(sums)]
    return [*out, out[3][..., ::2, ::2]]


def anchors(rows, columns, stride):
    """(rows * columns * 3, 4), of scale 8 and the ratios 1/2, 1, 2 around the pixels' corners."""
    boxes = []
    for row in range(rows):
        for column in range(columns):
            for ratio in (0.5, 1.0, 2.0):
                height = 8 * stride * math.sqrt(ratio)
                width = 8 * stride / math.sqrt(ratio)
                x, y = column * stride, row * stride
                boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return torch.tensor(boxes, dtype=torch.float64)


def decode(boxes, deltas, stds, size):
    """Boxes (N, 4) moved by deltas (N, 4), cut at the image's border."""
    x, y, w, h = (deltas * torch.tensor(stds, dtype=deltas.dtype)).unbind(1)
    limit = abs(math.log(16 / 1000))
    w, h = w.clamp(-limit, limit).exp(), h.clamp(-limit, limit).exp()
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + sides * torch.stack((x, y), 1)
    half = sides * torch.stack((w, h), 1) / 2
    border = torch.tensor([size[1], size[0]] * 2, dtype=deltas.dtype)
    return torch.minimum(torch.cat((centre - half, centre + half), 1).clamp(min=0), border)


def suppress(boxes, scores, threshold):
    """Indices that non-maximum suppression keeps, best first."""
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = shared / (area[:, None] + area - shared)
    left, kept = scores.argsort(descending=True).tolist(), []
    while left:
        best, *left = left
        kept.append(best)
        left = [other for other in left if not overlap[best, other] > threshold]
    return kept


def suppress_in_groups(boxes, scores, groups, threshold, count):
    """The best `count` indices after suppression among boxes of the same group, best first."""
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        kept += members[suppress(boxes[members], scores[members], threshold)].tolist()
    return sorted(kept, key=lambda index: -scores[index].item())[:count]


def rpn_outputs(state, levels):
    """Logits (N,) and deltas (N, 4) of each level, in the order of its anchors."""
    out = []
    for x in levels:
        x = _conv(state, "rpn_head.rpn_conv", x).relu()
        logits = _conv(state, "rpn_head.rpn_cls", x)[0].permute(1, 2, 0).reshape(-1)
        deltas = _conv(state, "rpn_head.rpn_reg", x)[0].permute(1, 2, 0).reshape(-1, 4)
        out.append((logits, deltas))
    return out


def proposals(state, levels, size, count):
    """The first stage's boxes (P, 4), best first."""
    boxes, scores, groups = [], [], []
    outputs = rpn_outputs(state, levels)
    for level, (x, (logits, deltas)) in enumerate(zip(levels, outputs, strict=True)):
        best = logits.sigmoid().argsort(descending=True)[:count]
        around = anchors(*x.shape[-2:], STRIDES[level])[best]
        found = decode(around, deltas[best], (1.0, 1.0, 1.0, 1.0), size)
        valid = ((found[:, 2:] - found[:, :2]) > 0).all(1)
        boxes.append(found[valid])
        scores.append(logits.sigmoid()[best][valid])
        groups.append(torch.full((int(valid.sum()),), level))
    boxes, scores, groups = torch.cat(boxes), torch.cat(scores), torch.cat(groups)
    return boxes[suppress_in_groups(boxes, scores, groups, 0.7, count)]


def _sample(x, rows, columns):
    """Values (C, len(rows), len(columns)) of a map (C, H, W) between its pixels, bilinear."""

    def taps(place, length):
        inside = (place >= -1) & (place <= length)
        place = place.clamp(0, length - 1)
        low = place.floor().long()
        return low, (low + 1).clamp(max=length - 1), place - low, inside

    top, bottom, down, in_rows = taps(rows, x.shape[1])
    left, right, across, in_columns = taps(columns, x.shape[2])
    upper = x[:, top] * (1 - down)[:, None] + x[:, bottom] * down[:, None]
    values = upper[:, :, left] * (1 - across) + upper[:, :, right] * across
    return values * in_rows[:, None] * in_columns


def roi_align(x, box, stride, side):
    """A box pooled from a map (C, H, W), (C, side, side): aligned, as many samples as pixels."""
    x1, y1, x2, y2 = (box / stride - 0.5).tolist()
    places, counts = [], []
    for low, high in ((y1, y2), (x1, x2)):
        bin_side = (high - low) / side
        count = math.ceil(bin_side)
        steps = (torch.arange(count * side, dtype=torch.float64) + 0.5) / max(count, 1)
        places.append(low + steps * bin_side)
        counts.append(count)
    values = _sample(x, *places)
    return values.reshape(-1, side, counts[0], side, counts[1]).mean((2, 4))


def level_of(box):
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)


def pooled(levels, boxes, side):
    """Each box pooled from the level of its size, (N, C, side, side)."""
    regions = []
    for box in boxes:
        level = level_of(box.tolist())
        regions.append(roi_align(levels[level][0], box, STRIDES[level], side))
    return torch.stack(regions)


def box_outputs(state, regions):
    """Scores (N, classes + 1), the background last, and deltas (N, classes, 4)."""
    x = regions.flatten(1)
    for name in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg"):
        weight, bias = (state[f"roi_head.bbox_head.{name}.{leaf}"] for leaf in ("weight", "bias"))
        if name.startswith("shared"):
            x = (x @ weight.T + bias).relu()
        elif name == "fc_cls":
            scores = (x @ weight.T + bias).softmax(1)
        else:
            deltas = (x @ weight.T + bias).reshape(len(x), -1, 4)
    return scores, deltas


def mask_logits(state, regions):
    """(N, classes, 28, 28)."""
    x = regions
    for index in range(4):
        x = _conv(state, f"roi_head.mask_head.convs.{index}.conv", x).relu()
    weight, bias = (state[f"roi_head.mask_head.upsample.{leaf}"] for leaf in ("weight", "bias"))
    # A kernel of 2 with a stride of 2: every pixel becomes four of its own.
    x = torch.einsum("nchw,cdij->ndhiwj", x, weight)
    x = x.flatten(2, 3).flatten(3, 4) + bias[:, None, None]
    return _conv(state, "roi_head.mask_head.conv_logits", x.relu())


def paste(mask, box, size):
    """Probabilities (H, W) of a mask (m, m) in its box, sampled at the centres of pixels."""
    x1, y1, x2, y2 = box.tolist()
    y = (torch.arange(size[0], dtype=torch.float64) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1], dtype=torch.float64) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def detections(state, levels, size, original, count, most):
    """Boxes (N, 4) and masks (N, H, W) in the original image, scores and classes from 0."""
    first = proposals(state, levels, size, count)
    scores, deltas = box_outputs(state, pooled(levels, first, 7))
    classes = scores.shape[1] - 1
    factor = torch.tensor([size[1] / original[1], size[0] / original[0]] * 2, dtype=torch.float64)
    boxes, labels = [], []
    for label in range(classes):
        boxes.append(decode(first, deltas[:, label], (0.1, 0.1, 0.2, 0.2), size) / factor)
        labels.append(torch.full((len(first),), label))
    boxes, labels, scores = torch.cat(boxes), torch.cat(labels), scores[:, :-1].T.reshape(-1)
    good = scores > 0.05
    boxes, labels, scores = boxes[good], labels[good], scores[good]
    kept = suppress_in_groups(boxes, scores, labels, 0.5, most)
    boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
    logits = mask_logits(state, pooled(levels, boxes * factor, 14))
    masks = [
        paste(logits[index, label].sigmoid(), box, original)
        for index, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True))
    ]
    return boxes, scores, labels, torch.stack(masks)
