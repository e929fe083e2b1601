"""What torchmetrics lacks: boundaries, and COCO average precision by the original rules."""
