"""Augmentation of images together with their boxes, masks and label maps, by torchvision's v2.

Whatever is random is drawn from torch's CPU generator, which the readers seed for each image.
"""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

# The label of pixels that count for nothing, and ImageNet's mean colour, which is zero for a
# normalised network: what crops are padded with.
IGNORE = 255
MEAN_COLOUR = (0.485, 0.456, 0.406)

# Sizes of the 3x schedule, after DETR.
CROP_SHORT_SIDES = (400, 500, 600)
CROP_LONGEST_SIDE = 1333
CROP_SIDES = (384, 600)


def to_float(image: Tensor) -> Tensor:
    """Return an image (3, H, W) uint8 as a plain float32 tensor in [0, 1]."""
    return F.to_dtype(image, torch.float32, scale=True).as_subclass(Tensor)


def to_pixels(image: Image.Image) -> Tensor:
    """Return a PIL image as a tensor (3, H, W) float32 in [0, 1]."""
    return to_float(F.to_image(image))


def detection_transform(hflip: float, scale_and_crop: bool) -> v2.Transform:
    """Return what comes before a detector's own resize in training.

    Args:
        hflip: Probability of a horizontal flip.
        scale_and_crop: Every second image is resized to a short side of 400, 500 or 600 pixels (the
            long one at most 1333) and cropped to sides of 384 to 600, as for DETR (arXiv
            2005.12872, section 4).
    """
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(hflip)]
    if scale_and_crop:
        scaled = v2.RandomShortestSize(list(CROP_SHORT_SIDES), CROP_LONGEST_SIDE)
        steps.append(v2.RandomApply([scaled, RandomSizedCrop(*CROP_SIDES)], p=0.5))
    return v2.Compose(steps)


def segmentation_transform(
    crop_size: tuple[int, int],
    resize: tuple[int, int],
    ratio: tuple[float, float],
    largest_share: float,
    hflip: float,
    photometric: bool,
) -> v2.Transform:
    """Return the training augmentation of images (3, H, W) uint8 and label maps (H, W) uint8.

    Args:
        crop_size: (height, width) of the outcome; what is missing is padded.
        resize: Longest long side and longest short side, times a random ratio; the image is made as
            large as fits both.
        ratio: Range of that ratio.
        largest_share: A crop should have no class with more than this share of its pixels.
        hflip: Probability of a horizontal flip.
        photometric: Change brightness, contrast, saturation and hue.
    """
    steps = [
        RandomRatioResize(resize, ratio),
        RandomVariedCrop(crop_size, largest_share),
        v2.RandomHorizontalFlip(hflip),
    ]
    if photometric:
        # Brightness by at most 32 of 255 and hue by 18 of 180 degrees, as for SSD.
        steps.append(PhotometricDistortion(brightness=(0.875, 1.125), hue=(-0.1, 0.1)))
    as_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([*steps, as_float, PadTo(crop_size)])


class RandomSizedCrop(v2.Transform):
    """Crops to a random height and a random width, each drawn by itself.

    Args:
        shortest: Smallest side in pixels; a shorter image keeps its side.
        longest: Largest side in pixels.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        super().__init__()
        self.shortest = shortest
        self.longest = longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draw a place."""
        sides = v2.query_size(flat_inputs)
        height, width = (
            _between(min(side, self.shortest), min(side, self.longest)) for side in sides
        )
        return _place(sides, (height, width))

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        """Crop."""
        return F.crop(inpt, **params)


class RandomRatioResize(v2.Transform):
    """Resizes to the largest size that fits a frame times a random ratio, in any orientation.

    Args:
        frame: Longest long side and longest short side in pixels.
        ratio: Range of the ratio.
    """

    def __init__(self, frame: tuple[int, int], ratio: tuple[float, float]) -> None:
        super().__init__()
        self.frame = frame
        self.ratio = ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        low, high = self.ratio
        ratio = low + (high - low) * float(torch.rand(()))
        sides = v2.query_size(flat_inputs)
        factor = min(
            max(self.frame) * ratio / max(sides),
            min(self.frame) * ratio / min(sides),
        )
        return {"size": [max(int(side * factor + 0.5), 1) for side in sides]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize; label maps by their nearest pixels."""
        return F.resize(inpt, **params, antialias=True)


class RandomVariedCrop(v2.Transform):
    """Crops where no class fills too much of the label map; gives up after ten tries.

    Args:
        size: (height, width); a smaller image keeps its side.
        largest_share: Share of the labelled pixels that one class may have.
    """

    def __init__(self, size: tuple[int, int], largest_share: float) -> None:
        super().__init__()
        self.size = size
        self.largest_share = largest_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draw a place."""
        (labels,) = (i for i in flat_inputs if isinstance(i, tv_tensors.Mask))
        sides = v2.query_size(flat_inputs)
        size = min(sides[0], self.size[0]), min(sides[1], self.size[1])
        for _ in range(10):
            place = _place(sides, size)
            seen = F.crop(labels, **place)
            counts = torch.bincount(seen[seen != IGNORE].flatten())
            if counts.sum() > 0 and counts.max() < self.largest_share * counts.sum():
                break
        return place

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        """Crop."""
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.RandomPhotometricDistort):
    """torchvision's without its permutation of the colour channels."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the changes."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class PadTo(v2.Transform):
    """Pads to the right and below: images with ImageNet's mean colour, label maps with 255.

    Args:
        size: (height, width).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, list[int]]:
        """Find out how much is missing."""
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, max(self.size[1] - width, 0), max(self.size[0] - height, 0)]}

    def transform(self, inpt: Any, params: dict[str, list[int]]) -> Any:
        """Pad."""
        fill = IGNORE if isinstance(inpt, tv_tensors.Mask) else list(MEAN_COLOUR)
        return F.pad(inpt, params["padding"], fill) if any(params["padding"]) else inpt


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def _place(sides: tuple[int, int], size: tuple[int, int]) -> dict[str, int]:
    """Draw a place of a size within an image, as arguments of `crop`."""
    return {
        "top": _between(0, sides[0] - size[0]),
        "left": _between(0, sides[1] - size[1]),
        "height": size[0],
        "width": size[1],
    }
