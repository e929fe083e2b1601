"""Images with a class for every pixel: folders of images and of label PNGs, and ADE20K."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lightning_overlock.data import ade20k_classes
from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.dense_transforms import (
    IGNORE,
    segmentation_transform,
    to_float,
    to_pixels,
)
from lightning_overlock.data.images import (
    ImageFiles,
    find_images,
    predict_files,
    read_image,
)
from lightning_overlock.data.loading import (
    Collate,
    CorruptImage,
    Key,
    as_lists,
    global_seed,
    seeded,
    stack,
)
from lightning_overlock.errors import InputError

SKIP = "expected the file to be repaired or removed, or data.skip_invalid to be true"
EXIF_ORIENTATION = 0x0112


def read_values(path: str | Path) -> NDArray[np.int32]:
    """Return the pixels of a label PNG, (H, W) int32: grey values or places in its palette.

    Raises:
        CorruptImage: The content is no intact image, or its pixels are colours.
        InputError: The file cannot be opened at all.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in {"1", "L", "P", "I", "I;16", "I;16B"}:
                raise CorruptImage(
                    f"{path}: pixels of mode {image.mode}, not one value each\n"
                    "expected a grey (8 or 16 bits) or palette PNG of class numbers"
                )
            return np.asarray(image, dtype=np.int32)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # PIL's readers raise anything on broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: {error.strerror}") from error
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(f"{path}: no intact label map ({reason})\n{SKIP}") from error


def read_labels(path: str | Path, num_classes: int, reduce_zero_label: bool) -> NDArray[np.uint8]:
    """Return the label map (H, W) uint8 in a PNG: classes from 0, and 255 where none counts.

    Args:
        path: The file.
        num_classes: Number of classes.
        reduce_zero_label: 0 in the file is no class and 1 is the first.

    Raises:
        CorruptImage: A value is no class and not 255, or see `read_values`.
        InputError: See `read_values`.
    """
    values = read_values(path)
    first = int(reduce_zero_label)
    known = ((values >= 0) & (values < num_classes + first)) | (values == IGNORE)
    if not known.all():
        raise CorruptImage(
            f"{path}: the value {values[~known][0]} is no class\n"
            f"expected 0 to {num_classes + first - 1} for {num_classes} classes "
            f"(data.reduce_zero_label is {str(reduce_zero_label).lower()}), or {IGNORE}"
        )
    labels = values.astype(np.uint8) - np.uint8(first)  # 0 - 1 is 255
    labels[values == IGNORE] = IGNORE
    return labels


class LabelledImages:
    """Images with label maps: items (image (3, H, W) float32 in [0, 1], labels (H, W) int64).

    Args:
        images: Folder of the images.
        labels: Folder of the label PNGs.
        pairs: (image, label PNG), paths relative to those.
        num_classes: Number of classes.
        reduce_zero_label: See `read_labels`.
        transform: Augments (image uint8, labels uint8); may draw random numbers.
        seed: Seed of those.
    """

    def __init__(
        self,
        images: Path,
        labels: Path,
        pairs: list[tuple[str, str]],
        num_classes: int,
        reduce_zero_label: bool,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.folders = str(images), str(labels)
        # Bytes in one array, see `ImageFiles`.
        self.pairs = np.array([[os.fsencode(file) for file in pair] for pair in pairs])
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        image_path, label_path = (
            os.path.join(folder, os.fsdecode(file))  # noqa: PTH118
            for folder, file in zip(self.folders, self.pairs[key.index], strict=True)
        )
        picture = read_image(image_path)
        values = read_labels(label_path, self.num_classes, self.reduce_zero_label)
        if values.shape != picture.size[::-1]:
            raise CorruptImage(
                _sizes_differ(image_path, picture.size, label_path, values.shape[::-1])
            )
        image = F.to_image(picture)
        labels = tv_tensors.Mask(torch.from_numpy(values))
        if self.transform is not None:
            with seeded(self.seed, key.epoch, key.index):
                image, labels = self.transform(image, labels)
        return to_float(image), labels.as_subclass(Tensor).long()


def _sizes_differ(
    image: str | Path, image_size: tuple[int, ...], label: str | Path, label_size: tuple[int, ...]
) -> str:
    return (
        f"{label}: {label_size[0]} x {label_size[1]} pixels, but {image_size[0]} x {image_size[1]} "
        f"in {image} (turned as its EXIF says)\n{SKIP}"
    )


def _size(path: Path) -> tuple[int, int]:
    """Return (width, height) as a viewer shows the image, reading no more than its head."""
    with Image.open(path) as image:
        # A PNG that names no EXIF in its head would be read to its end for one.
        known = image.format != "PNG" or "exif" in image.info
        turned = known and image.getexif().get(EXIF_ORIENTATION, 1) in {5, 6, 7, 8}
        return image.size[::-1] if turned else image.size


class SegmentationFolderDataModule(BaseDataModule):
    """Images in one folder and label PNGs of the same names in another, for each split.

    Below `root` these are images/{train,val,test} and labels/{train,val,test}, subfolders included;
    test may be missing. A label PNG is grey (8 or 16 bits) or has a palette; its values are the
    class numbers, 255 is ignored. Images are float32 RGB in [0, 1], which the task normalises.
    Training batches are (images (B, 3, H, W), labels (B, H, W) int64), crops of one size;
    evaluation batches two lists, (images, labels), at the files' own sizes; `predict` has (images,
    paths): of `predict_dir`, or of the test split, or of the validation split.

    Args:
        root: folder of the splits.
        train_images: folder of training images, instead of `root`'s.
        train_labels: folder of their label PNGs.
        val_images: folder of validation images.
        val_labels: folder of their label PNGs.
        test_images: folder of test images.
        test_labels: folder of their label PNGs.
        class_names: the names, or a text file with one per line. None: `root`/classes.txt; without
            it, all training labels are read and the classes are called 0, 1, … to the largest.
        reduce_zero_label: 0 in the files is no class and 1 is the first, as in ADE20K.
        predict_dir: any folder of images to predict for, with its subfolders.
        batch_size: images per process and step.
        num_workers: processes that read images; None: one fewer than the cores of this process,
            at most 16.
        crop_size: training: side of the crops, or (height, width).
        resize: training: longest long side and longest short side, times a random ratio; the image
            is made as large as fits both.
        ratio: training: smallest and largest of that ratio.
        largest_share: training: of ten crops, the first in which no class has this share.
        hflip: training: probability of a horizontal flip.
        photometric: training: change brightness, contrast, saturation and hue at random.
        skip_invalid: leave pairs that are incomplete or do not fit out with a warning that counts
            them, instead of stopping.

    Raises:
        InputError: a folder is missing or empty, an image has no label PNG, a label PNG no image or
            another size, or an argument is out of its range.
    """

    def __init__(
        self,
        root: str = "",
        train_images: str | None = None,
        train_labels: str | None = None,
        val_images: str | None = None,
        val_labels: str | None = None,
        test_images: str | None = None,
        test_labels: str | None = None,
        class_names: list[str] | str | None = None,
        reduce_zero_label: bool = False,
        predict_dir: str | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        crop_size: int | tuple[int, int] = 512,
        resize: tuple[int, int] = (2048, 512),
        ratio: tuple[float, float] = (0.5, 2.0),
        largest_share: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
        skip_invalid: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_corrupt=skip_invalid)
        self.root = root
        self.reduce_zero_label = reduce_zero_label
        self.augmentation: dict[str, Any] = {
            "crop_size": (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size),
            "resize": tuple(resize),
            "ratio": tuple(ratio),
            "largest_share": largest_share,
            "hflip": hflip,
            "photometric": photometric,
        }
        self._check_options()
        given = {
            "train": (train_images, train_labels),
            "val": (val_images, val_labels),
            "test": (test_images, test_labels),
        }
        self.folders: dict[str, tuple[Path, Path]] = {}
        for split, (images, labels) in given.items():
            if root and (split != "test" or Path(root, "images/test").is_dir()):
                images = images or str(Path(root, "images", split))
                labels = labels or str(Path(root, "labels", split))
            if (images is None) != (labels is None):
                raise InputError(
                    f"found data.{split}_images {images} and data.{split}_labels {labels}\n"
                    "expected both or neither"
                )
            if images is not None and labels is not None:
                self.folders[split] = Path(images), Path(labels)
        self.predict_dir: Path | None = None
        if predict_dir is not None:
            self.predict_dir, self._predict_files = predict_files(predict_dir)
        if not self.folders and predict_dir is None:
            raise InputError("found neither data.root nor data.train_images\nexpected one of them")
        self._pairs: dict[str, list[tuple[str, str]]] = {}
        self.class_names = self._read_class_names(class_names)
        if len(self.class_names) + reduce_zero_label > IGNORE:
            raise InputError(
                f"found {len(self.class_names)} classes; {IGNORE} is the label that is ignored\n"
                f"expected at most {IGNORE - reduce_zero_label}"
            )

    def _check_options(self) -> None:
        options = self.augmentation
        if not 0 <= options["hflip"] <= 1:
            raise InputError(f"data.hflip is {options['hflip']}; expected a probability")
        if not 0 < options["largest_share"] <= 1:
            raise InputError(f"data.largest_share is {options['largest_share']}; expected 0 to 1")
        for name in ("crop_size", "resize"):
            if min(options[name]) < 1:
                raise InputError(f"data.{name} is {options[name]}; expected at least 1 pixel")
        low, high = options["ratio"]
        if not 0 < low <= high:
            raise InputError(f"data.ratio is {low}, {high}; expected 0 < smallest <= largest")

    def pairs(self, split: str) -> list[tuple[str, str]]:
        """Return the (image, label PNG) of a split, sorted, relative to their folders.

        Raises:
            InputError: there is no such split, or, unless invalid ones are skipped, one of a pair
                is missing.
        """
        if split in self._pairs:
            return self._pairs[split]
        if split not in self.folders:
            raise InputError(
                f"there is no {split} split\nexpected data.{split}_images and data.{split}_labels"
            )
        images, labels = self.folders[split]
        for kind, folder in (("images", images), ("labels", labels)):
            if not folder.is_dir():
                raise InputError(f"{folder}: no folder\nexpected the {kind} of the {split} split")
        stems: dict[str, str] = {}
        problems = []
        for file in find_images(images).files:
            other = stems.setdefault(os.path.splitext(file)[0], file)  # noqa: PTH122
            if other != file:
                problems.append(f"{images / file}: has the name of {other}, for one label PNG")
        maps = {
            os.path.splitext(file)[0]: file  # noqa: PTH122
            for file in find_images(labels).files
            if file.lower().endswith(".png")
        }
        problems += [
            f"{images / stems[stem]}: no label map {labels / stem}.png"
            for stem in stems.keys() - maps.keys()
        ]
        problems += [
            f"{labels / maps[stem]}: no image {images / stem}.*"
            for stem in maps.keys() - stems.keys()
        ]
        self._complain_of(problems)
        found = [(file, maps[stem]) for stem, file in stems.items() if stem in maps]
        if not found:
            raise InputError(f"{images}: no images with label PNGs in {labels}\nexpected some")
        self._pairs[split] = found
        return found

    def setup(self, stage: str) -> None:
        """Look at the sizes of all images and label PNGs of the stage before it begins."""
        stages = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in stages.get(stage, ()):
            pairs = self.pairs(split)
            images, labels = self.folders[split]
            files = [(images / image, labels / label) for image, label in pairs]
            with ThreadPoolExecutor(16) as pool:  # it is the disk that is waited for
                problems = list(pool.map(_pair_problem, files))
            self._complain_of([problem for problem in problems if problem])
            self._pairs[split] = [
                pair for pair, problem in zip(pairs, problems, strict=True) if not problem
            ]

    def _complain_of(self, problems: list[str]) -> None:
        """Stop at the first problem, or warn of all."""
        if not problems:
            return
        problems = sorted(problem.removesuffix(f"\n{SKIP}") for problem in problems)
        if not self.skip_corrupt:
            raise InputError(f"{problems[0]}\n{SKIP}")
        some = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        warnings.warn(f"{len(problems)} invalid files left out: {some}", stacklevel=2)

    def _read_class_names(self, given: list[str] | str | None) -> list[str]:
        if isinstance(given, list):
            return list(given)
        path = Path(self.root, "classes.txt") if given is None and self.root else given
        if given is not None or (path is not None and Path(path).is_file()):
            try:
                lines = Path(str(path)).read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"data.class_names: {path} cannot be read ({error})\n"
                    "expected a list, or a text file with a name per line"
                ) from error
            return [line.strip() for line in lines if line.strip()]
        if "train" not in self.folders:
            return []  # a checkpoint knows its own
        folder = self.folders["train"][1]
        first = int(self.reduce_zero_label)
        largest = 0
        for _, label in self.pairs("train"):
            values = read_values(folder / label)
            largest = max(largest, int(values[values != IGNORE].max(initial=0)))
        return [str(number) for number in range(first, largest + 1)]

    @cached_property
    def palette(self) -> list[tuple[int, int, int]]:
        """The classes' colours: those of the first training label's palette, if it has one."""
        if "train" not in self.folders or not self.folders["train"][1].is_dir():
            return []
        with Image.open(self.folders["train"][1] / self.pairs("train")[0][1]) as image:
            values = (image.getpalette() or []) if image.mode == "P" else []
        first = int(self.reduce_zero_label)
        colours = list(zip(values[::3], values[1::3], values[2::3], strict=True))
        return colours[first : first + len(self.class_names)]

    def source(self, split: Split) -> LabelledImages | ImageFiles:
        """Return the images of a split."""
        if split == "predict" and self.predict_dir is not None:
            return ImageFiles(self.predict_dir, self._predict_files.files, None, to_pixels)
        if split == "predict":
            name = "test" if "test" in self.folders else "val"
            files = [image for image, _ in self.pairs(name)]
            return ImageFiles(self.folders[name][0], files, None, to_pixels)
        pairs = self.pairs(split)
        return LabelledImages(
            *self.folders[split],
            pairs,
            len(self.class_names),
            self.reduce_zero_label,
            segmentation_transform(**self.augmentation) if split == "train" else None,
            global_seed(),
        )

    def collate(self, split: Split) -> Collate:
        """Return what stacks training crops and makes lists of images of other splits."""
        return stack if split == "train" else as_lists


def _pair_problem(pair: tuple[Path, Path]) -> str:
    """Return what the heads of an image and a label PNG say against them, "" if nothing."""
    sizes = []
    for path in pair:
        try:
            sizes.append(_size(path))
        except Exception as error:  # PIL's readers raise anything on broken bytes
            return f"{path}: no intact image ({error})"
    return "" if sizes[0] == sizes[1] else _sizes_differ(pair[0], sizes[0], pair[1], sizes[1])


class Ade20kDataModule(SegmentationFolderDataModule):
    """ADE20K's 150 classes, as the scene parsing benchmark has them (ADEChallengeData2016).

    See `SegmentationFolderDataModule`. The label 0 is no class and is ignored.

    Args:
        root: ADEChallengeData2016, with images/{training,validation} and
            annotations/{training,validation}.
        kwargs: as for `SegmentationFolderDataModule`.
    """

    def __init__(self, root: str = "", **kwargs: Any) -> None:
        folder = Path(root)
        super().__init__(
            train_images=str(folder / "images/training") if root else None,
            train_labels=str(folder / "annotations/training") if root else None,
            val_images=str(folder / "images/validation") if root else None,
            val_labels=str(folder / "annotations/validation") if root else None,
            class_names=ade20k_classes.CLASS_NAMES,
            reduce_zero_label=True,
            **kwargs,
        )

    @cached_property
    def palette(self) -> list[tuple[int, int, int]]:
        """The benchmark's colours."""
        return ade20k_classes.PALETTE
