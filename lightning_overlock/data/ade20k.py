"""ADE20K, in the layout of the scene parsing benchmark."""

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_overlock.data.ade20k_classes import CLASS_NAMES, PALETTE
from lightning_overlock.data.label_maps import Colour
from lightning_overlock.data.segmentation_folder import SegmentationFolderDataModule


class Ade20kDataModule(SegmentationFolderDataModule):
    """ADE20K's 150 classes, as the scene parsing benchmark has them (ADEChallengeData2016).

    See `SegmentationFolderDataModule`. The value 0 is no class and is ignored.

    Args:
        root: ADEChallengeData2016, with images/{training,validation} and
            annotations/{training,validation}.
        kwargs: Further arguments of `SegmentationFolderDataModule`.
    """

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        folder = Path(root)
        super().__init__(
            train_images=str(folder / "images/training") if root else None,
            train_labels=str(folder / "annotations/training") if root else None,
            val_images=str(folder / "images/validation") if root else None,
            val_labels=str(folder / "annotations/validation") if root else None,
            class_names=CLASS_NAMES,
            reduce_zero_label=True,
            **kwargs,
        )

    @cached_property
    def palette(self) -> list[Colour]:
        """The benchmark's colours."""
        return PALETTE
