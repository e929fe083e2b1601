"""Folders of images as classes that a model knows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

from lightning_overlock.analysis.corruptions import CORRUPTIONS, SEVERITIES
from lightning_overlock.data.image_folder import class_folders, find_labelled
from lightning_overlock.data.images import ImageFiles, find_images, listing, some
from lightning_overlock.errors import InputError, did_you_mean, printable

IMAGENET_CLASSES = 1000
# The name of ImageNet-C's option; its folder has a folder per corruption and severity.
CORRUPTED = "imagenet_c"


class LabelledFolder(NamedTuple):
    """The images of a folder whose classes a model knows.

    Attributes:
        folder: The folder.
        files: The images' paths, relative to it.
        labels: The place of each image's class in `classes`.
        classes: Places in the model's class names of the classes that are there, ascending.
        left_out: What is not used, in words; "" if nothing is.
    """

    folder: Path
    files: list[str]
    labels: list[int]
    classes: list[int]
    left_out: str

    def source(self, transform: Callable[[Image.Image], Tensor]) -> ImageFiles:
        """Return the images, transformed, with their labels."""
        return ImageFiles(self.folder, self.files, self.labels, transform)


class Images(NamedTuple):
    """The images that a classifier is evaluated on.

    Attributes:
        sets: The plain sets, by their option's name.
        corrupted: ImageNet-C by corruption and severity; {} if it was not given.
    """

    sets: dict[str, LabelledFolder]
    corrupted: dict[str, dict[int, LabelledFolder]]


def imagenet_ids() -> list[str]:
    """Return the WordNet ids of ImageNet's thousand classes, in the order of its labels."""
    ids: list[str] = ImageNetInfo("imagenet-1k").label_names()
    return ids


def wordnet_ids(class_names: Sequence[str]) -> list[str]:
    """Return a model's class names, ImageNet's thousand classes as WordNet ids.

    These are known by their ids, their numbers or their descriptions as timm has them; other names
    are returned as they are.
    """
    if len(class_names) != IMAGENET_CLASSES:
        return list(class_names)
    info = ImageNetInfo("imagenet-1k")
    ids = imagenet_ids()
    numbered = {str(number): name for number, name in enumerate(ids)}
    described = {
        str(info.index_to_description(number, detailed=detailed)): name
        for detailed in (False, True)
        for number, name in enumerate(ids)
    }
    for names in (numbered, described):
        found = [names.get(name) for name in class_names]
        if None not in found and len(set(found)) == IMAGENET_CLASSES:
            return [name for name in found if name is not None]
    return list(class_names)


def places_of(folders: Sequence[str], class_names: Sequence[str]) -> dict[str, int]:
    """Return for each folder that is named by one of a model's classes the class's place.

    Folders have the names of classes; where the classes are ImageNet's, also WordNet ids, or
    numbers as in ImageNet-V2.

    Args:
        folders: Names of folders.
        class_names: The model's.
    """
    places = {name: place for place, name in enumerate(class_names)}
    if set(folders) <= places.keys():
        return {folder: places[folder] for folder in folders}
    ids = imagenet_ids()
    if all(name.isdecimal() and int(name) < IMAGENET_CLASSES for name in folders):
        names = {folder: ids[int(folder)] for folder in folders}
    else:
        names = {folder: folder for folder in folders}
    places = {name: place for place, name in enumerate(wordnet_ids(class_names))}
    return {folder: places[name] for folder, name in names.items() if name in places}


def find(
    folders: Mapping[str, Path], class_names: Sequence[str], max_left_out: float, prefix: str
) -> Images:
    """Find the images that a classifier is evaluated on.

    Args:
        folders: A benchmark's folder by its name, those that are given.
        class_names: The classifier's.
        max_left_out: Largest share of a class's files that are no images.
        prefix: What stands before a benchmark's name where it is typed, for messages.

    Raises:
        InputError: A folder is not as the benchmark's, or has none of the classes.
    """
    sets = {
        name: read_folder(f"{prefix}{name}", folder, class_names, max_left_out)
        for name, folder in folders.items()
        if name != CORRUPTED
    }
    if CORRUPTED not in folders:
        return Images(sets, {})
    option = f"{prefix}{CORRUPTED}"
    corrupted = {
        corruption: {
            severity: read_folder(option, path, class_names, max_left_out)
            for severity, path in severities.items()
        }
        for corruption, severities in corruption_folders(option, folders[CORRUPTED]).items()
    }
    return Images(sets, corrupted)


def read_folder(
    option: str, folder: Path, class_names: Sequence[str], max_left_out: float
) -> LabelledFolder:
    """Find the images of a folder that has a folder per class.

    Args:
        option: What the user calls it, for messages.
        folder: The folder.
        class_names: The model's.
        max_left_out: Largest share of a class's files that are no images.

    Raises:
        InputError: Fewer than two of its folders are classes of the model, or a class is empty.
    """
    folders = class_folders(folder)
    places = places_of(folders, class_names)
    classes = sorted(set(places.values()))
    if len(classes) < 2:
        raise InputError(
            f"{option} {printable(folder)}: the model knows {len(classes)} of the "
            f"{len(folders)} classes here; found {listing(folder)}\n"
            f"expected folders with names as {some(list(class_names))}; for a model of ImageNet's "
            "classes WordNet ids such as n01440764"
        )
    labels = {name: classes.index(place) for name, place in sorted(places.items())}
    found = find_labelled(folder, labels, max_left_out)
    parts = [found.found.summary()] if found.found.summary() else []
    if unknown := [name for name in folders if name not in places]:
        images = sum(len(find_images(folder / name).files) for name in unknown)
        parts.append(f"{images:,} images of {len(unknown)} classes that the model does not know")
    return LabelledFolder(folder, found.found.files, found.labels, classes, "; ".join(parts))


def corruption_folders(option: str, folder: Path) -> dict[str, dict[int, Path]]:
    """Return the folders of ImageNet-C by corruption and severity, those that are there.

    A corruption lies in the folder itself, or one level deeper as the archives unpack (blur,
    digital, noise, weather).

    Args:
        option: What the user calls it, for messages.
        folder: The folder.

    Raises:
        InputError: There is none of the fifteen corruptions, or one without a severity.
    """
    inside = [folder / name for name in class_folders(folder)]
    inside += [path / name for path in inside for name in class_folders(path)]
    found: dict[str, dict[int, Path]] = {}
    for name in CORRUPTIONS:
        for path in (path for path in inside if path.name == name):
            severities = {s: path / str(s) for s in SEVERITIES if (path / str(s)).is_dir()}
            if not severities:
                raise InputError(
                    f"{option} {printable(path)}: found {listing(path)}\n"
                    "expected folders 1 to 5, the severities, with a folder per class"
                )
            if name in found:
                raise InputError(f"{option} {printable(folder)}: '{name}' is there twice.")
            found[name] = severities
    if not found:
        names = class_folders(folder)
        near = did_you_mean(names[0], CORRUPTIONS) if names else ""
        raise InputError(
            f"{option} {printable(folder)}: found {listing(folder)}{near and '.' + near}\n"
            f"expected folders of corruptions, such as {', '.join(list(CORRUPTIONS)[:3])}"
        )
    return found
