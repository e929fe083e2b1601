"""Tasks: what is trained on which loss, how it is measured and what is logged."""

from lightning_overlock.tasks.classification import ClassificationTask as ClassificationTask
from lightning_overlock.tasks.detection import DetectionTask as DetectionTask
from lightning_overlock.tasks.segmentation import SegmentationTask as SegmentationTask
