"""Predictions drawn over their images."""

import colorsys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """Return a colour per class that stays as it is, however many classes follow."""
    # Steps of the golden ratio around the colour circle keep neighbours apart.
    hues = [(index * 0.618034) % 1 for index in range(count)]
    colors = [colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors]


def draw_detections(
    image: Tensor, detections: Mapping[str, Tensor], class_names: Sequence[str]
) -> Tensor:
    """Draw boxes with class and score, and masks where there are some.

    Args:
        image: (3, H, W) float in [0, 1].
        detections: `boxes` (N, 4) in pixels, `labels` (N,) from 1, and optionally `scores` (N,),
            `masks` (N, 1, H, W), probabilities.
        class_names: The name of label i is `class_names[i - 1]`.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    drawn = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    labels = detections["labels"].tolist()
    if not labels:
        return drawn
    palette = class_colors(len(class_names))
    colors = [palette[label - 1] for label in labels]
    if "masks" in detections:
        masks = detections["masks"][:, 0].cpu() > 0.5
        drawn = draw_segmentation_masks(drawn, masks, alpha=0.5, colors=colors)
    words = [class_names[label - 1] for label in labels]
    if "scores" in detections:
        scores = detections["scores"].tolist()
        words = [f"{word} {score:.2f}" for word, score in zip(words, scores, strict=True)]
    return draw_bounding_boxes(
        drawn, detections["boxes"].float().cpu(), words, colors=colors, width=1
    )


def draw_class(image: Tensor, words: str) -> Tensor:
    """Write words into the upper left corner of an image, white on black.

    Args:
        image: (3, H, W) in any range, which is stretched to that of colours.
        words: The text, such as the class that was predicted.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    pixels = image.detach().float().cpu()
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-6)
    drawn = (pixels * 255).round().to(torch.uint8)
    frame = torch.tensor([[0.0, 0, drawn.shape[2] - 1, drawn.shape[1] - 1]])
    # Left to itself torchvision draws a single box and its words in black.
    return draw_bounding_boxes(
        drawn, frame, [words], colors="black", label_colors="white", fill_labels=True
    )


def overlay(image: Tensor, labels: Tensor, palette: list[tuple[int, int, int]]) -> Tensor:
    """Lay the colours of classes over an image.

    Args:
        image: (3, H, W) in [0, 1].
        labels: (H, W); pixels with a label that is no class, for example 255, keep their colour.
        palette: RGB of every class, 0 to 255.

    Returns:
        (3, H, W) uint8 on the CPU.
    """
    image, labels = image.float().cpu(), labels.cpu()
    present = [index for index in torch.unique(labels).tolist() if index < len(palette)]
    masks = labels == torch.tensor(present).view(-1, 1, 1)
    colors: list[str | tuple[int, int, int]] = [palette[index] for index in present]
    pixels = (image * 255).round().to(torch.uint8)
    return draw_segmentation_masks(pixels, masks, alpha=0.6, colors=colors)
