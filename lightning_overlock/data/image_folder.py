"""Own images, or ImageNet: one folder per split, in it one folder per class."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.class_names import alike, check_class_names
from lightning_overlock.data.images import (
    MAX_PIXELS,
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
from lightning_overlock.data.left_out import MAX_LEFT_OUT, LeftOut, refuse_if_too_many
from lightning_overlock.data.loading import global_seed
from lightning_overlock.errors import InputError, did_you_mean, printable
from lightning_overlock.ranges import AT_LEAST_0, AT_LEAST_1, Range, check_ranges

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def keep_one_bit(transform: Any) -> Any:
    """Let timm's strongest posterisation leave one bit per channel.

    timm 1.0 asks Pillow for none at magnitude 10, which random magnitudes reach (rand-m9-mstd0.5:
    one image in a thousand); Pillow 13 refuses that, and earlier ones returned a black image.
    """
    for step in transform.transforms:
        policy = getattr(step, "ops", None) or getattr(step, "policy", None) or []
        for operation in np.array(policy, dtype=object).ravel():
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, max(bits, 1)) if bits < 8 else image


class ImageFolderDataModule(BaseDataModule):
    """Images in `root/train/CLASS`, `root/val/CLASS` and, if there, `root/test/CLASS`.

    The size, mean, standard deviation, interpolation and crop fraction of the model that is trained
    are used unless an argument says otherwise. Augmentation is timm's; mixup and cutmix belong to
    the task. Items of `predict` are the images of `predict_dir` or else of `test/`, or of `val/`,
    named by their paths; `test/` needs no class folders for it.

    A class has all images of its folder, subfolders included. Every format that Pillow reads is an
    image, told by the file's suffix. Hidden files and folders, those of the system such as @eaDir
    and __MACOSX, and files beside an image of the same name are passed over; what else is left out
    is counted.

    Args:
        root: Folder of the splits; not needed to predict with `predict_dir`.
        predict_dir: Images or folders, with their subfolders, to predict for.
        batch_size: Images per process and step.
        num_workers: Processes that read images; None: one fewer than the cores of this process,
            at most 16.
        skip_corrupt: Skip unreadable images with a warning that counts and names them. `predict`
            always does.
        max_left_out: Largest share of a class's files that may be left out, being no images.
        max_image_pixels: Largest number of pixels of an image, against files that fill the memory;
            null is no limit.
        image_size: Side in pixels, or (height, width).
        crop_pct: Evaluation: side of the centre crop over that of the resized image.
        crop_mode: Evaluation: cut the centre, squash to a square or add a border.
        interpolation: Evaluation: how images are resized.
        train_interpolation: Training: the same; "random" takes bilinear or bicubic.
        scale: Training: smallest and largest area of the random crop over that of the image.
        ratio: Training: smallest and largest aspect ratio of the random crop.
        hflip: Training: probability of a horizontal flip.
        vflip: Training: probability of a vertical flip.
        color_jitter: Training: strength of brightness, contrast and saturation changes; as in timm
            used only without `auto_augment` (or with its policy 3a).
        auto_augment: Training: timm's policy, for example rand-m9-mstd0.5-inc1.
        re_prob: Training: probability of random erasing.
        re_mode: Training: what is put there: zeros, one random colour, or random pixels.
        re_count: Training: largest number of places erased.

    Raises:
        InputError: A folder is missing, empty or holds other classes than the training split, or
            an argument is out of its range.
    """

    ranges: ClassVar[dict[str, Range]] = {"color_jitter": AT_LEAST_0, "re_count": AT_LEAST_1}

    def __init__(
        self,
        root: str = "",
        predict_dir: str | list[str] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        skip_corrupt: bool = False,
        max_left_out: float = MAX_LEFT_OUT,
        max_image_pixels: int | None = MAX_PIXELS,
        image_size: int | tuple[int, int] | None = None,
        crop_pct: float | None = None,
        crop_mode: Literal["center", "squash", "border"] | None = None,
        interpolation: Interpolation | None = None,
        train_interpolation: Interpolation | Literal["random"] = "random",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.4,
        auto_augment: str | None = None,
        re_prob: float = 0.0,
        re_mode: Literal["const", "rand", "pixel"] = "pixel",
        re_count: int = 1,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_corrupt, max_left_out, max_image_pixels)
        self.root = Path(root)
        self._root_given = bool(root)
        self.eval_options: dict[str, Any] = {
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
        }
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.train_options: dict[str, Any] = {
            "interpolation": train_interpolation,
            "scale": tuple(scale),
            "ratio": tuple(ratio),
            "hflip": hflip,
            "vflip": vflip,
            "color_jitter": color_jitter,
            "auto_augment": auto_augment,
            "re_prob": re_prob,
            "re_mode": re_mode,
            "re_count": re_count,
        }
        self._check_options()
        self._splits: dict[str, LabelledFiles] = {}
        self._predicted = None if predict_dir is None else predict_files(predict_dir)
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

    def transform(self, training: bool) -> Callable[[Image.Image], Tensor]:
        """Return timm's transform from a PIL image to a normalised tensor (3, H, W) float32."""
        if self.trainer is not None:
            model_config = cast("dict[str, Any]", self.trainer.lightning_module.data_config)
        else:  # to look at images without a model: timm's defaults
            model_config = resolve_data_config(pretrained_cfg={"num_classes": 1000})
        return self._transform(model_config, training)

    def image_transform(self, data_config: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return the transform of evaluation and prediction."""
        return self._transform(data_config, training=False)

    def _transform(
        self, model_config: dict[str, Any], training: bool
    ) -> Callable[[Image.Image], Tensor]:
        config = {**model_config, **{k: v for k, v in self.eval_options.items() if v is not None}}
        config["input_size"] = (3, *(self.image_size or config["input_size"][-2:]))
        if training:
            config.update(self.train_options)
        return keep_one_bit(create_transform(**config, is_training=training))

    def _check_options(self) -> None:
        options = {**self.train_options, **self.eval_options}
        check_ranges("data", options, self.ranges)
        for name in ("hflip", "vflip", "re_prob"):
            if not 0 <= options[name] <= 1:
                raise InputError(f"data.{name} is {options[name]}; expected a probability")
        for name, largest in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = options[name]
            if not 0 < low <= high <= largest:
                limit = " <= 1" if name == "scale" else ""
                raise InputError(
                    f"data.{name} is {low}, {high}; expected 0 < smallest <= largest{limit}"
                )
        if options["crop_pct"] is not None and not 0 < options["crop_pct"] <= 1:
            raise InputError(f"data.crop_pct is {options['crop_pct']}; expected 0 < crop_pct <= 1")
        if self.image_size is not None and min(self.image_size) < 1:
            raise InputError(f"data.image_size is {self.image_size}; expected at least 1 pixel")
        try:
            create_transform(224, is_training=True, auto_augment=options["auto_augment"])
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(
                f"data.auto_augment is '{options['auto_augment']}': {error or 'not understood'}\n"
                "expected a policy of timm, for example rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or 3a"
            ) from error


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
