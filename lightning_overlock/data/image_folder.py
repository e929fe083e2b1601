"""Own images, or ImageNet: one folder per split, in it one folder per class."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.loading import CorruptImage, Key, global_seed, seeded
from lightning_overlock.errors import InputError, did_you_mean

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as it looks in a viewer, in 8-bit RGB.

    It is turned as its EXIF orientation says, transparent parts lie on white, 16-bit values are
    scaled to 8 bits.

    Raises:
        CorruptImage: the content is no intact image.
        InputError: the file cannot be opened at all.
    """
    try:
        with Image.open(path) as image:
            image.load()
            with contextlib.suppress(Exception):  # malformed EXIF leaves a readable image
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's readers raise anything on broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: {error.strerror}") from error
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise CorruptImage(
            f"{path}: no intact image ({reason})\n"
            "expected the file to be repaired or removed, or data.skip_corrupt (boxes and label "
            "maps: data.skip_invalid) to be true"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert("RGB") would cut 16-bit values off at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}, more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point values, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


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


def image_files(folder: str | Path) -> list[str]:
    """Return the paths of all images in a folder and its subfolders, sorted; hidden ones are not.

    Paths are relative to `folder`. Images are told by their suffix, that of torchvision's
    `ImageFolder`.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(parent, folder)
        found += [
            os.path.normpath(os.path.join(inside, name))  # noqa: PTH118 - a million Paths are slow
            for name in files
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def predict_files(folder: str | Path) -> list[str]:
    """Return the images in `data.predict_dir`, as `image_files` does.

    Raises:
        InputError: it is no folder, or has no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise InputError(f"data.predict_dir: {folder} is {what}\nexpected a folder of images")
    files = image_files(folder)
    if not files:
        raise InputError(
            f"data.predict_dir: no images in {folder}\nfound {_listing(folder)}\n"
            f"expected files that end in {' '.join(IMG_EXTENSIONS)}, in subfolders too"
        )
    return files


class ImageFiles:
    """Images of a folder, transformed.

    Args:
        folder: where `files` lie.
        files: paths relative to the folder.
        labels: a class index for each file; None makes items (image, path) instead.
        transform: makes a tensor (3, H, W) of a PIL image; may draw random numbers.
        seed: seed of those.
    """

    def __init__(
        self,
        folder: Path,
        files: list[str],
        labels: list[int] | None,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
    ) -> None:
        self.folder = str(folder)
        # Bytes in one array: a list of a million strings would be copied into every worker bit by
        # bit, as each look at one changes its reference count.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = None if labels is None else np.array(labels)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        path = os.path.join(self.folder, os.fsdecode(self.files[key.index]))  # noqa: PTH118
        image = read_image(path)
        with seeded(self.seed, key.epoch, key.index):
            tensor = self.transform(image)
        return tensor, path if self.labels is None else int(self.labels[key.index])


class ImageFolderDataModule(BaseDataModule):
    """Images in `root/train/CLASS`, `root/val/CLASS` and, if there, `root/test/CLASS`.

    The size, mean, standard deviation, interpolation and crop fraction of the model that is trained
    are used unless an argument says otherwise. Augmentation is timm's; mixup and cutmix belong to
    the task. Items of `predict` are the images of `predict_dir` or else of `test/`, or of `val/`,
    named by their paths.

    Args:
        root: folder of the splits; not needed to predict with `predict_dir`.
        predict_dir: any folder to predict for, with its subfolders.
        batch_size: images per process and step.
        num_workers: processes that read images; None: one fewer than the cores of this process,
            at most 16.
        skip_corrupt: skip unreadable images with a warning that counts and names them.
        image_size: side in pixels, or (height, width).
        crop_pct: evaluation: side of the centre crop over that of the resized image.
        crop_mode: evaluation: cut the centre, squash to a square or add a border.
        interpolation: evaluation: how images are resized.
        train_interpolation: training: the same; "random" takes bilinear or bicubic.
        scale: training: smallest and largest area of the random crop over that of the image.
        ratio: training: smallest and largest aspect ratio of the random crop.
        hflip: training: probability of a horizontal flip.
        vflip: training: probability of a vertical flip.
        color_jitter: training: strength of brightness, contrast and saturation changes; as in timm
            used only without `auto_augment` (or with its policy 3a).
        auto_augment: training: timm's policy, for example rand-m9-mstd0.5-inc1.
        re_prob: training: probability of random erasing.
        re_mode: training: what is put there: zeros, one random colour, or random pixels.
        re_count: training: largest number of places erased.

    Raises:
        InputError: a folder is missing, empty or holds other classes than the training split, or
            an argument is out of its range.
    """

    def __init__(
        self,
        root: str = "",
        predict_dir: str | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        skip_corrupt: bool = False,
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
        super().__init__(batch_size, num_workers, skip_corrupt)
        self.root = Path(root)
        self.predict_dir = None if predict_dir is None else Path(predict_dir)
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
        self._files: dict[str, tuple[list[str], list[int]]] = {}
        if self.predict_dir is not None:
            self._predict_files = predict_files(self.predict_dir)
        if self.predict_dir is not None and not self.root.joinpath("train").is_dir():
            self.class_names = []  # a checkpoint knows its own
        else:
            self.class_names = self._scan_splits()

    def source(self, split: Split) -> ImageFiles:
        """Return the images of a split.

        Raises:
            InputError: there is no such split.
        """
        if split == "predict" and self.predict_dir is not None:
            return ImageFiles(
                self.predict_dir, self._predict_files, None, self.transform(training=False)
            )
        name: str = split
        if split == "predict":
            name = "test" if "test" in self._files else "val"
        if name not in self._files:
            raise InputError(
                f"data.root: {self.root} has no folder '{name}'\nfound {_listing(self.root)}"
            )
        files, labels = self._files[name]
        return ImageFiles(
            self.root / name,
            files,
            None if split == "predict" else labels,
            self.transform(training=split == "train"),
            global_seed(),
        )

    def transform(self, training: bool) -> Callable[[Image.Image], Tensor]:
        """Return timm's transform from a PIL image to a normalised tensor (3, H, W) float32."""
        if self.trainer is not None:
            model_config = cast("dict[str, Any]", self.trainer.lightning_module.data_config)
        else:  # to look at images without a model: timm's defaults
            model_config = resolve_data_config(pretrained_cfg={"num_classes": 1000})
        config = {**model_config, **{k: v for k, v in self.eval_options.items() if v is not None}}
        config["input_size"] = (3, *(self.image_size or config["input_size"][-2:]))
        if training:
            config.update(self.train_options)
        return keep_one_bit(create_transform(**config, is_training=training))

    def _check_options(self) -> None:
        options = {**self.train_options, **self.eval_options}
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

    def _scan_splits(self) -> list[str]:
        """Fill `_files` and return the class names."""
        layout = "expected train/ and val/ in it, each with one folder of images per class"
        if not self.root.is_dir() or self.root == Path():
            raise InputError(f"data.root: '{self.root}' is no folder\n{layout}")
        for split in ("train", "val"):
            if not (self.root / split).is_dir():
                folders = [path.name for path in self.root.iterdir() if path.is_dir()]
                raise InputError(
                    f"data.root: {self.root} has no folder '{split}'."
                    f"{did_you_mean(split, folders)}\nfound {_listing(self.root)}\n{layout}"
                )
        class_names = _class_folders(self.root / "train")
        if len(class_names) < 2:
            raise InputError(
                f"{self.root / 'train'} holds {len(class_names)} class folder(s)\n"
                f"found {_listing(self.root / 'train')}\n"
                "expected at least two folders, one per class"
            )
        for split in ("train", "val", "test"):
            if (self.root / split).is_dir():
                self._files[split] = self._scan_split(self.root / split, class_names)
        return class_names

    def _scan_split(self, folder: Path, class_names: list[str]) -> tuple[list[str], list[int]]:
        found = _class_folders(folder)
        if found != class_names:
            missing = sorted(set(class_names) - set(found))
            unknown = sorted(set(found) - set(class_names))
            raise InputError(
                f"{folder} has other classes than {self.root / 'train'}\n"
                f"missing: {_some(missing)}; not in train: {_some(unknown)}\n"
                "expected the same folder names in every split"
            )
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            inside = image_files(folder / name)
            if not inside:
                raise InputError(
                    f"class '{name}' is empty: no images in {folder / name}\n"
                    f"found {_listing(folder / name)}\n"
                    f"expected files that end in {' '.join(IMG_EXTENSIONS)}"
                )
            files += [os.path.join(name, file) for file in inside]  # noqa: PTH118
            labels += [label] * len(inside)
        return files, labels


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _listing(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return _some(names) if names else "an empty folder"


def _some(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
