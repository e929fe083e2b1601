"""How an image is turned for viewers, by its EXIF, and whether its size tells."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from lightning_overlock.data.images import open_image
from lightning_overlock.errors import printable

# Where in its head an image may say how it is to be turned.
NAMES_ORIENTATION = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


class Viewed(NamedTuple):
    """How a viewer shows an image.

    Attributes:
        size: (width, height).
        orientation: That of its EXIF or XMP; 1 is as it is stored, 5 to 8 are quarter turns.
    """

    size: tuple[int, int]
    orientation: int

    @property
    def hides_turn(self) -> bool:
        """Whether it is turned or mirrored and has the size of the stored image all the same."""
        return self.orientation != 1 and (self.orientation < 5 or self.size[0] == self.size[1])


def viewed(image: Image.Image) -> Viewed:
    """Return how a viewer shows an open image, by its head alone."""
    orientation = 1
    # Asked of a PNG that names no orientation in its head, Pillow would read all of it.
    if image.format == "TIFF" or NAMES_ORIENTATION & image.info.keys():
        with contextlib.suppress(Exception):  # as in `read_image`: the image is readable
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(2, 9) else 1
    # Pillow turns a TIFF when it opens it.
    turned = orientation >= 5 and image.format != "TIFF"
    return Viewed(image.size[::-1] if turned else image.size, orientation)


def viewed_file(path: str | Path, max_pixels: int | None) -> Viewed:
    """Return how a viewer shows an image file, reading no more than its head.

    Raises:
        InputError: It cannot be read, or has too many pixels.
    """
    with open_image(path, max_pixels) as image:
        return viewed(image)


def tell_hidden_turns(files: Sequence[str], annotations: str) -> str:
    """Return what to say of images whose size does not tell whether annotations are turned too.

    Args:
        files: The images.
        annotations: What must be made on the turned image: "boxes" or "label maps".
    """
    count = f"{len(files):,} images are" if len(files) > 1 else "1 image is"
    return (
        f"{count} turned as EXIF says at the same size ({printable(files[0])}): "
        f"the {annotations} are taken for those of the image as viewers show it"
    )
