"""`lightning data convert`: annotations of other tools as COCO files or label maps."""
