"""Images with label maps, read as pairs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lightning_overlock.data.dense_transforms import to_float
from lightning_overlock.data.images import MAX_PIXELS, read_image
from lightning_overlock.data.label_maps import LabelCode, read_labels
from lightning_overlock.data.label_pairs import sizes_differ
from lightning_overlock.data.loading import CorruptImage, Key, seeded


class LabelledImages:
    """Images with label maps: items (image (3, H, W) float32 in [0, 1], labels (H, W) int64).

    Args:
        images: Folder of the images.
        labels: Folder of the label maps.
        pairs: (image, label map), paths relative to those.
        code: Which value is which class.
        transform: Augments (image uint8, labels uint8); may draw random numbers.
        seed: Seed of those.
        max_pixels: Most pixels of one image; None is no limit.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        pairs: list[tuple[str, str]],
        code: LabelCode,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.folders = str(images), str(labels)
        # Bytes in one array, see `ImageFiles`.
        self.pairs = np.array([[os.fsencode(file) for file in pair] for pair in pairs])
        self.code = code
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        image_path, label_path = (
            os.path.join(folder, os.fsdecode(file))  # noqa: PTH118
            for folder, file in zip(self.folders, self.pairs[key.index], strict=True)
        )
        picture = read_image(image_path, self.max_pixels)
        values = read_labels(label_path, self.code, self.max_pixels)
        if values.shape != picture.size[::-1]:
            raise CorruptImage(
                sizes_differ(image_path, picture.size, label_path, values.shape[::-1])
            )
        image = F.to_image(picture)
        labels = tv_tensors.Mask(torch.from_numpy(values))
        if self.transform is not None:
            with seeded(self.seed, key.epoch, key.index):
                image, labels = self.transform(image, labels)
        return to_float(image), labels.as_subclass(Tensor).long()
