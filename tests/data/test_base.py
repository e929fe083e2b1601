"""What every data module has: a state for prediction in plain types, and a check of its splits."""

import pytest
import torch

from lightning_overlock import data
from lightning_overlock.data.base import STAGES, BaseDataModule
from lightning_overlock.data.digit_scenes import SceneOptions

SMALL = SceneOptions(canvas=64, train_images=4, eval_images=2, digit_sizes=(16, 30))
MAKERS = {
    "DigitsDataModule": lambda folder: data.DigitsDataModule(),
    "ClutteredDigitsDataModule": lambda folder: data.ClutteredDigitsDataModule(),
    "CuedDigitsDataModule": lambda folder: data.CuedDigitsDataModule(),
    "DigitScenesDetectionDataModule": lambda folder: data.DigitScenesDetectionDataModule(
        SMALL, str(folder), num_workers=0
    ),
    "DigitScenesSegmentationDataModule": lambda folder: data.DigitScenesSegmentationDataModule(
        SMALL, str(folder), num_workers=0
    ),
    "Ade20kDataModule": lambda folder: data.Ade20kDataModule(predict_dir=str(folder)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_state_for_prediction_is_plain_and_complete(name, tmp_path):
    torch.save(torch.zeros(1), tmp_path / "a.png")  # a folder to predict for
    module = MAKERS[name](tmp_path)
    state = module.prediction_state()
    torch.save(state, tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == state
    assert state["class_names"] == list(module.class_names)
    other = MAKERS[name](tmp_path)
    names = [f"class {number}" for number in range(len(state["class_names"]))]
    other.load_prediction_state({**state, "class_names": names})
    assert list(other.class_names) == names
    assert list(MAKERS[name](tmp_path).class_names) == state["class_names"]  # not of the class


@pytest.mark.parametrize("name", [name for name in MAKERS if "Digit" in name and "Ade" not in name])
def test_setting_up_says_nothing_where_all_is_used(name, tmp_path, caplog):
    module = MAKERS[name](tmp_path)
    module.prepare_data()
    with caplog.at_level("INFO"):
        for stage in STAGES:
            module.setup(stage)
    assert not [record for record in caplog.records if "used" in record.getMessage()]


def test_every_data_module_of_the_package_is_tried_here_or_has_files_of_its_own():
    ours = {name for name in data.__all__ if issubclass(getattr(data, name), BaseDataModule)}
    assert ours - set(MAKERS) == {
        "CocoDataModule",
        "CuedClutterDataModule",
        "ImageFolderDataModule",
        "KeyValueGridDataModule",
        "PathfinderDataModule",
        "SegmentationFolderDataModule",
        "StreamingDataModule",
        "TorchvisionDataModule",
    }
