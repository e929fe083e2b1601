"""Scenes of real digits on textured canvases, written as a COCO json and as label PNGs.

Nothing is downloaded: the digits are those of scikit-learn. The files are read by the same readers
as COCO and ADE20K.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from lightning_overlock.data.base import Split
from lightning_overlock.data.coco import CocoDataModule, CocoImages, FolderImages
from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.data.digits import CLASS_NAMES, Digits, DigitSplit, digits_of, resize_digits
from lightning_overlock.data.images import MAX_PIXELS, ImageFiles
from lightning_overlock.data.labelled_images import LabelledImages
from lightning_overlock.data.segmentation_folder import SegmentationFolderDataModule
from lightning_overlock.errors import InputError
from lightning_overlock.files import save_image
from lightning_overlock.ranges import Range, check_range

SPLITS: tuple[DigitSplit, ...] = ("train", "val", "test")

# Digit d is 1 + d in the files.
CATEGORIES = list(enumerate(CLASS_NAMES, 1))


def _may_overlap(options: Options) -> bool:
    return bool(options["digits"][1] > 1)


NEEDS: dict[str, Need] = {"least_visible": ("more digits than one in a scene", _may_overlap)}


@dataclass(frozen=True)
class SceneOptions:
    """What scenes are made of.

    Attributes:
        canvas: Side of the square canvas in pixels.
        train_images: Training scenes.
        eval_images: Validation scenes, and as many test scenes.
        digits: Smallest and largest number of digits in a scene. A digit that finds no place
            where it hides too much of another is left out.
        digit_sizes: Smallest and largest side of a digit's square in pixels.
        least_visible: Share of its ink that every digit keeps; 1 is no overlap.
        texture: Strength of the canvas's texture, from 0 (one colour) to 1.
        seed: Seed of digits, places, sizes, tints and textures.
    """

    canvas: int = 128
    train_images: int = 2000
    eval_images: int = 300
    digits: tuple[int, int] = (1, 5)
    digit_sizes: tuple[int, int] = (24, 56)
    least_visible: float = 0.5
    texture: float = 0.3
    seed: int = 0

    def check(self) -> None:
        """Raise an InputError where an option is out of its range."""
        for name, number, least in (
            ("canvas", self.canvas, 16),
            ("train_images", self.train_images, 1),
            ("eval_images", self.eval_images, 1),
            ("seed", self.seed, 0),
        ):
            check_range(f"data.scenes.{name}", number, Range(least))
        for name, (low, high), least, most in (
            ("digits", self.digits, 1, 100),
            ("digit_sizes", self.digit_sizes, 8, self.canvas),
        ):
            if not least <= low <= high <= most:
                raise InputError(
                    f"data.scenes.{name} is {low}, {high}; "
                    f"expected {least} <= smallest <= largest <= {most}"
                )
        for name, share in (("least_visible", self.least_visible), ("texture", self.texture)):
            if not 0 <= share <= 1:
                raise InputError(f"data.scenes.{name} is {share}; expected 0 to 1")
        warn_of_unused("data.scenes", type(self), vars(self), NEEDS)

    @property
    def name(self) -> str:
        """A folder name that says everything that the scenes depend on."""
        return (
            f"digit_scenes-1-{self.canvas}px-{self.train_images}+{self.eval_images}-"
            f"{self.digits[0]}to{self.digits[1]}-{self.digit_sizes[0]}to{self.digit_sizes[1]}px-"
            f"visible{self.least_visible:g}-texture{self.texture:g}-seed{self.seed}"
        )


DEFAULT = SceneOptions()


class Scene(NamedTuple):
    """Digits on a canvas.

    Attributes:
        image: (H, W, 3) uint8.
        owner: (H, W) uint8, 0 where the canvas is seen, i + 1 where digit i is.
        labels: The digits, the lowest first.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.uint8]
    labels: list[int]


def draw_scene(digits: Digits, options: SceneOptions, random: np.random.Generator) -> Scene:
    """Put digits on a canvas, one over the other.

    A pixel belongs to the uppermost digit with at least half its ink there.
    """
    image = _texture(options.canvas, options.texture, random)
    ground = image.mean((0, 1))
    owner = np.zeros((options.canvas, options.canvas), np.uint8)
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(random.integers(options.digits[0], options.digits[1] + 1)):
        number = int(random.integers(len(digits.labels)))
        tint = _tint(ground, random)
        for _ in range(10):
            size = int(random.integers(options.digit_sizes[0], options.digit_sizes[1] + 1))
            top, left = random.integers(0, options.canvas - size + 1, size=2).tolist()
            ink = resize_digits(digits.images[number : number + 1], size)[0] / 255
            place = slice(top, top + size), slice(left, left + size)
            above = owner.copy()
            above[place][ink >= 0.5] = len(labels) + 1
            visible = np.bincount(above.ravel(), minlength=len(labels) + 2)[1:]
            if all(visible[:-1] >= options.least_visible * np.array(areas)):
                owner = above
                labels.append(int(digits.labels[number]))
                areas.append(int(visible[-1]))
                # Full colour from three quarters of the ink on; edges are soft.
                opacity = np.clip(2 * ink - 0.5, 0, 1)[..., None]
                image[place] += opacity * (tint - image[place])
                break
    return Scene((image * 255).round().astype(np.uint8), owner, labels)


def _texture(side: int, strength: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise of three grain sizes around one colour, (side, side, 3) in [0, 1]."""
    canvas = np.broadcast_to(random.uniform(0.2, 0.8, 3), (side, side, 3)).astype(np.float32)
    for grains, share in ((4, 0.4), (16, 0.4), (64, 0.2)):
        noise = random.uniform(-strength, strength, (1, 3, grains, grains)).astype(np.float32)
        smooth = F.interpolate(torch.from_numpy(noise), size=(side, side), mode="bilinear")
        canvas += share * smooth[0].permute(1, 2, 0).numpy()
    return np.clip(canvas, 0, 1)


def _tint(ground: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return a colour that stands out from the canvas's mean colour."""
    while True:
        tint = random.uniform(0, 1, 3).astype(np.float32)
        if np.abs(tint - ground).mean() >= 0.25:
            return tint


def write_scenes(folder: str | Path, options: SceneOptions) -> None:
    """Write scenes of all splits into a folder, unless it is there.

    The folder then holds, for each of train, val and test,

        images/SPLIT/00000.png               RGB
        labels/SPLIT/00000.png               0 is canvas, 1 + d is digit d
        annotations/instances_SPLIT.json     COCO; category 1 + d is digit d, masks are RLE

    A mask is the visible part of a digit and its box that part's. The splits show disjoint digits.
    They are written elsewhere and moved into place at the end: a folder that is there is whole,
    also when several processes write it at a time.

    Raises:
        InputError: An option is out of its range.
    """
    folder = Path(folder)
    options.check()
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as unfinished:
        whole = Path(unfinished) / folder.name
        for split in SPLITS:
            _write_split(whole, split, options)
        try:
            whole.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise


def _write_split(folder: Path, split: DigitSplit, options: SceneOptions) -> None:
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    digits = digits_of(split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(options.train_images if split == "train" else options.eval_images):
        random = np.random.default_rng((options.seed, SPLITS.index(split), number))
        scene = draw_scene(digits, options, random)
        name = f"{number:05d}.png"
        image = Image.fromarray(scene.image)
        save_image(image, folder / "images" / split / name, compress_level=1)
        label_of_owner = np.array([0, *(label + 1 for label in scene.labels)], np.uint8)
        save_image(Image.fromarray(label_of_owner[scene.owner]), folder / "labels" / split / name)
        height, width = scene.owner.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for place, label in enumerate(scene.labels, 1):
            mask = coco_mask.encode(np.asfortranarray(scene.owner == place))
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes an id of 0 for "no match"
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": coco_mask.toBbox(mask).tolist(),
                    "area": int(coco_mask.area(mask)),
                    "iscrowd": 0,
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content, separators=(",", ":")))


def scenes_folder(options: SceneOptions, folder: str | None) -> Path:
    """Return where scenes are kept, checking their options.

    Args:
        options: What the scenes are made of.
        folder: None is the environment's OVERLOCK_CACHE, or ~/.cache/lightning_overlock.
    """
    options.check()
    cache = folder or os.environ.get("OVERLOCK_CACHE") or "~/.cache/lightning_overlock"
    return Path(cache).expanduser() / options.name


class DigitScenesDetectionDataModule(CocoDataModule):
    """One to a few real digits in each scene, with boxes and masks, as a COCO data set.

    The scenes are written once, see `write_scenes`.

    Args:
        scenes: What they are made of.
        folder: Where they are kept; None is the environment's OVERLOCK_CACHE, or
            ~/.cache/lightning_overlock.
        predict_dir: Images or folders of images to predict for; else the test scenes.
        batch_size: Images per process and step.
        num_workers: Processes that read images.
        hflip: Training: probability of a horizontal flip, which makes other signs of digits.
        max_image_pixels: Largest number of pixels of an image; null is no limit.

    Raises:
        InputError: An argument is out of its range.
    """

    training_options = frozenset({"hflip"})

    def __init__(
        self,
        scenes: SceneOptions = DEFAULT,
        folder: str | None = None,
        predict_dir: str | list[str] | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        hflip: float = 0.0,
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.scenes = scenes
        self.folder = scenes_folder(scenes, folder)
        jsons, images = self.folder / "annotations", self.folder / "images"
        super().__init__(
            train_json=str(jsons / "instances_train.json"),
            train_images=str(images / "train"),
            val_json=str(jsons / "instances_val.json"),
            val_images=str(images / "val"),
            test_json=str(jsons / "instances_test.json"),
            test_images=str(images / "test"),
            predict_dir=predict_dir,
            batch_size=batch_size,
            num_workers=num_workers,
            hflip=hflip,
            max_image_pixels=max_image_pixels,
        )
        self.own_images = predict_dir is not None

    def categories(self) -> list[tuple[int, str]]:
        """Return the categories' (id in the file, name); the scenes need not be there."""
        return CATEGORIES

    def prepare_data(self) -> None:
        """Write the scenes if they are not there, unless own images are predicted for."""
        predicts = self.trainer is not None and self.trainer.state.fn == "predict"
        if not (self.own_images and predicts):
            write_scenes(self.folder, self.scenes)

    def source(self, split: Split) -> CocoImages | FolderImages:
        """Return the scenes of a split; without a trainer nobody has prepared them."""
        if not (self.own_images and split == "predict"):
            write_scenes(self.folder, self.scenes)
        return super().source(split)


class DigitScenesSegmentationDataModule(SegmentationFolderDataModule):
    """One to a few real digits in each scene with a class for every pixel: background or a digit.

    The scenes are written once, see `write_scenes`.

    Args:
        scenes: What they are made of.
        folder: Where they are kept; None is the environment's OVERLOCK_CACHE, or
            ~/.cache/lightning_overlock.
        predict_dir: Images or folders of images to predict for; else the test scenes.
        batch_size: Images per process and step.
        num_workers: Processes that read images.
        crop_size: Training: side of the crops; None is the canvas's.
        ratio: Training: range of the factor that images are resized by.
        hflip: Training: probability of a horizontal flip, which makes other signs of digits.
        photometric: Training: change brightness, contrast, saturation and hue at random.
        max_image_pixels: Largest number of pixels of an image; null is no limit.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        scenes: SceneOptions = DEFAULT,
        folder: str | None = None,
        predict_dir: str | list[str] | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        crop_size: int | None = None,
        ratio: tuple[float, float] = (1.0, 1.0),
        hflip: float = 0.0,
        photometric: bool = False,
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.scenes = scenes
        self.folder = scenes_folder(scenes, folder)
        super().__init__(
            root=str(self.folder),
            test_images=str(self.folder / "images/test"),
            test_labels=str(self.folder / "labels/test"),
            class_names=["background", *CLASS_NAMES],
            predict_dir=predict_dir,
            batch_size=batch_size,
            num_workers=num_workers,
            crop_size=crop_size or scenes.canvas,
            resize=(scenes.canvas, scenes.canvas),
            ratio=ratio,
            # Digits are small: most crops are background.
            largest_share=1.0,
            hflip=hflip,
            photometric=photometric,
            max_image_pixels=max_image_pixels,
        )
        self.own_images = predict_dir is not None

    def prepare_data(self) -> None:
        """Write the scenes if they are not there, unless own images are predicted for."""
        predicts = self.trainer is not None and self.trainer.state.fn == "predict"
        if not (self.own_images and predicts):
            write_scenes(self.folder, self.scenes)

    def examine(self, split: Split) -> str:
        """Look for images to predict for; the scenes were written whole."""
        return super().examine(split) if split == "predict" else ""

    def source(self, split: Split) -> LabelledImages | ImageFiles:
        """Return the scenes of a split; without a trainer nobody has prepared them."""
        if not (self.own_images and split == "predict"):
            write_scenes(self.folder, self.scenes)
        return super().source(split)
