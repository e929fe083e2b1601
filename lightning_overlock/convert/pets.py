"""Oxford-IIIT Pet: trimaps of pet, background and the border between.

O. M. Parkhi et al., Cats and dogs, CVPR 2012.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.convert.scenes import (
    IMAGES,
    Collection,
    Part,
    Scene,
    image_beside,
    refuse_nothing,
    size_of,
)
from lightning_overlock.data.label_maps import read_values
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import printable

PET_CLASSES = ["pet", "background", "border"]


def read(root: Path, _: str) -> Collection:
    """Return Oxford-IIIT Pet with its trimaps: pet, background, border.

    Args:
        root: The folder of images and annotations, or torchvision's root, where oxford-iiit-pet is.

    Raises:
        InputError: There are no trimaps.
    """
    folder = root / "oxford-iiit-pet" if (root / "oxford-iiit-pet").is_dir() else root
    parts = {}
    for name, listed in (("train", "trainval"), ("test", "test")):
        path, part = folder / "annotations" / f"{listed}.txt", Part()
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for stem in (line.split()[0] for line in lines if line.strip()):
            trimap = folder / "annotations/trimaps" / f"{stem}.png"
            image = image_beside(folder / "images", stem)
            if not trimap.is_file():
                part.leave_out(IMAGES, "without a trimap", stem)
            elif (size := size_of(part, image, stem)) is not None and image is not None:
                part.add(Scene(image, image.name, size, [], trimap))
        if lines:
            parts[name] = part
    refuse_nothing(parts.values(), root, "images/, annotations/trimaps/ and their lists")
    return Collection(parts, PET_CLASSES, read_trimap)


def read_trimap(path: Path) -> NDArray[np.uint8]:
    """Return a trimap's classes: 1 is the pet, 2 background, 3 the border between.

    Raises:
        CorruptImage: It cannot be read, or has another value.
    """
    values = read_values(path)
    if values.min() < 1 or values.max() > 3:
        raise CorruptImage(f"{printable(path)}: values from {values.min()} to {values.max()}")
    return (values - 1).astype(np.uint8)
