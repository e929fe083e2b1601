"""Own images, or ImageNet: one folder per split, in it one folder per class."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lightning_overlock.data.base import Split
from lightning_overlock.data.class_names import alike, check_class_names
from lightning_overlock.data.images import (
    NO_FILE,
    SOME_SUFFIXES,
    FoundImages,
    ImageFiles,
    find_images,
    is_systems,
    listing,
    predict_files,
    some,
)
from lightning_overlock.data.left_out import LeftOut, refuse_if_too_many
from lightning_overlock.data.loading import global_seed
from lightning_overlock.data.timm_transforms import TimmTransformsDataModule
from lightning_overlock.errors import InputError, did_you_mean, printable


class ImageFolderDataModule(TimmTransformsDataModule):
    """Images in `root/train/CLASS`, `root/val/CLASS` and, if there, `root/test/CLASS`.

    Images are transformed as `TimmTransformsDataModule` says. Items of `predict` are the images of
    `predict_dir` or else of `test/`, or of `val/`, named by their paths; `test/` needs no class
    folders for it.

    A class has all images of its folder, subfolders included. Every format that Pillow reads is an
    image, told by the file's suffix. Hidden files and folders, those of the system such as @eaDir
    and __MACOSX, and files beside an image of the same name are passed over; what else is left out
    is counted.

    Args:
        root: Folder of the splits; not needed to predict with `predict_dir`.
        kwargs: Further arguments of `TimmTransformsDataModule`.

    Raises:
        InputError: A folder is missing, empty or holds other classes than the training split, or
            an argument is out of its range.
    """

    labelled_options = frozenset({"root"})

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self._root_given = bool(root)
        self._splits: dict[str, LabelledFiles] = {}
        if self._predicted is None:  # else the training data may be gone
            for split in ("train", "val"):
                self._files(split)

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names of the class folders in train/, sorted; labels are places in this list."""
        layout = (
            "expected train/ and val/ in it, each with one folder of images per class; to predict "
            "with a checkpoint, data.predict_dir does"
        )
        if not self._root_given:
            raise InputError(f"data.root is not given\n{layout}")
        if not self.root.is_dir():
            raise InputError(f"data.root: '{printable(self.root)}' is no folder\n{layout}")
        for split in ("train", "val"):
            if not (self.root / split).is_dir():
                folders = [path.name for path in self.root.iterdir() if path.is_dir()]
                raise InputError(
                    f"data.root: {printable(self.root)} has no folder '{split}'."
                    f"{did_you_mean(split, folders)}\nfound {listing(self.root)}\n{layout}"
                )
        names = class_folders(self.root / "train")
        if len(names) < 2:
            raise InputError(
                f"{printable(self.root / 'train')} holds {len(names)} class folder(s), hidden and "
                "system folders aside\n"
                f"found {listing(self.root / 'train')}\n"
                "expected at least two folders, one per class"
            )
        check_class_names(names, str(self.root / "train"))
        _check_classes(self.root / "val", names)
        return names

    def examine(self, split: Split) -> str:
        """Look for the images of a split."""
        if split == "predict":
            return self._unlabelled()[1].summary()
        return self._files(split).found.summary()

    def places(self, split: Split) -> list[Path]:
        """Return the folder of a split."""
        return [self.root / split]

    def source(self, split: Split) -> ImageFiles:
        """Return the images of a split.

        Raises:
            InputError: There is no such split.
        """
        labels = None
        if split == "predict":
            folder, found = self._unlabelled()
            files = found.files
        else:
            folder = self.root / split
            (files, *_), labels = self._files(split)
        transform = self.transform(training=split == "train")
        return ImageFiles(folder, files, labels, transform, global_seed(), self.max_image_pixels)

    def _files(self, split: str) -> "LabelledFiles":
        if split not in self._splits:
            class_names = self.class_names
            if not (self.root / split).is_dir():
                raise InputError(
                    f"data.root: {printable(self.root)} has no folder '{split}'\n"
                    f"found {listing(self.root)}"
                )
            folder = self.root / split
            _check_classes(folder, class_names)
            labels = {name: label for label, name in enumerate(class_names)}
            self._splits[split] = find_labelled(folder, labels, self.max_left_out)
        return self._splits[split]

    def _unlabelled(self) -> tuple[Path, FoundImages]:
        """Return the folder to predict for, and its images."""
        if self._predicted is None:
            name = "test" if (self.root / "test").is_dir() else "val"
            self._predicted = predict_files(self.root / name)
        return self._predicted


class LabelledFiles(NamedTuple):
    """The images in the folders of classes.

    Attributes:
        found: Them, and what is left out.
        labels: The class of each.
    """

    found: FoundImages
    labels: list[int]


def find_labelled(folder: Path, class_labels: dict[str, int], max_left_out: float) -> LabelledFiles:
    """Find the images in the folders of classes.

    Args:
        folder: Where these lie.
        class_labels: The label of each class, by the name of its folder.
        max_left_out: Largest share of a class's files, and of all, that may be no images.

    Raises:
        InputError: A class has no images, or too much is left out.
    """
    # Images beside the class folders belong to no class; a list or a note does no harm there.
    beside = find_images(folder, subfolders=False)
    whole = FoundImages([], LeftOut("files"), beside.passed_over)
    for reason, count in beside.left_out.counts.items():
        to = whole.left_out if reason == NO_FILE else whole.passed_over
        to.add(reason, beside.left_out.first[reason], count)
    for file in beside.files:
        whole.left_out.add("in no class's folder", file)
    labels: list[int] = []
    for name, label in class_labels.items():
        found = find_images(folder / name)
        count = found.left_out.total + len(found.files)
        if not found.files:
            raise InputError(
                f"class '{name}' is empty: no images in {printable(folder / name)}\n"
                f"found {listing(folder / name)}\nexpected files that end in {SOME_SUFFIXES}"
            )
        refuse_if_too_many(printable(folder / name), found.left_out, count, max_left_out)
        labels += [label] * len(found.files)
        whole.add(found, name)
    count = whole.left_out.total + len(whole.files)
    refuse_if_too_many(printable(folder), whole.left_out, count, max_left_out)
    return LabelledFiles(whole, labels)


def _check_classes(folder: Path, class_names: list[str]) -> None:
    found = class_folders(folder)
    missing = sorted(set(class_names) - set(found))
    unknown = sorted(set(found) - set(class_names))
    if not missing and not unknown:
        return
    if not found:
        raise InputError(
            f"{printable(folder)} holds no class folders\nfound {listing(folder)}\n"
            f"expected those of {printable(folder.parent / 'train')}: {some(missing)}"
        )
    near = alike([*missing, *unknown])
    hint = f"; {near[0]} differ in case or composition alone" if near else ""
    raise InputError(
        f"{printable(folder)} has other classes than {printable(folder.parent / 'train')}\n"
        f"missing: {some(missing)}; not in train: {some(unknown)}{hint}\n"
        "expected the same folder names in every split"
    )


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders of classes in a folder, sorted."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not is_systems(path.name)
    )
