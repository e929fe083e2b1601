"""What images are normalised with, told by what a transform makes of black and of white."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image
from torch import Tensor


class Normalisation(NamedTuple):
    """What images are normalised with.

    Attributes:
        mean: (3, 1, 1), in units of [0, 1].
        std: (3, 1, 1), likewise.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, transform: Callable[[Image.Image], Tensor]) -> "Normalisation":
        """Return that of a transform, told by what it makes of black and of white."""
        black, white = (
            _centre(transform(Image.new("RGB", (32, 32), colour))) for colour in ("black", "white")
        )
        std = 1 / (white - black)
        return cls(-black * std, std)

    def to_other(self, images: Tensor, other: "Normalisation") -> Tensor:
        """Return images (B, 3, H, W) that have this one with another one instead."""
        scale = (self.std / other.std).to(images)
        shift = ((self.mean - other.mean) / other.std).to(images)
        return images * scale + shift


def _centre(image: Tensor) -> Tensor:
    row, column = image.shape[1] // 2, image.shape[2] // 2
    return image[:, row : row + 1, column : column + 1].double()
