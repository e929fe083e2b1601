"""Training and evaluation as timm transforms images: what data modules of whole images share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import Compose, RandomCrop, Resize

from lightning_overlock.data.base import BaseDataModule
from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.data.images import MAX_PIXELS, FoundImages, predict_files
from lightning_overlock.data.left_out import MAX_LEFT_OUT
from lightning_overlock.errors import InputError
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, SHARE, Range, check_ranges

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = tuple[float, float, float]


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


def _jitters(options: Options) -> bool:
    return not options["auto_augment"] or "3a" in options["auto_augment"]


def _erases(options: Options) -> bool:
    return bool(options["re_prob"])


def _crops_by_area(options: Options) -> bool:
    return options["padding"] is None


class TimmTransformsDataModule(BaseDataModule):
    """Whole images with a class each, transformed by timm; a data module adds where they are.

    The size, mean, standard deviation, interpolation and crop fraction of the model that is trained
    are used unless an argument says otherwise. Augmentation is timm's; mixup and cutmix belong to
    the task.

    Args:
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
        mean: Mean of each channel in [0, 1] that is subtracted, instead of the model's.
        std: Standard deviation of each channel that is divided by, instead of the model's.
        crop_pct: Evaluation: side of the centre crop over that of the resized image.
        crop_mode: Evaluation: cut the centre, squash to a square or add a border.
        interpolation: Evaluation: how images are resized.
        train_interpolation: Training: the same; "random" takes bilinear or bicubic.
        scale: Training: smallest and largest area of the random crop over that of the image.
        ratio: Training: smallest and largest aspect ratio of the random crop.
        padding: Training: instead of a random crop by `scale` and `ratio`, resize to the size, add
            a black border of so many pixels, and take a random crop of that size.
        hflip: Training: probability of a horizontal flip.
        vflip: Training: probability of a vertical flip.
        color_jitter: Training: strength of brightness, contrast and saturation changes; as in timm
            used only without `auto_augment` (or with its policy 3a).
        auto_augment: Training: timm's policy, for example rand-m9-mstd0.5-inc1.
        re_prob: Training: probability of random erasing.
        re_mode: Training: what is put there: zeros, one random colour, or random pixels.
        re_count: Training: largest number of places erased.

    Raises:
        InputError: An argument is out of its range, or there are no images in `predict_dir`.
    """

    ranges: ClassVar[dict[str, Range]] = {
        "color_jitter": AT_LEAST_0,
        "re_count": AT_LEAST_1,
        "padding": AT_LEAST_0,
        "mean": SHARE,
        "std": ABOVE_0,
    }
    needs: ClassVar[dict[str, Need]] = {
        "color_jitter": ("no auto_augment, or its policy 3a", _jitters),
        "re_mode": ("re_prob above 0", _erases),
        "re_count": ("re_prob above 0", _erases),
        "scale": ("no padding", _crops_by_area),
        "ratio": ("no padding", _crops_by_area),
    }
    training_options = frozenset(
        ("train_interpolation", "scale", "ratio", "padding", "hflip", "vflip", "color_jitter")
    ) | {"auto_augment", "re_prob", "re_mode", "re_count"}

    def __init__(
        self,
        predict_dir: str | list[str] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        skip_corrupt: bool = False,
        max_left_out: float = MAX_LEFT_OUT,
        max_image_pixels: int | None = MAX_PIXELS,
        image_size: int | tuple[int, int] | None = None,
        mean: Channels | None = None,
        std: Channels | None = None,
        crop_pct: float | None = None,
        crop_mode: Literal["center", "squash", "border"] | None = None,
        interpolation: Interpolation | None = None,
        train_interpolation: Interpolation | Literal["random"] = "random",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        padding: int | None = None,
        hflip: float = 0.5,
        vflip: float = 0.0,
        color_jitter: float = 0.4,
        auto_augment: str | None = None,
        re_prob: float = 0.0,
        re_mode: Literal["const", "rand", "pixel"] = "pixel",
        re_count: int = 1,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_corrupt, max_left_out, max_image_pixels)
        self.eval_options: dict[str, Any] = {
            "mean": mean,
            "std": std,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
        }
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.padding = padding
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
        self._predicted: tuple[Path, FoundImages] | None = (
            None if predict_dir is None else predict_files(predict_dir)
        )

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
        transform = keep_one_bit(create_transform(**config, is_training=training))
        if training and self.padding is not None:
            transform.transforms[0] = self._padded_crop(config["input_size"][1:])
        return transform

    def _padded_crop(self, size: tuple[int, int]) -> Compose:
        """Return what takes the place of timm's first step, the random crop by area."""
        chosen = self.train_options["interpolation"]
        mode = str_to_interp_mode("bilinear" if chosen == "random" else chosen)
        return Compose([Resize(size, mode), RandomCrop(size, self.padding)])

    def _check_options(self) -> None:
        options = {**self.train_options, **self.eval_options, "padding": self.padding}
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
        warn_of_unused("data", type(self), options, self.needs)
