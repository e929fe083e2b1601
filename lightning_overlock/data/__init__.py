"""Data modules: images and labels for the tasks."""

from lightning_overlock.data.ade20k import Ade20kDataModule
from lightning_overlock.data.coco import CocoDataModule
from lightning_overlock.data.cued_clutter import CuedClutterDataModule
from lightning_overlock.data.cued_digits import CuedDigitsDataModule
from lightning_overlock.data.digit_scenes import (
    DigitScenesDetectionDataModule,
    DigitScenesSegmentationDataModule,
)
from lightning_overlock.data.digits import ClutteredDigitsDataModule, DigitsDataModule
from lightning_overlock.data.image_folder import ImageFolderDataModule
from lightning_overlock.data.key_value_grid import KeyValueGridDataModule
from lightning_overlock.data.pathfinder import PathfinderDataModule
from lightning_overlock.data.segmentation_folder import SegmentationFolderDataModule
from lightning_overlock.data.streaming import StreamingDataModule
from lightning_overlock.data.torchvision_images import TorchvisionDataModule

__all__ = [
    "Ade20kDataModule",
    "ClutteredDigitsDataModule",
    "CocoDataModule",
    "CuedClutterDataModule",
    "CuedDigitsDataModule",
    "DigitScenesDetectionDataModule",
    "DigitScenesSegmentationDataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "KeyValueGridDataModule",
    "PathfinderDataModule",
    "SegmentationFolderDataModule",
    "StreamingDataModule",
    "TorchvisionDataModule",
]
