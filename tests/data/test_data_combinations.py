"""An option of the data that changes nothing without another one is told, not passed over."""

import inspect
import warnings
from dataclasses import replace

import pytest

from lightning_overlock import data as data_room
from lightning_overlock.data import (
    CocoDataModule,
    ImageFolderDataModule,
    PathfinderDataModule,
    SegmentationFolderDataModule,
    TorchvisionDataModule,
)
from lightning_overlock.data.base import BaseDataModule
from lightning_overlock.data.digit_scenes import NEEDS, SceneOptions
from lightning_overlock.data.timm_transforms import TimmTransformsDataModule

MODULES = [
    found
    for found in vars(data_room).values()
    if inspect.isclass(found) and issubclass(found, BaseDataModule)
]
COCO = {"train_json": "a", "train_images": "b", "val_json": "c", "val_images": "d"}
FOLDERS = {"train_images": "a", "train_labels": "b", "val_images": "c", "val_labels": "d"}
NAMES = {"class_names": ["a", "b"]}
# The option alone, and the same with what it needs.
ALONE = {
    (TimmTransformsDataModule, "color_jitter"): (
        {"color_jitter": 0.2, "auto_augment": "rand-m9-mstd0.5-inc1"},
        {"auto_augment": "3a"},
    ),
    (TimmTransformsDataModule, "re_mode"): ({"re_mode": "const"}, {"re_prob": 0.1}),
    (TimmTransformsDataModule, "re_count"): ({"re_count": 2}, {"re_prob": 0.1}),
    (TimmTransformsDataModule, "scale"): ({"scale": (0.5, 1), "padding": 4}, {"padding": None}),
    (TimmTransformsDataModule, "ratio"): ({"ratio": (1, 1), "padding": 4}, {"padding": None}),
    (TorchvisionDataModule, "cut_validation"): (
        {"dataset": "FGVCAircraft", "cut_validation": 0.2},
        {"dataset": "CIFAR10"},
    ),
    (TorchvisionDataModule, "cut_test"): (
        {"dataset": "CIFAR10", "cut_test": 0.3},
        {"dataset": "Caltech101"},
    ),
    (TorchvisionDataModule, "split_seed"): (
        {"dataset": "FGVCAircraft", "split_seed": 3},
        {"dataset": "CIFAR10"},
    ),
    (CocoDataModule, "root"): ({"root": "coco", **COCO}, {"val_json": None, "val_images": None}),
    (CocoDataModule, "max_left_out"): ({**COCO, "max_left_out": 0.3}, {"skip_invalid": True}),
    (SegmentationFolderDataModule, "root"): (
        {"root": "plots", **FOLDERS, **NAMES},
        {"val_images": None, "val_labels": None},
    ),
    (PathfinderDataModule, "curriculum"): ({"curriculum": [6, 6]}, {"curriculum": [3, 6]}),
}


@pytest.fixture(autouse=True)
def _without_files(monkeypatch):
    monkeypatch.setattr(CocoDataModule, "categories", lambda self: [(1, "a")])
    monkeypatch.setattr(ImageFolderDataModule, "_files", lambda self, split: None)
    monkeypatch.setattr(TorchvisionDataModule, "class_names", ["a", "b"])


def test_every_such_option_is_tried():
    declared = {
        (owner, name)
        for module in MODULES
        for name in getattr(module, "needs", {})
        for owner in [c for c in module.__mro__ if name in getattr(c, "needs", {})][-1:]
    }
    assert ALONE.keys() == declared
    assert NEEDS.keys() == {"least_visible"}


@pytest.mark.parametrize(
    ("module", "name"), ALONE, ids=[f"{module.__name__}-{name}" for module, name in ALONE]
)
def test_an_option_that_changes_nothing_is_told(module, name):
    options, more = ALONE[module, name]
    module = ImageFolderDataModule if module is TimmTransformsDataModule else module
    with pytest.warns(UserWarning, match=f"data.{name} .* changes nothing, it needs"):
        module(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(**options | more)


def test_scenes_of_one_digit_overlap_nothing():
    alone = SceneOptions(digits=(1, 1), least_visible=0.9)
    with pytest.warns(UserWarning, match=r"data\.scenes\.least_visible 0\.9 changes nothing"):
        alone.check()
    replace(alone, digits=(1, 2)).check()
    replace(alone, least_visible=0.5).check()


def test_a_root_that_has_the_tests_or_the_names_is_of_use(tmp_path):
    (tmp_path / "images/test").mkdir(parents=True)
    SegmentationFolderDataModule(root=str(tmp_path), **FOLDERS, **NAMES)
    (tmp_path / "images/test").rmdir()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    SegmentationFolderDataModule(root=str(tmp_path), **FOLDERS)
    with pytest.warns(UserWarning, match=r"data\.root .* changes nothing"):
        SegmentationFolderDataModule(root=str(tmp_path), **FOLDERS, **NAMES)


@pytest.mark.parametrize("there", ["sky\nland\n", "a\n", "\n\n", "0 a\n1 b\n"])
def test_names_beside_a_file_that_says_otherwise_are_told(tmp_path, there):
    (tmp_path / "classes.txt").write_text(there)
    with pytest.warns(UserWarning, match=r"class_names is used, and .*classes\.txt, which says"):
        data = SegmentationFolderDataModule(root=str(tmp_path), **NAMES)
    assert data.class_names == ["a", "b"]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert SegmentationFolderDataModule(root=str(tmp_path), **NAMES).class_names == ["a", "b"]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_options_of_training_are_arguments(module):
    """A name that is none would refuse nothing."""
    known = set()
    for part in module.__mro__:
        known |= set(inspect.signature(part.__init__).parameters)
    assert module.training_options <= known
    assert module.labelled_options <= known
