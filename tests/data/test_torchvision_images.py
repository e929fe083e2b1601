"""Torchvision's data sets by name: what is read from their real layouts, and what is refused."""

import gzip
import io
import shutil
import tarfile
from itertools import chain
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, seed_everything
from PIL import Image
from set_layouts import (
    OTHERS,
    WRITERS,
    pack,
    tree,
    write_cifar,
    write_eurosat,
    write_idx,
    write_imagenette,
    write_pets,
)
from shared import csv_rows, quiet_trainer, truncate
from timm.data import create_transform
from torchvision import datasets

import lightning_overlock
from lightning_overlock.cli.main import main
from lightning_overlock.configs import shipped
from lightning_overlock.data import TorchvisionDataModule
from lightning_overlock.data.idx_images import read_idx
from lightning_overlock.data.images import read_image
from lightning_overlock.data.loading import Key, seeded
from lightning_overlock.data.torchvision_sets import LAYOUTS
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")


def module(dataset, root, **options):
    small = {"batch_size": 4, "num_workers": 0, "image_size": 32, **options}
    return TorchvisionDataModule(dataset, str(root), **small)


def message(dataset, root, **options):
    def read_all():
        data = module(dataset, root, **options)
        for split in ("train", "val", "test"):
            data.examine(split)
            list(data._loader(split))

    with pytest.raises(InputError) as caught:
        read_all()
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3
    return lines


def halves(dataset):
    """Shares that give small sets of every class what they have no part for."""
    layout = LAYOUTS[dataset]
    shares = {"cut_validation": layout.val, "cut_test": layout.test}
    return {name: 0.5 for name, own in shares.items() if own is None}


# SEMEION's constructor fetches unless it is told not to.
NOT_BY_DEFAULT = {"SEMEION": {"download": False}}


def evaluated(data, split):
    """The images of a split, as evaluation sees them."""
    source = data.source(split)
    source.transform = data.transform(training=False)
    return source


# Every configuration, from the command to the last step.


# One for each way that images are held; the others are alike.
FAST = ("cifar10", "fashion_mnist", "pets")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in sorted(WRITERS)],
)
def test_each_configuration_runs_on_the_real_layout(name, workplace, monkeypatch, capsys):
    WRITERS[name](workplace / "data", monkeypatch)
    dataset = yaml.safe_load(shipped()[name].read_text())["data"]["init_args"]["dataset"]
    small = [f"--data.{option}={share}" for option, share in halves(dataset).items()]
    small += ["--data.batch_size=2", "--data.num_workers=0", "--model.reestimate_bn=1"]
    small += ["--trainer.fast_dev_run=true", "--data.image_size=64"]
    small += ["--model.backbone=test_overlock"]
    assert main(["fit", "--config", name, "--data.root", "data", *small]) == 0, (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("pixels", ["pixels_32_overlock", "pixels_32_convneur", None])
def test_other_networks_take_a_configuration_of_data(pixels, workplace, monkeypatch):
    write_cifar(workplace / "data", monkeypatch)
    small = ["--data.batch_size=2", "--data.num_workers=0", "--data.cut_validation=0.5"]
    small += ["--trainer.fast_dev_run=true"]
    network = ["--config", pixels] if pixels else ["--model.backbone=test_convnext"]
    assert main(["fit", "--config", "cifar10", *network, *small]) == 0


def test_there_is_a_configuration_for_each_set_that_is_promised():
    chosen = {name: yaml.safe_load(shipped()[name].read_text())["data"] for name in WRITERS}
    assert {c["class_path"] for c in chosen.values()} == {"TorchvisionDataModule"}
    assert {c["init_args"]["dataset"] for c in chosen.values()} <= set(LAYOUTS)


# The parts.


def test_parts_and_pixels_are_those_of_torchvision(tmp_path):
    write_idx(tmp_path / "KMNIST/raw", compressed=False)
    data = module("KMNIST", tmp_path, cut_validation=0.25)
    own = {part: datasets.KMNIST(str(tmp_path), train=part) for part in (True, False)}
    places = {split: data._images(split).places.tolist() for split in ("train", "val", "test")}
    assert sorted(places["train"] + places["val"]) == list(range(40))
    assert places["test"] == list(range(20))
    assert data.class_names == datasets.KMNIST.classes
    expected = create_transform(32, interpolation="bicubic", crop_pct=0.875)
    for split, chosen in places.items():
        labels = own[split != "test"].targets[chosen]
        assert np.array_equal(data.source(split).labels, labels)
        # As many of each class
        assert set(np.bincount(labels).tolist()) == {{"train": 3, "val": 1, "test": 2}[split]}
    for index, place in enumerate(places["val"]):
        image, label = own[True][place]
        found, found_label = data.source("val")[Key(0, index)]
        assert torch.equal(found, expected(image.convert("RGB")))
        assert found_label == label


def test_the_cut_depends_on_its_own_seed_alone(tmp_path, monkeypatch):
    write_idx(tmp_path / "MNIST/raw")

    def places(**options):
        return module("MNIST", tmp_path, cut_validation=0.25, **options)._images("val").places

    first = places()
    monkeypatch.setenv("PL_GLOBAL_SEED", "10")
    assert np.array_equal(places(), first)
    assert not np.array_equal(places(split_seed=1), first)


def test_a_set_of_one_part_is_cut_in_three(tmp_path):
    write_eurosat(tmp_path)
    data = module("EuroSAT", tmp_path)
    places = {split: data._images(split).places.tolist() for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in places.items()} == {
        "train": 43,
        "val": 5,
        "test": 12,
    }
    assert sorted(chain(*places.values())) == list(range(60))
    whole = datasets.EuroSAT(str(tmp_path))
    source = data.source("test")
    for index, place in enumerate(places["test"]):
        assert source.labels[index] == whole.targets[place]
        path = tmp_path / source.folder / source.files[index].decode()
        assert path.samefile(whole.samples[place][0])
    assert np.bincount(source.labels).tolist() == [3, 3, 3, 3]


def test_own_parts_are_kept(tmp_path, monkeypatch):
    WRITERS["flowers102"](tmp_path, monkeypatch)
    data = module("Flowers102", tmp_path)
    for split in ("train", "val", "test"):
        own = datasets.Flowers102(str(tmp_path), split=split)
        files = [f"{tmp_path}/{path.decode()}" for path in data.source(split).files]
        labels = dict(zip(map(str, own._image_files), own._labels, strict=True))
        assert files == sorted(labels)
        assert data.source(split).labels.tolist() == [labels[file] for file in files]
    assert data.class_names == datasets.Flowers102.classes


def test_the_test_part_of_imagenette_is_its_validation_part(tmp_path):
    write_imagenette(tmp_path)
    data = module("Imagenette", tmp_path, dataset_args={"size": "160px"}, cut_validation=0.34)
    assert data.class_names[:3] == ["tench", "English springer", "cassette player"]
    assert {path.split(b"/")[1] for path in data.source("test").files} == {b"val"}
    both = [*data.source("train").files, *data.source("val").files]
    assert {path.split(b"/")[1] for path in both} == {b"train"}
    assert len(both) == 30
    shutil.rmtree(tmp_path / "imagenette2-160/val/n01440764")
    first, second = message(
        "Imagenette", tmp_path, dataset_args={"size": "160px"}, cut_validation=0.34
    )
    assert first == (
        "data.root: the test part of Imagenette has the 9 classes English springer, cassette "
        "player, chain saw, church, French horn and 4 more"
    )
    assert second.startswith("expected the training part's 10, tench,")


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(2, 12), min_size=2, max_size=6),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 5),
)
def test_cuts_are_stratified_or_refused(tmp_path_factory, counts, share, seed):
    root = tmp_path_factory.mktemp("usps")
    labels = np.repeat(np.arange(len(counts)), counts)
    folder = root / "MNIST/raw"
    write_idx(folder)
    head = bytes([0, 0, 8, 1]) + len(labels).to_bytes(4, "big")
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(head + labels.astype(np.uint8).tobytes())
    )
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (len(labels), 2, 2))
    (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(head + bytes(4 * len(labels)))
    )
    data = module("MNIST", root, cut_validation=share, split_seed=seed)
    cut = int(np.ceil(share * len(labels)))
    if min(cut, len(labels) - cut) < len(counts):
        with pytest.raises(InputError, match="cannot be cut off with every class in it"):
            data._images("val")
        return
    part, val, _ = data._images("val")
    train = data._images("train").places
    assert sorted([*train, *val]) == list(range(len(labels)))
    share_of = np.bincount(part.labels[val], minlength=len(counts)) / np.array(counts)
    assert np.abs(share_of - len(val) / len(labels)).max() <= 1 / min(counts)


# The other sets: each is read as torchvision reads it.


@pytest.mark.parametrize("dataset", sorted(OTHERS))
def test_every_other_set_is_read_as_torchvision_reads_it(dataset, tmp_path, monkeypatch):
    OTHERS[dataset](tmp_path, monkeypatch)
    data = module(dataset, tmp_path, **halves(dataset))
    transform = create_transform(32, interpolation="bicubic", crop_pct=0.875)

    def own_items(part):
        options = getattr(LAYOUTS[dataset], part) or {}
        whole = getattr(datasets, dataset)(
            str(tmp_path), **options, **NOT_BY_DEFAULT.get(dataset, {})
        )
        return sorted(
            (int(label), transform(image.convert("RGB")).flatten().tolist())
            for image, label in whole
        )

    def items(*splits):
        sources = [evaluated(data, split) for split in splits]
        found = [source[Key(0, index)] for source in sources for index in range(len(source))]
        return sorted((int(label), image.flatten().tolist()) for image, label in found)

    has = LAYOUTS[dataset]
    parts = {part: [part] for part in ("train", "val", "test") if getattr(has, part) is not None}
    parts["train"] += [split for split in ("val", "test") if split not in parts]
    for part, splits in parts.items():
        assert items(*splits) == own_items(part)
    assert len(data.class_names) == len(set(data.class_names)) > 1


@pytest.mark.parametrize("dataset", ["SUN397", "INaturalist"])
def test_the_order_is_not_the_file_systems(dataset, tmp_path, monkeypatch):
    OTHERS[dataset](tmp_path, monkeypatch)
    files = module(dataset, tmp_path, **halves(dataset))._part("train").files
    assert files == sorted(files)


# Augmentation, batches, resuming.


def test_training_is_timms_augmentation_seeded_by_seed_epoch_and_index(tmp_path):
    write_pets(tmp_path)
    recipe = {"scale": (0.3, 0.9), "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5}
    source = module("OxfordIIITPet", tmp_path, cut_validation=0.34, **recipe).source("train")
    expected = create_transform(
        32, is_training=True, interpolation="random", re_mode="pixel", **recipe
    )
    image = read_image(tmp_path / source.files[2].decode())
    for epoch in range(3):
        with seeded(9, epoch, 2):
            drawn = expected(image)
        assert torch.equal(source[Key(epoch, 2)][0], drawn)


def test_a_padded_crop_is_the_image_shifted_over_black(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    options = {"padding": 3, "color_jitter": 0.0, "hflip": 0.0, "mean": (0,) * 3, "std": (1,) * 3}
    source = module("MNIST", tmp_path, image_size=28, cut_validation=0.25, **options).source(
        "train"
    )
    original = torch.from_numpy(np.array(source.images[int(source.chosen[0])][0])) / 255
    padded = torch.nn.functional.pad(original, (3, 3, 3, 3))
    views = {
        tuple(padded[top : top + 28, left : left + 28].flatten().tolist())
        for top in range(7)
        for left in range(7)
    }
    drawn = [source[Key(epoch, 0)][0] for epoch in range(12)]
    assert all(tuple(image[0].flatten().tolist()) in views for image in drawn)
    assert all(torch.equal(image[0], image[2]) for image in drawn)
    assert len({tuple(image.flatten().tolist()) for image in drawn}) > 6


def test_mean_and_std_take_the_place_of_the_models(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    plain = module("MNIST", tmp_path, cut_validation=0.25, mean=(0, 0, 0), std=(1, 1, 1))
    other = module("MNIST", tmp_path, cut_validation=0.25, mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    image, given = plain.source("test")[Key(0, 0)][0], other.source("test")[Key(0, 0)][0]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1), (0.3, 2)]):
        torch.testing.assert_close(given[channel], (image[channel] - mean) / std)


@pytest.mark.parametrize("dataset", ["CIFAR10", "OxfordIIITPet"])
def test_batches_are_the_same_with_workers_and_from_amid_an_epoch(dataset, tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    write_pets(tmp_path)
    alone, helped = (
        module(dataset, tmp_path, cut_validation=0.5, auto_augment="rand-m9", num_workers=workers)
        for workers in (0, 1)
    )
    whole = list(alone.train_dataloader())
    loader = helped.train_dataloader()
    loader.batch_sampler.position = lambda: 2
    rest = list(loader)
    helped.teardown("fit")
    assert len(rest) == len(whole) - 2 > 2
    for (images, labels), (images2, labels2) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)


# Prediction.


def test_predictions_are_of_the_test_part_or_of_own_images(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    write_pets(tmp_path)
    (_, names), *_ = module("CIFAR10", tmp_path, cut_validation=0.5).predict_dataloader()
    assert names[:2] == ["CIFAR10 test 00000", "CIFAR10 test 00001"]
    (_, paths), *_ = module("OxfordIIITPet", tmp_path, cut_validation=0.5).predict_dataloader()
    assert paths[0] == min(map(str, (tmp_path / "oxford-iiit-pet/images").glob("*_test0.jpg")))
    # The data may be gone then.
    own = module("CIFAR10", tmp_path / "gone", predict_dir=f"{tmp_path}/oxford-iiit-pet/images")
    assert own.examine("predict") == ""
    assert len(own.source("predict")) == 148


# Archives, compressed files, and what Debian installs.


def test_idx_files_are_read_wherever_they_lie_compressed_or_not(tmp_path):
    write_idx(tmp_path / "a/FashionMNIST/raw")
    write_idx(tmp_path / "b", compressed=False)
    write_idx(tmp_path / "c/fashion-mnist")
    first = [
        module("FashionMNIST", tmp_path / name, cut_validation=0.25).source("test")[Key(0, 3)]
        for name in "abc"
    ]
    for image, label in first[1:]:
        assert torch.equal(image, first[0][0])
        assert label == first[0][1] == 3


DEBIAN = "/usr/share/datasets/fashion-mnist"


def test_debians_package_is_found_by_itself(tmp_path):
    try:
        whole = read_idx(Path(DEBIAN, "train-labels-idx1-ubyte.gz"), 1)
    except InputError:
        pytest.skip("the package dataset-fashion-mnist is not installed")
    data = module("FashionMNIST", tmp_path)
    assert data.examine("val") == f"6,000 of 60,000 training images of FashionMNIST in {DEBIAN}"
    assert np.bincount(data.source("val").labels).tolist() == [600] * 10
    assert np.bincount(whole).tolist() == [6000] * 10
    assert len(data.source("test")) == 10000


@pytest.mark.parametrize(
    ("name", "dataset", "archive", "inside"),
    [
        ("cifar10", "CIFAR10", "cifar-10-python.tar.gz", "cifar-10-batches-py"),
        ("imagenette", "Imagenette", "imagenette2-160.tgz", "imagenette2-160"),
        ("pets", "OxfordIIITPet", "oxford-iiit-pet/images.tar.gz", "images"),
        ("pets", "OxfordIIITPet", "oxford-iiit-pet/annotations.tar.gz", "annotations"),
        ("flowers102", "Flowers102", "flowers-102/102flowers.tgz", "jpg"),
        ("eurosat", "EuroSAT", "eurosat/EuroSAT.zip", "2750"),
    ],
)
def test_archives_are_unpacked_once(name, dataset, archive, inside, tmp_path, monkeypatch):
    WRITERS[name](tmp_path, monkeypatch)
    before = tree(tmp_path)
    packed = tmp_path / archive
    pack(packed, packed.parent, inside)
    size = {"dataset_args": {"size": "160px"}} if dataset == "Imagenette" else {}
    data = module(dataset, tmp_path, **halves(dataset), **size)
    assert tree(tmp_path) == sorted([*before, archive])
    assert len(data.source("train")) > 0
    packed.write_bytes(b"not looked at again")
    module(dataset, tmp_path, **size)


def test_a_broken_archive_is_named(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    pack(tmp_path / "cifar-10-python.tar.gz", tmp_path, "cifar-10-batches-py")
    truncate(tmp_path / "cifar-10-python.tar.gz")
    first, second = message("CIFAR10", tmp_path)
    assert first.startswith(f"data.root: {tmp_path}/cifar-10-python.tar.gz cannot be unpacked: ")
    assert second.endswith("a folder to write cifar-10-batches-py into")
    assert tree(tmp_path) == ["cifar-10-python.tar.gz"]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    assert "cannot be unpacked" in message("CIFAR10", tmp_path)[0]


def test_archives_cannot_write_outside_their_folder(tmp_path):
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/cifar-10-python.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())
    assert "cannot be unpacked" in message("CIFAR10", tmp_path / "data")[0]
    assert not (tmp_path / "evil").exists()


# What is missing or broken: the folder, the files and the command.


@pytest.mark.parametrize("dataset", sorted(set(LAYOUTS) - {"FashionMNIST"}))
def test_a_set_that_is_not_there_names_folder_files_and_command(dataset, tmp_path):
    first, second, third = message(dataset, tmp_path)
    assert first.startswith(f"data.root: {dataset} in {tmp_path} cannot be read: ")
    assert second.startswith(f"expected in {tmp_path}: ")
    assert LAYOUTS[dataset].files[0].makes in second
    fetched = third == "the same command with --data.download true fetches it"
    assert fetched or "put it there by hand" in third
    assert not [name for name in tree(tmp_path) if not name.startswith("caltech")]


def test_the_download_says_why_it_fails(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    first, second = message("CIFAR10", tmp_path, download=True)
    assert first == (
        f"data.download: CIFAR10 cannot be fetched into {tmp_path}: "
        "<urlopen error no route to host>"
    )
    assert second.startswith(f"expected in {tmp_path}: cifar-10-batches-py (or cifar-10-python")
    first, second = message("FER2013", tmp_path, download=True)
    assert first == "data.download: FER2013 is not for torchvision to fetch"


def test_a_set_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    assert len(module("CIFAR10", tmp_path, cut_validation=0.5, download=True).source("test")) == 10


def spoil(path, content=None):
    truncate(path) if content is None else path.write_bytes(content)


@pytest.mark.parametrize("content", [None, b"", b"something else"])
@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_broken_batch_of_cifar_is_refused(file, content, tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    spoil(tmp_path / "cifar-10-batches-py" / file, content)
    first, second, _ = message("CIFAR10", tmp_path, cut_validation=0.5)
    assert "not found or corrupted" in first
    assert "cifar-10-batches-py (or cifar-10-python.tar.gz)" in second


@pytest.mark.parametrize(
    ("compressed", "content", "expected"),
    [
        (True, None, "cannot be read: "),
        (True, b"", "begins with nothing"),
        (True, b"no archive", "cannot be read: Not a gzipped file"),
        (False, None, " values"),
        (False, b"", "begins with nothing"),
        (False, b"\x00\x00\x0d\x03 floats", "begins with 00 00 0d 03"),
        (False, bytes([0, 0, 8, 3]), "begins with 00 00 08 03"),
    ],
)
def test_a_broken_idx_file_is_named(compressed, content, expected, tmp_path):
    write_idx(tmp_path / "MNIST/raw", compressed)
    name = "train-images-idx3-ubyte" + ".gz" * compressed
    spoil(tmp_path / "MNIST/raw" / name, content)
    first, second = message("MNIST", tmp_path)
    assert first.startswith(f"{tmp_path}/MNIST/raw/{name} ")
    assert expected in first
    assert second.startswith("expected ")


def test_images_without_labels_are_told(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    write_idx(tmp_path / "other", per_class=(3, 2))
    name = "train-labels-idx1-ubyte.gz"
    shutil.copy(tmp_path / "other" / name, tmp_path / "MNIST/raw" / name)
    first, second = message("MNIST", tmp_path)
    assert first == f"{tmp_path}/MNIST/raw/{name} has 30 labels"
    assert second.startswith("expected 40, one for each image in ")


def test_a_listed_image_that_is_missing_is_named(tmp_path):
    write_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet/images/Cat_breed_1_trainval1.jpg").unlink()
    first, _ = message("OxfordIIITPet", tmp_path)
    assert first == (
        "data.root: 1 of the 111 images that OxfordIIITPet lists are not there, such as "
        f"{tmp_path}/oxford-iiit-pet/images/Cat_breed_1_trainval1.jpg"
    )


@pytest.mark.parametrize("content", ["", "Cat_breed_1_x 1 2", "Cat_breed_1_x a b c"])
def test_a_broken_list_is_refused(content, tmp_path):
    write_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet/annotations/trainval.txt").write_text(content)
    assert message("OxfordIIITPet", tmp_path)[0].startswith("data.root: OxfordIIITPet in ")


def test_an_empty_class_folder_is_refused(tmp_path):
    write_eurosat(tmp_path)
    for path in (tmp_path / "eurosat/2750/River").iterdir():
        path.unlink()
    assert "River" in message("EuroSAT", tmp_path)[0]


def test_an_unreadable_image_is_named_or_skipped(tmp_path):
    write_pets(tmp_path)
    data = module("OxfordIIITPet", tmp_path, cut_validation=0.34)
    path = tmp_path / data.source("test").files[5].decode()
    truncate(path)
    with pytest.raises(InputError) as caught:
        list(data.test_dataloader())
    assert str(caught.value).startswith(f"{path}: no intact image (")
    skipping = module("OxfordIIITPet", tmp_path, cut_validation=0.34, skip_corrupt=True)
    skipping.max_left_out = 1
    with pytest.warns(UserWarning, match=rf"1 unreadable image\(s\) skipped: {path}"):
        assert sum(len(labels) for _, labels in skipping.test_dataloader()) == 36


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dataset": "CIFAR"}, "data.dataset is 'CIFAR'. Did you mean 'CIFAR10'?"),
        (
            {"dataset": "fashionmnist"},
            "data.dataset is 'fashionmnist'. Did you mean 'FashionMNIST'",
        ),
        ({"dataset": ""}, "data.dataset is ''."),
        ({"dataset": "VOCDetection"}, "data.dataset is 'VOCDetection'."),
        ({"cut_validation": 0}, "data.cut_validation: found 0, expected a number from 0 to 1 with"),
        ({"cut_validation": 1.5}, "data.cut_validation: found 1.5"),
        ({"cut_test": -1}, "data.cut_test: found -1"),
        ({"split_seed": -1}, "data.split_seed: found -1"),
        ({"cut_validation": 0.01}, "data.cut_validation: 0.01 of 40 images of 10 classes cannot"),
        ({"padding": -1}, "data.padding: found -1"),
        ({"std": (1, 0, 1)}, "data.std: found 0"),
        ({"mean": (1, 2, 1)}, "data.mean: found 2"),
        ({"dataset_args": {"size": 3}}, "data.dataset_args has size"),
        ({"dataset_args": {"train": False, "root": "x"}}, "data.dataset_args has root, train"),
    ],
)
def test_wrong_arguments_are_refused(options, expected, tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    given = {"dataset": "MNIST", **options}
    assert message(given.pop("dataset"), tmp_path, **given)[0].startswith(expected)


# A trained run.


@pytest.mark.slow
def test_a_run_needs_its_data_no_more(workplace, monkeypatch):
    """Prediction and `load` take names, mean, std and size from the checkpoint."""
    write_cifar(workplace / "data", monkeypatch)
    small = ["--data.batch_size=5", "--data.num_workers=0", "--data.cut_validation=0.5"]
    small += ["--model.backbone=test_overlock", "--trainer.max_epochs=1", "--model.reestimate_bn=1"]
    small += ["--trainer.log_every_n_steps=2", "--trainer.limit_train_batches=2"]
    assert main(["fit", "--config", "cifar10", *small, "--name", "one"]) == 0
    checkpoint = "runs/one/checkpoints/last.ckpt"
    assert main(["test", "--ckpt_path", checkpoint, "--name", "tested"]) == 0
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("black.png")
    shutil.rmtree("data")
    assert main(["predict", "--ckpt_path", checkpoint, "--data.predict_dir", "black.png"]) == 0
    (row,) = csv_rows("runs/one/predictions.csv")
    task = lightning_overlock.load(checkpoint)
    (result,) = task.predict_images(["black.png"])
    assert row["class1"] == result.class_name
    assert task.class_names == [f"class {number}" for number in range(10)]
    # Black is as far from the set's mean as its own statistics say.
    pixels = task.image_transform(Image.open("black.png"))
    assert pixels.shape == (3, 48, 48)
    torch.testing.assert_close(
        pixels[:, 0, 0],
        -torch.tensor([0.4914, 0.4822, 0.4465]) / torch.tensor([0.247, 0.2435, 0.2616]),
    )


class SaveAmid(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint("amid.ckpt")


def test_a_run_goes_on_from_amid_an_epoch(workplace, monkeypatch):
    """Continued after two of the second epoch's five steps, it ends in the same weights."""
    write_cifar(workplace / "data", monkeypatch)

    def trained(*callbacks, ckpt_path=None):
        data = module("CIFAR10", "data", batch_size=10, cut_validation=0.5, auto_augment="rand-m9")
        seed_everything(3)
        task = ClassificationTask(data.class_names, backbone="test_convnext", warmup_epochs=0.2)
        options = {"max_epochs": 2, "limit_val_batches": 0, "log_every_n_steps": 5}
        trainer = quiet_trainer(workplace, callbacks=list(callbacks), **options)
        trainer.fit(task, data, ckpt_path=ckpt_path, weights_only=True)
        return task.state_dict()

    whole, rest = trained(SaveAmid()), trained(ckpt_path="amid.ckpt")
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
