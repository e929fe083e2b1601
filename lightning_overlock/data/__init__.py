"""Data modules: images and labels for the tasks."""

from lightning_overlock.data.coco import CocoDataModule
from lightning_overlock.data.cued_digits import CuedDigitsDataModule
from lightning_overlock.data.digit_scenes import DigitScenesDetectionDataModule
from lightning_overlock.data.digits import ClutteredDigitsDataModule, DigitsDataModule
from lightning_overlock.data.image_folder import ImageFolderDataModule

__all__ = [
    "ClutteredDigitsDataModule",
    "CocoDataModule",
    "CuedDigitsDataModule",
    "DigitScenesDetectionDataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
]
