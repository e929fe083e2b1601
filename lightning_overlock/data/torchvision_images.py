"""Torchvision's classification data sets by name, in three parts."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.base import Split
from lightning_overlock.data.combinations import Need, warn_of_unused
from lightning_overlock.data.images import ImageFiles, some
from lightning_overlock.data.loading import CorruptImage, Key, global_seed, seeded
from lightning_overlock.data.timm_transforms import TimmTransformsDataModule
from lightning_overlock.data.torchvision_sets import LAYOUTS, Part, check_arguments, read_part
from lightning_overlock.errors import InputError, did_you_mean, printable
from lightning_overlock.ranges import AT_LEAST_0, Range, check_range

# Neither nothing nor everything.
PARTIAL = Range(0, 1, open="low")


def _nearest(name: str) -> str:
    """Return what to say of a name that is none, whatever its case."""
    known = {one.lower(): one for one in LAYOUTS}
    if name.lower() in known:
        return f" Did you mean '{known[name.lower()]}'?"
    return did_you_mean(name, LAYOUTS)


class HeldImages:
    """Images that a torchvision data set holds in memory, transformed.

    Args:
        part: The part that they are in.
        chosen: Their places in it.
        title: What they are called in predictions and messages, before their place.
        named: Items are (image, name) instead of (image, label).
        transform: Makes a tensor (3, H, W) of a PIL image; may draw random numbers.
        seed: Seed of those.
    """

    def __init__(
        self,
        part: Part,
        chosen: NDArray[np.int64],
        title: str,
        named: bool,
        transform: Callable[[Image.Image], Tensor],
        seed: int,
    ) -> None:
        self.images = part.images
        self.folder = part.place
        self.chosen = chosen
        self.labels = None if named else part.labels[chosen]
        self.title = title
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        place = int(self.chosen[key.index])
        name = f"{self.title} {place:05d}"
        try:
            image = self.images[place][0].convert("RGB")
        except Exception as error:  # whatever torchvision and Pillow raise on broken bytes
            raise CorruptImage(
                f"{name} in {self.folder}: no intact image ({' '.join(str(error).split())})\n"
                "expected the data set as published, or data.skip_corrupt to be true"
            ) from error
        with seeded(self.seed, key.epoch, key.index):
            tensor = self.transform(image)
        return tensor, name if self.labels is None else int(self.labels[key.index])


class Chosen(NamedTuple):
    """The images of a split.

    Attributes:
        part: The part of the data set that they are in.
        places: (N,) int64, their places in it, ascending.
        of: What the part is called.
    """

    part: Part
    places: NDArray[np.int64]
    of: str


class TorchvisionDataModule(TimmTransformsDataModule):
    """A classification data set of torchvision, by its name there.

    `test` is the part that published accuracies are of (where the authors call it validation, as
    Imagenette and ImageNet do, too). What a set has no part for is cut off at random, the same
    images whatever the seed of the run and the same share of each class: a validation part from the
    training images, a test part from all. Items of `predict` are the images of `predict_dir`, or of
    the test part, named by their paths or, where there are no files, by their places.

    Files are where torchvision has them below `root`. Archives that lie there are unpacked; nothing
    is fetched unless `download` is true. MNIST, KMNIST and Fashion-MNIST are read from compressed
    files, too, and Fashion-MNIST from where Debian's package dataset-fashion-mnist puts it.

    Args:
        dataset: Torchvision's name of the set, such as CIFAR10.
        root: The folder that torchvision calls so.
        download: Fetch the set into `root` if it is not there.
        dataset_args: Further arguments of torchvision's constructor, such as `{size: 160px}`.
        cut_validation: Share of the training images that becomes the validation part.
        cut_test: Share of all images that becomes the test part.
        split_seed: Seed of both cuts.
        kwargs: Further arguments of `TimmTransformsDataModule`.

    Raises:
        InputError: There is no such set, it is not there or not whole, or an argument is out of its
            range.
    """

    needs: ClassVar[dict[str, Need]] = TimmTransformsDataModule.needs | {
        "cut_validation": ("a data set without a validation part", lambda o: o["val"] is None),
        "cut_test": ("a data set without a test part", lambda o: o["test"] is None),
        "split_seed": ("a data set that lacks a part", lambda o: None in (o["val"], o["test"])),
    }
    labelled_options = frozenset(
        ("root", "download", "dataset_args", "cut_validation", "cut_test", "split_seed")
    )

    def __init__(
        self,
        dataset: str = "",
        root: str = "data",
        download: bool = False,
        dataset_args: dict[str, Any] | None = None,
        cut_validation: float = 0.1,
        cut_test: float = 0.2,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if dataset not in LAYOUTS:
            raise InputError(
                f"data.dataset is '{dataset}'.{_nearest(dataset)}\n"
                f"expected one of {', '.join(LAYOUTS)}"
            )
        for name, share in (("cut_validation", cut_validation), ("cut_test", cut_test)):
            check_range(f"data.{name}", share, PARTIAL)
        check_range("data.split_seed", split_seed, AT_LEAST_0)
        check_arguments(dataset, dataset_args or {})
        self.dataset = dataset
        self.layout = LAYOUTS[dataset]
        cuts = {"cut_validation": cut_validation, "cut_test": cut_test, "split_seed": split_seed}
        options = {**cuts, "val": self.layout.val, "test": self.layout.test}
        warn_of_unused("data", type(self), options, self.needs)
        self.root = Path(root).expanduser()
        self.download = download
        self.dataset_args = dataset_args or {}
        self.cut_validation = cut_validation
        self.cut_test = cut_test
        self.split_seed = split_seed
        self._parts: dict[str, Part] = {}
        self._chosen: dict[str, Chosen] = {}
        if self._predicted is None:  # else the training data may be gone
            _ = self.class_names

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names of the classes, as torchvision has them; numbers where it has none."""
        names = self._part("train").class_names
        if len(names) < 2:
            raise InputError(f"data.root: {self.dataset} has {len(names)} class\nexpected two")
        return names

    def examine(self, split: Split) -> str:
        """Look for the images of a split."""
        if split == "predict" and self._predicted is not None:
            return self._predicted[1].summary()
        part, places, of = self._images("test" if split == "predict" else split)
        count = f"{len(places):,} of {len(part.labels):,}"
        return f"{count} {of} images of {self.dataset} in {printable(part.place)}"

    def source(self, split: Split) -> ImageFiles | HeldImages:
        """Return the images of a split."""
        transform, seed = self.transform(training=split == "train"), global_seed()
        if split == "predict" and self._predicted is not None:
            folder, found = self._predicted
            return ImageFiles(folder, found.files, None, transform, seed, self.max_image_pixels)
        named = split == "predict"
        part, places, of = self._images("test" if named else split)
        if part.files is None:
            return HeldImages(part, places, f"{self.dataset} {of}", named, transform, seed)
        files = [os.path.relpath(part.files[place], part.place) for place in places.tolist()]
        labels = None if named else part.labels[places].tolist()
        return ImageFiles(part.place, files, labels, transform, seed, self.max_image_pixels)

    def _part(self, name: str) -> Part:
        """Return a part that the data set has by itself: "train", "val" or "test"."""
        if name not in self._parts:
            arguments = getattr(self.layout, name) | self.dataset_args
            part = read_part(
                self.dataset, self.root, arguments, self.download, self.max_image_pixels
            )
            if name != "train" and part.class_names != self.class_names:
                raise InputError(
                    f"data.root: the {name} part of {self.dataset} has the "
                    f"{len(part.class_names)} classes {some(part.class_names)}\n"
                    f"expected the training part's {len(self.class_names)}, "
                    f"{some(self.class_names)}"
                )
            self._parts[name] = part
        return self._parts[name]

    def _images(self, split: str) -> Chosen:
        """Return the images of "train", "val" or "test"."""
        if not self._chosen:
            self._cut()
        if split not in self._chosen:
            part = self._part(split)
            self._chosen[split] = Chosen(part, np.arange(len(part.labels)), split)
        return self._chosen[split]

    def _cut(self) -> None:
        """Cut the parts that the data set does not have by itself off its training part."""
        part = self._part("train")
        rest = np.arange(len(part.labels))
        of = "training" if self.layout.test else "all"
        if self.layout.test is None:
            rest, test = self._cut_off("cut_test", rest, part)
            self._chosen["test"] = Chosen(part, test, of)
        if self.layout.val is None:
            rest, val = self._cut_off("cut_validation", rest, part)
            self._chosen["val"] = Chosen(part, val, of)
        self._chosen["train"] = Chosen(part, rest, of)

    def _cut_off(
        self, option: str, places: NDArray[np.int64], part: Part
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return what is left and what is cut off, the same share of each class."""
        # It takes a second to import, and other data do without it.
        from sklearn.model_selection import train_test_split

        share, labels = getattr(self, option), part.labels[places]
        try:
            left, cut = train_test_split(
                places, test_size=share, stratify=labels, random_state=self.split_seed
            )
        except ValueError as error:
            raise InputError(
                f"data.{option}: {share:g} of {len(places):,} images of {len(np.unique(labels))} "
                f"classes cannot be cut off with every class in it: {error}\n"
                "expected at least two images of each class, and a share that has one of each"
            ) from error
        return np.sort(left), np.sort(cut)
