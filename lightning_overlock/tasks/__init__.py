"""Tasks: what is trained on which loss, how it is measured and what is logged."""

from lightning_overlock.tasks.classification import ClassificationTask as ClassificationTask
