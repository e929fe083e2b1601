"""Folders by WordNet id, number or class name, and how ImageNet-C lies on a disk."""

import pytest
from timm.data import ImageNetInfo

from lightning_overlock.errors import InputError
from lightning_overlock.robustness.folders import (
    corruption_folders,
    imagenet_ids,
    places_of,
    read_folder,
    wordnet_ids,
)

IDS = imagenet_ids()


def test_folders_named_as_the_models_classes():
    assert places_of(["cat", "dog"], ["dog", "cow", "cat"]) == {"cat": 2, "dog": 0}


def test_digits_that_are_classes_are_no_numbers_of_imagenet():
    names = [str(i) for i in range(10)]
    assert places_of(["3", "1"], names) == {"3": 3, "1": 1}


def test_imagenet_v2s_numbers_are_imagenets_labels_not_the_order_of_folders():
    folders = [str(i) for i in range(1000)]
    for names in (IDS, IDS[::-1]):
        places = places_of(folders, names)
        assert all(names[places[str(i)]] == IDS[i] for i in range(1000))
    assert places_of(["2", "10"], IDS) == {"2": 2, "10": 10}


def test_a_model_of_some_of_imagenets_classes_knows_those_alone():
    names = [IDS[7], IDS[3], IDS[500]]
    assert places_of(["3", "7", "8"], names) == {"3": 1, "7": 0}
    assert places_of([IDS[500], IDS[8]], names) == {IDS[500]: 2}


def test_imagenets_classes_are_known_by_number_and_by_description():
    info = ImageNetInfo("imagenet-1k")
    numbers = sorted(str(i) for i in range(1000))
    assert wordnet_ids(numbers)[numbers.index("42")] == IDS[42]
    described = [info.index_to_description(i, detailed=True) for i in range(1000)]
    assert wordnet_ids(described[::-1]) == IDS[::-1]
    other = [f"class {i}" for i in range(1000)]
    assert wordnet_ids(other) == other
    assert places_of(["1", "2"], other) == {}


def folder_of(root, names, files=("a.png",)):
    for name in names:
        (root / name).mkdir(parents=True)
        for file in files:
            (root / name / file).write_bytes(b"")
    return root


def test_what_is_left_out_is_counted(tmp_path):
    folder = folder_of(tmp_path, ["cat", "dog", "newt"], ("a.png", "b.jpg"))
    found = read_folder("--data.imagenet_r", folder, ["dog", "cow", "cat"], 0.1)
    assert found.classes == [0, 2]
    assert found.files == ["cat/a.png", "cat/b.jpg", "dog/a.png", "dog/b.jpg"]
    assert found.labels == [1, 1, 0, 0]
    assert found.left_out == "2 images of 1 classes that the model does not know"


@pytest.mark.parametrize("names", [["newt", "frog"], ["cat"], [], ["train", "val"]])
def test_folders_of_other_classes_are_refused(tmp_path, names):
    folder = folder_of(tmp_path / "r", names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"--data.imagenet_r .*the model knows [01] of") as raised:
        read_folder("--data.imagenet_r", folder, ["dog", "cow", "cat"], 0.1)
    assert len(str(raised.value).splitlines()) <= 3


def test_corruptions_lie_flat_or_in_the_archives_folders(tmp_path):
    for place in ("fog/1", "fog/3", "noise/shot_noise/5", "extra/saturate/1"):
        (tmp_path / place).mkdir(parents=True)
    found = corruption_folders("--data.imagenet_c", tmp_path)
    assert {name: sorted(severities) for name, severities in found.items()} == {
        "shot_noise": [5],
        "fog": [1, 3],
    }
    assert found["shot_noise"][5] == tmp_path / "noise/shot_noise/5"


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["fogg/1"], "Did you mean 'fog'"),
        (["fog/heavy"], "the severities"),
        (["fog/1", "weather/fog/1"], "twice"),
        (["n01440764"], "folders of corruptions"),
        ([], "an empty folder"),
    ],
)
def test_a_folder_that_is_not_imagenet_c_is_refused(tmp_path, places, message):
    for place in places:
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(InputError, match=message) as raised:
        corruption_folders("--data.imagenet_c", tmp_path)
    assert len(str(raised.value).splitlines()) <= 3
