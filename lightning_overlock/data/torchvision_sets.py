"""Torchvision's classification data sets by name: their parts, their files, and how they are read.

Torchvision reads and fetches them. What is done here: archives that lie there are unpacked without
asking the network, MNIST's relatives are read compressed or not, labels and names of classes come
in one form, and whatever goes wrong names the folder and what belongs into it.
"""

import fcntl
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from lightning_overlock.data.class_names import check_class_names
from lightning_overlock.data.idx_images import IdxImages, find_idx_folder
from lightning_overlock.data.images import read_image
from lightning_overlock.errors import InputError, printable

Arguments = dict[str, Any]


class Archive(NamedTuple):
    """What a data set's authors publish.

    Attributes:
        makes: A file or folder that belongs below the root.
        file: The archive that it comes in, beside it or above it; "" for none.
    """

    makes: str
    file: str = ""


class Layout(NamedTuple):
    """A data set of torchvision.

    Attributes:
        files: What belongs below its root.
        train: Its constructor's arguments for the training part.
        val: Those for the validation part; None: it has none.
        test: Those for the part that published accuracies are of; None: it has none.
    """

    files: tuple[Archive, ...]
    train: Arguments
    val: Arguments | None = None
    test: Arguments | None = None


_FLAG: tuple[Arguments, None, Arguments] = ({"train": True}, None, {"train": False})
_TWO: tuple[Arguments, None, Arguments] = ({"split": "train"}, None, {"split": "test"})
_THREE: tuple[Arguments, ...] = ({"split": "train"}, {"split": "val"}, {"split": "test"})
_IDX = "raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, with .gz or without"

# Left out are sets whose test images show other classes (Omniglot, LFWPeople) or have no label
# (CLEVRClassification), and PCAM, which needs h5py.
LAYOUTS: dict[str, Layout] = {
    "CIFAR10": Layout((Archive("cifar-10-batches-py", "cifar-10-python.tar.gz"),), *_FLAG),
    "CIFAR100": Layout((Archive("cifar-100-python", "cifar-100-python.tar.gz"),), *_FLAG),
    "Caltech101": Layout((Archive("caltech101/101_ObjectCategories"),), {}),
    "Caltech256": Layout(
        (Archive("caltech256/256_ObjectCategories", "caltech256/256_ObjectCategories.tar"),), {}
    ),
    "Country211": Layout(
        (Archive("country211", "country211.tgz"),),
        {"split": "train"},
        {"split": "valid"},
        {"split": "test"},
    ),
    "DTD": Layout((Archive("dtd/dtd", "dtd/dtd-r1.0.1.tar.gz"),), *_THREE),
    "EMNIST": Layout(
        (Archive("EMNIST/raw/emnist-*-ubyte"),),
        {"split": "balanced", "train": True},
        None,
        {"split": "balanced", "train": False},
    ),
    "EuroSAT": Layout((Archive("eurosat/2750", "eurosat/EuroSAT.zip"),), {}),
    # Its test.csv has no labels.
    "FER2013": Layout((Archive("fer2013/fer2013.csv or icml_face_data.csv"),), *_TWO),
    "FGVCAircraft": Layout(
        (Archive("fgvc-aircraft-2013b", "fgvc-aircraft-2013b.tar.gz"),), *_THREE
    ),
    "FashionMNIST": Layout((Archive(f"FashionMNIST/{_IDX}"),), *_FLAG),
    "Flowers102": Layout(
        (
            Archive("flowers-102/jpg", "flowers-102/102flowers.tgz"),
            Archive("flowers-102/imagelabels.mat"),
            Archive("flowers-102/setid.mat"),
        ),
        *_THREE,
    ),
    "Food101": Layout((Archive("food-101", "food-101.tar.gz"),), *_TWO),
    "GTSRB": Layout(
        (
            Archive("gtsrb/GTSRB/Training", "gtsrb/GTSRB-Training_fixed.zip"),
            Archive("gtsrb/GTSRB/Final_Test/Images", "gtsrb/GTSRB_Final_Test_Images.zip"),
            Archive("gtsrb/GT-final_test.csv", "gtsrb/GTSRB_Final_Test_GT.zip"),
        ),
        *_TWO,
    ),
    "INaturalist": Layout(
        (Archive("2021_train"), Archive("2021_valid")),
        {"version": "2021_train"},
        None,
        {"version": "2021_valid"},
    ),
    "ImageNet": Layout(
        (
            Archive("train", "ILSVRC2012_img_train.tar"),
            Archive("val", "ILSVRC2012_img_val.tar"),
            Archive("meta.bin", "ILSVRC2012_devkit_t12.tar.gz"),
        ),
        {"split": "train"},
        None,
        {"split": "val"},
    ),
    "Imagenette": Layout(
        (
            Archive("imagenette2", "imagenette2.tgz"),
            Archive("imagenette2-320", "imagenette2-320.tgz"),
            Archive("imagenette2-160", "imagenette2-160.tgz"),
        ),
        {"split": "train"},
        None,
        {"split": "val"},
    ),
    "KMNIST": Layout((Archive(f"KMNIST/{_IDX}"),), *_FLAG),
    "MNIST": Layout((Archive(f"MNIST/{_IDX}"),), *_FLAG),
    "OxfordIIITPet": Layout(
        (
            Archive("oxford-iiit-pet/images", "oxford-iiit-pet/images.tar.gz"),
            Archive("oxford-iiit-pet/annotations", "oxford-iiit-pet/annotations.tar.gz"),
        ),
        {"split": "trainval"},
        None,
        {"split": "test"},
    ),
    "Places365": Layout(
        (
            Archive("categories_places365.txt"),
            Archive("places365_train_standard.txt"),
            Archive("places365_val.txt"),
            Archive("data_large_standard"),
            Archive("val_large"),
        ),
        {"split": "train-standard"},
        None,
        {"split": "val"},
    ),
    "QMNIST": Layout((Archive("QMNIST/raw/qmnist-*"),), {"what": "train"}, None, {"what": "test"}),
    "RenderedSST2": Layout((Archive("rendered-sst2", "rendered-sst2.tgz"),), *_THREE),
    "SEMEION": Layout((Archive("semeion.data"),), {}),
    "STL10": Layout((Archive("stl10_binary", "stl10_binary.tar.gz"),), *_TWO),
    "SUN397": Layout((Archive("SUN397", "SUN397.tar.gz"),), {}),
    "SVHN": Layout((Archive("train_32x32.mat"), Archive("test_32x32.mat")), *_TWO),
    "StanfordCars": Layout(
        (
            Archive("stanford_cars/devkit"),
            Archive("stanford_cars/cars_train"),
            Archive("stanford_cars/cars_test"),
            Archive("stanford_cars/cars_test_annos_withlabels.mat"),
        ),
        *_TWO,
    ),
    "USPS": Layout((Archive("usps.bz2"), Archive("usps.t.bz2")), *_FLAG),
}
# Of one format, which is read here: torchvision reads it uncompressed and in its own folder only.
IDX_SETS = ("FashionMNIST", "KMNIST", "MNIST")
# Torchvision unpacks these itself, and makes more of them than what is inside.
_UNPACKED_BY_TORCHVISION = ("ImageNet",)
_FETCHED_BY_HAND = ("FER2013", "ImageNet", "StanfordCars")


class Part(NamedTuple):
    """One part of a data set.

    Attributes:
        images: Torchvision's data set: items (PIL image, label); None where there are files.
        files: The file of each image, sorted; None where they are no files of their own.
        labels: (N,) int64, the class of each.
        class_names: The names of all classes.
        place: Where it was read from.
    """

    images: Any
    files: list[str] | None
    labels: NDArray[np.int64]
    class_names: list[str]
    place: Path


def read_part(
    name: str, root: Path, arguments: Arguments, download: bool, max_pixels: int | None
) -> Part:
    """Read one part of a data set.

    Args:
        name: One of `LAYOUTS`.
        root: The folder that torchvision calls so.
        arguments: Its constructor's arguments for this part.
        download: Fetch what is not there; otherwise nothing is asked of the network.
        max_pixels: Most pixels of one image; None is no limit.

    Raises:
        InputError: It is not there, not whole, or cannot be fetched.
    """
    place = root
    if name in IDX_SETS and (folder := find_idx_folder(name, root)) is not None:
        class_names = getattr(datasets, name).classes
        images: Any = IdxImages(folder, arguments["train"], class_names)
        place = folder
    else:
        images = _open(name, root, arguments, download, max_pixels)
    files, given = _files_and_labels(images)
    labels = _as_numbers(name, given)
    _check_files(name, place, images, files)
    class_names = _class_names(images, labels)
    check_class_names(class_names, f"{name} in {printable(place)}")
    if not len(labels) or labels.min() < 0 or labels.max() >= len(class_names):
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no images"
        raise InputError(
            f"data.root: {name} in {printable(place)} has {found}\n"
            f"expected at least one image, and labels from 0 to {len(class_names) - 1}"
        )
    if files is None:
        return Part(images, None, labels, class_names, place)
    # Torchvision leaves the order of some to the file system.
    order = sorted(range(len(files)), key=files.__getitem__)
    return Part(None, [files[i] for i in order], labels[order], class_names, place)


def check_arguments(name: str, given: Arguments) -> None:
    """Refuse arguments that torchvision's constructor does not take, or that are set here.

    Raises:
        InputError: There is such an argument.
    """
    constructors = [vars(base).get("__init__") for base in getattr(datasets, name).__mro__[:2]]
    known = {key for one in constructors if one for key in inspect.signature(one).parameters}
    ours = {"self", "root", "download", "loader", "args", "kwargs", "image_set"}
    parts = LAYOUTS[name].train.keys() - ({"split"} if name == "EMNIST" else set())
    free = sorted(key for key in known - ours - parts if "transform" not in key)
    if unknown := sorted(given.keys() - set(free)):
        raise InputError(
            f"data.dataset_args has {', '.join(map(printable, unknown))}\n"
            f"expected arguments of torchvision's {name}: {', '.join(free) or 'it has none'}"
        )


def _open(
    name: str, root: Path, arguments: Arguments, download: bool, max_pixels: int | None
) -> Any:
    """Return torchvision's data set, unpacked and fetched if need be."""
    constructor = getattr(datasets, name)
    known = inspect.signature(constructor.__init__).parameters
    options: Arguments = {**arguments}
    if "loader" in known:
        options["loader"] = partial(read_image, max_pixels=max_pixels)
    may_download = "download" in known or ("kwargs" in known and name not in _FETCHED_BY_HAND)
    if may_download:  # torchvision's default is not the same everywhere
        options["download"] = False
    if name not in _UNPACKED_BY_TORCHVISION:
        for archive in LAYOUTS[name].files:
            _unpack(root, archive)
    try:
        return constructor(str(root), **options)
    except Exception as error:  # torchvision's readers raise anything on broken files
        if not download:
            raise InputError(_missing(name, root, error)) from error
    if name in _FETCHED_BY_HAND:
        raise InputError(
            f"data.download: {name} is not for torchvision to fetch\n{_expected(name, root)}, put "
            "there by hand"
        )
    with _one_at_a_time(root):
        try:
            return constructor(str(root), **options | {"download": True})
        except Exception as error:  # of the network, of the disk, of a broken archive
            raise InputError(
                f"data.download: {name} cannot be fetched into {printable(root)}: "
                f"{_first_line(error)}\n{_expected(name, root)}"
            ) from error


def _missing(name: str, root: Path, error: Exception) -> str:
    how = "torchvision does not fetch this one: put it there by hand"
    if name not in _FETCHED_BY_HAND:
        how = "the same command with --data.download true fetches it"
    if name == "FashionMNIST":
        how += "; so does `apt-get install dataset-fashion-mnist` on Debian"
    found = _first_line(error).partition(" You can ")[0]
    return (
        f"data.root: {name} in {printable(root)} cannot be read: {found}\n"
        f"{_expected(name, root)}\n{how}"
    )


def _expected(name: str, root: Path) -> str:
    files = [
        f"{archive.makes} (or {archive.file})" if archive.file else archive.makes
        for archive in LAYOUTS[name].files
    ]
    joined = ("one of " if name == "Imagenette" else "") + ", ".join(files)
    return f"expected in {printable(root)}: {joined}, as published"


def _first_line(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Let one process of this machine fetch into a folder; others wait and find it there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".download.lock").open("w")
    except OSError as error:
        raise InputError(
            f"data.root: {printable(root)}: nothing can be fetched into it ({error.strerror})"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unpack(root: Path, archive: Archive) -> None:
    """Unpack an archive that is there where what it makes is not.

    What it makes appears at once and whole, whoever interrupts, and whoever does the same.
    """
    file, made = root / archive.file, root / archive.makes
    if not archive.file or made.exists() or not file.is_file():
        return
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".unpacking-") as folder:
            # Of a zip Python writes nothing outside the folder anyway.
            safe: Any = {} if file.suffix == ".zip" else {"filter": "data"}
            shutil.unpack_archive(file, folder, **safe)
            inside = Path(folder, made.relative_to(file.parent))
            made.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(inside, made)  # noqa: PTH105 - as it is called everywhere
            except OSError:
                if not made.exists():  # else another process was faster
                    raise
    except Exception as error:  # of zip, tar and gzip, and of the disk
        raise InputError(
            f"data.root: {printable(file)} cannot be unpacked: {_first_line(error)}\n"
            f"expected the archive as published, and a folder to write {archive.makes} into"
        ) from error


def _files_and_labels(images: Any) -> tuple[list[str] | None, list[Any]]:
    """Return the images' files, if they are some, and their labels.

    Torchvision keeps them under several names, and has no common way to ask for them.
    """
    if hasattr(images, "all_categories"):  # INaturalist
        folders = [os.path.join(images.root, name) for name in images.all_categories]  # noqa: PTH118
        index = images.index
        return [f"{folders[label]}/{file}" for label, file in index], [label for label, _ in index]
    for name in ("samples", "_samples", "imgs"):
        pairs = getattr(images, name, None)
        if pairs and isinstance(pairs[0][0], str | Path):
            return [str(file) for file, _ in pairs], [label for _, label in pairs]
    for name in ("_image_files", "_images"):
        if hasattr(images, name) and hasattr(images, "_labels"):
            return [str(file) for file in getattr(images, name)], list(images._labels)
    for name in ("targets", "labels", "y"):
        if hasattr(images, name):
            return None, list(getattr(images, name))
    return None, [images[index][1] for index in range(len(images))]


def _as_numbers(name: str, labels: list[Any]) -> NDArray[np.int64]:
    try:
        numbers = np.array(labels, dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"data.root: {name} has images without a label there\n"
            "expected the files with labels, as published"
        ) from error
    return numbers[:, 0] if numbers.ndim == 2 else numbers  # QMNIST's have more in a row


def _check_files(name: str, place: Path, images: Any, files: list[str] | None) -> None:
    """Refuse a set whose lists name images that are not there."""
    if files is None or isinstance(images, datasets.ImageFolder):  # found by looking
        return
    missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113
    if missing:
        raise InputError(
            f"data.root: {len(missing):,} of the {len(files):,} images that {name} lists are not "
            f"there, such as {printable(missing[0])}\n{_expected(name, place)}"
        )


def _class_names(images: Any, labels: NDArray[np.int64]) -> list[str]:
    """Return a name for each class: the first where it has several, a number where it has none."""
    attributes = ("classes", "categories", "all_categories")
    given = next((found for name in attributes if (found := getattr(images, name, None))), None)
    if given is None:
        return [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    names = [name if isinstance(name, str) else name[0] for name in given]
    return [
        name if names.count(name) == 1 else f"{name} ({number})"  # ImageNet has two cranes
        for number, name in enumerate(names)
    ]
