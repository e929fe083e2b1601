"""An option that changes nothing without another one is told, not passed over."""

import warnings

import pytest

from lightning_overlock.tasks import ClassificationTask, SegmentationTask
from lightning_overlock.tasks.combinations import NEEDS

# The option, what it needs, and the same with it.
ALONE = {
    "gamma": ({"gamma": 0.5}, {"schedule": "multistep", "milestones": [1]}),
    "power": ({"power": 2.0}, {"schedule": "poly"}),
    "min_lr": ({"min_lr": 0.1, "schedule": "multistep", "milestones": [1]}, None),
    "cooldown_epochs": ({"cooldown_epochs": 1, "schedule": "multistep", "milestones": [1]}, None),
    "warmup_lr": ({"warmup_lr": 0.1}, {"warmup_steps": 3}),
    "warmup_factor": ({"warmup_factor": 0.1}, {"warmup_steps": 0}),
    "mixup_prob": ({"mixup_prob": 0.5}, {"mixup": 0.8}),
    "mixup_switch_prob": ({"mixup_switch_prob": 0.2, "mixup": 0.8}, {"cutmix": 1.0}),
    "teacher_init_from": ({"teacher_init_from": "x.pth"}, {"teacher": "resnet18"}),
    "teacher_weight": ({"teacher_weight": 0.1}, {"teacher": "resnet18"}),
    "teacher_temperature": (
        {"teacher_temperature": 1.0},
        {"teacher": "resnet18"},
    ),
    "teacher_features": ({"teacher_features": 1.0}, {"teacher": "resnet18"}),
    "teacher_dtype": ({"teacher_dtype": "bfloat16"}, {"teacher": "resnet18"}),
    "window": ({"window": 400}, {"inference": "slide"}),
    "stride": ({"stride": 300}, {"inference": "slide"}),
}
OF_SEGMENTATION = {"window", "stride"}


def build(name, options):
    task = SegmentationTask if name in OF_SEGMENTATION else ClassificationTask
    return task(class_names=["a", "b"], backbone="test_convnext", **options)


def test_every_such_option_is_tried():
    assert ALONE.keys() == NEEDS.keys()


@pytest.mark.parametrize("name", ALONE)
def test_an_option_that_changes_nothing_is_told(name):
    options, more = ALONE[name]
    with pytest.warns(UserWarning, match=f"model.{name} .* changes nothing, it needs"):
        build(name, options)
    if more is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build(name, options | more)
