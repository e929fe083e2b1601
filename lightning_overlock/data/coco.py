"""Objects with boxes and masks: COCO 2017, or any COCO json with a folder of images."""

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.dense_transforms import detection_transform, to_float, to_pixels
from lightning_overlock.data.images import ImageFiles, predict_files, read_image
from lightning_overlock.data.loading import (
    Collate,
    CorruptImage,
    Key,
    as_lists,
    global_seed,
    seeded,
)
from lightning_overlock.errors import InputError

SKIP = "expected the file to be repaired, or data.skip_invalid to be true"


class CocoFile(NamedTuple):
    """A COCO json, checked.

    Nothing here is a list of Python objects: those would be copied into every worker bit by bit, as
    each look at one changes its reference count.

    Attributes:
        folder: Where the images lie.
        categories: The categories' (id, name) in the file's order; label i is `categories[i - 1]`.
        ids: (N,) int64, the images' ids.
        names: (N,) bytes, the images' file names.
        sizes: (N, 2) int64, their heights and widths.
        has_objects: (N,) bool, whether an image has objects that are no crowds.
        has_masks: Whether objects have a segmentation.
        content: The annotations of all images as JSON, one list after the other.
        offsets: (N + 1,) int64, where the images' lists begin and end.
    """

    folder: str
    categories: list[tuple[int, str]]
    ids: NDArray[np.int64]
    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    has_objects: NDArray[np.bool_]
    has_masks: bool
    content: bytes
    offsets: NDArray[np.int64]

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of an image as they are in the file."""
        found: list[dict[str, Any]] = json.loads(
            self.content[self.offsets[index] : self.offsets[index + 1]]
        )
        return found


def read_coco(
    path: str | Path, folder: str | Path, skip_invalid: bool = False, annotated: bool = True
) -> CocoFile:
    """Read and check a COCO json.

    Args:
        path: The json.
        folder: Where its images lie.
        skip_invalid: Leave invalid images and annotations out with a warning that counts them.
        annotated: False takes a file without annotations, as of a test set.

    Raises:
        InputError: The file is no COCO json. Or, unless skipped: an image is missing or there
            twice; an annotation is there twice, of an unknown image or category, has a box without
            an area within the image, or a broken segmentation.
    """
    path, folder = Path(path), Path(folder)
    data = _read_json(path)
    if not annotated:
        data.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list) or not all(isinstance(e, dict) for e in data[key]):
            raise InputError(f"{path}: no list of objects '{key}'\nexpected a COCO json")
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder\nexpected the images of {path}")
    categories = _categories(path, data["categories"])
    problems: list[str] = []

    def complain(text: str) -> None:
        if not skip_invalid:
            raise InputError(f"{path}: {text}\n{SKIP}")
        problems.append(text)

    images = _check_images(data["images"], folder, complain)
    has_masks = any(a.get("segmentation") for a in data["annotations"])
    known = {category for category, _ in categories}
    of_image: dict[int, list[dict[str, Any]]] = {image: [] for image in images}
    seen: set[int] = set()
    dropped = {e["id"] for e in data["images"] if _is_int(e.get("id"))} - images.keys()
    for annotation in data["annotations"]:
        image = annotation.get("image_id")
        if not _is_int(image):
            complain(f"annotation {annotation.get('id')} has the image_id {image}, no integer")
            continue
        if image in dropped:  # of an image that was complained of already
            continue
        if problem := _problem(annotation, images.get(image), known, seen, has_masks):
            complain(f"annotation {annotation.get('id')} {problem}")
            continue
        seen.add(annotation["id"])
        # pycocotools wants both, and other programs leave them away.
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        of_image[image].append(annotation)
    if problems:
        some = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        warnings.warn(f"{path}: {len(problems)} invalid entries left out: {some}", stacklevel=2)
    if not images:
        raise InputError(f"{path}: no images\nexpected at least one")
    lists = [json.dumps(found, separators=(",", ":")).encode() for found in of_image.values()]
    return CocoFile(
        folder=str(folder),
        categories=categories,
        ids=np.array(list(images)),
        names=np.array([os.fsencode(entry["file_name"]) for entry in images.values()]),
        sizes=np.array([(entry["height"], entry["width"]) for entry in images.values()]),
        has_objects=np.array([any(not a["iscrowd"] for a in f) for f in of_image.values()]),
        has_masks=has_masks,
        content=b"".join(lists),
        offsets=np.cumsum([0, *(len(one) for one in lists)]),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}\nexpected a COCO json") from error
    except ValueError as error:  # broken JSON, or bytes that are no text
        raise InputError(f"{path}: no intact JSON ({error})\nexpected a COCO json") from error
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: a {type(data).__name__} where a COCO json has an object\n"
            "expected the keys images, annotations and categories"
        )
    return data


def _categories(path: Path, entries: list[dict[str, Any]]) -> list[tuple[int, str]]:
    categories = []
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not _is_int(number) or not isinstance(name, str):
            raise InputError(f"{path}: category {number} '{name}'\nexpected an integer id, a name")
        categories.append((number, name))
    if len({number for number, _ in categories}) < len(categories):
        raise InputError(f"{path}: two categories have one id\nexpected an id for each")
    if not categories:
        raise InputError(f"{path}: no categories\nexpected at least one")
    return categories


def _check_images(
    entries: list[dict[str, Any]], folder: Path, complain: Callable[[str], None]
) -> dict[int, dict[str, Any]]:
    """Return the valid images by their ids."""
    images: dict[int, dict[str, Any]] = {}
    listings: dict[Path, set[str]] = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("file_name")
        if not _is_int(number) or not isinstance(name, str):
            complain(f"image {number} '{name}' (an integer id and a file_name are expected)")
            continue
        file = folder / name
        if file.parent not in listings:  # one look per folder, not one per image
            there = file.parent.iterdir() if file.parent.is_dir() else ()
            listings[file.parent] = {path.name for path in there}
        if number in images:
            complain(f"two images have the id {number}")
        elif not all(_is_int(entry.get(key)) and entry[key] > 0 for key in ("height", "width")):
            complain(f"image {number} has height {entry.get('height')}, width {entry.get('width')}")
        elif file.name not in listings[file.parent]:
            complain(f"image {number}: there is no file {file}")
        else:
            images[number] = entry
    return images


def _problem(
    annotation: dict[str, Any],
    image: dict[str, Any] | None,
    known: set[int],
    seen: set[int],
    has_masks: bool,
) -> str:
    """Return what is wrong with an annotation, "" if nothing is."""
    if not _is_int(annotation.get("id")):
        return f"of image {annotation.get('image_id')} has no integer id"
    if annotation["id"] in seen:
        return "is there twice"
    if image is None:
        return f"is of image {annotation.get('image_id')}, which is not there"
    category = annotation.get("category_id")
    if not _is_int(category) or category not in known:
        return f"is of category {category}, which is not there"
    box = annotation.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(side, int | float) and math.isfinite(side) for side in box)
    ):
        return f"has the bbox {box}; [x, y, width, height] is expected"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"has the bbox {box}, which has no area"
    inside = left < image["width"] and top < image["height"] and left + width > 0
    if not (inside and top + height > 0):
        return f"has the bbox {box} outside of its image of {image['width']} x {image['height']}"
    return _mask_problem(annotation.get("segmentation"), image) if has_masks else ""


def _mask_problem(segmentation: Any, image: dict[str, Any]) -> str:
    if not segmentation:
        return "has no segmentation while others have one"
    size = [image["height"], image["width"]]
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if segmentation.get("size") != size:
            return f"has an RLE of size {segmentation.get('size')}, its image has {size}"
        if isinstance(counts, list):
            whole = all(_is_int(c) and c >= 0 for c in counts) and sum(counts) == size[0] * size[1]
        else:
            whole = isinstance(counts, str) and counts.isascii()
        return "" if whole else "has an RLE whose counts do not fill its image"
    polygons = isinstance(segmentation, list) and all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) for value in polygon)
        for polygon in segmentation
    )
    return "" if polygons else "has a segmentation that is neither polygons nor RLE"


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return polygons or RLE, compressed or not, as a mask (H, W) of 0 and 1."""
    if isinstance(segmentation, list):
        codes = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        codes = coco_mask.frPyObjects(segmentation, height, width)
    else:
        codes = segmentation
    mask: NDArray[np.uint8] = coco_mask.decode(codes)
    return mask


class CocoImages:
    """Images of a COCO json with targets.

    Items for training are (image, {boxes, labels, masks, image_id}), augmented; for evaluation
    (image, {image_id, file_name, size, annotations}); for prediction (image, {image_id, file_name,
    path, size}). See `CocoDataModule`.

    Args:
        file: The json.
        kind: What the items are for.
        transform: Training: augments (image, boxes, masks).
        empty: Training: keep images without objects.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        file: CocoFile,
        kind: Literal["train", "eval", "predict"],
        transform: Callable[..., Any] | None = None,
        empty: bool = True,
        seed: int = 0,
    ) -> None:
        self.file = file
        self.kind = kind
        self.transform = transform
        self.seed = seed
        self.chosen = np.arange(len(file.ids)) if empty else np.flatnonzero(file.has_objects)
        self.label_of = {category: i for i, (category, _) in enumerate(file.categories, 1)}

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Any]]:
        index = int(self.chosen[key.index])
        file = self.file
        name = os.fsdecode(file.names[index])
        path = os.path.join(file.folder, name)  # noqa: PTH118
        image = read_image(path)
        height, width = file.sizes[index].tolist()
        if image.size != (width, height):
            raise CorruptImage(
                f"{path}: {image.width} x {image.height} pixels (turned as its EXIF says), but "
                f"{width} x {height} in the annotations\n{SKIP}"
            )
        pixels = F.to_image(image)
        if self.kind == "train":
            with seeded(self.seed, key.epoch, key.index):
                return self._augmented(index, pixels)
        target = {"image_id": int(file.ids[index]), "file_name": name, "size": (height, width)}
        if self.kind == "eval":
            target["annotations"] = file.annotations(index)
        else:
            target["path"] = path
        return to_float(pixels), target

    def _augmented(self, index: int, image: tv_tensors.Image) -> tuple[Tensor, dict[str, Any]]:
        height, width = image.shape[-2:]
        objects = [a for a in self.file.annotations(index) if not a["iscrowd"]]
        corners = np.array([a["bbox"] for a in objects], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(corners), format="XYXY", canvas_size=(height, width)
        )
        labels = torch.tensor([self.label_of[a["category_id"]] for a in objects], dtype=torch.int64)
        sample: dict[str, Any] = {"image": image, "boxes": F.clamp_bounding_boxes(boxes)}
        if self.file.has_masks:
            masks = [decode_mask(a["segmentation"], height, width) for a in objects]
            stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)
            sample["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        if self.transform is not None:
            sample = self.transform(sample)
        # What a crop has cut away.
        left, keep = F.sanitize_bounding_boxes(sample.pop("boxes"), min_size=1)
        target: dict[str, Any] = {
            "boxes": left.as_subclass(Tensor),
            "labels": labels[keep],
            "image_id": int(self.file.ids[index]),
        }
        if "masks" in sample:
            target["masks"] = sample["masks"].as_subclass(Tensor)[keep]
        return to_float(sample["image"]), target


class FolderImages:
    """Images of a folder without annotations: items (image, {image_id, file_name, path, size}).

    Args:
        folder: Where `files` lie.
        files: Paths relative to the folder; their places from 1 are the images' ids.
    """

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.images = ImageFiles(folder, files, None, to_pixels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Tensor, dict[str, Any]]:
        image, path = self.images[key]
        return image, {
            "image_id": key.index + 1,
            "file_name": os.fsdecode(self.images.files[key.index]),
            "path": path,
            "size": tuple(image.shape[-2:]),
        }


class CocoDataModule(BaseDataModule):
    """COCO 2017 below `root`, or any COCO json with a folder of images for each split.

    Images are (3, H, W) float32 RGB in [0, 1] of any size, which the detector resizes and
    normalises; batches are two lists, (images, targets). Training targets have `boxes` (N, 4)
    float32, x1 y1 x2 y2 in pixels, `labels` (N,) int64 from 1, `masks` (N, H, W) uint8 where the
    file has segmentations, and `image_id`. As for COCO, crowd regions are not trained on and images
    without objects are left out. Evaluation targets have `image_id`, `file_name`, `size` (H, W) and
    `annotations`, the file's own, crowds included. What `predict` gives has `path` instead of
    annotations: images of `predict_dir`, or of the test split, or of the validation split.

    Args:
        root: folder with annotations/instances_{train,val}2017.json, train2017/ and val2017/.
        train_json: the training split's json, instead of `root`'s.
        train_images: folder of its images.
        val_json: the validation split's json.
        val_images: folder of its images.
        test_json: the test split's json; may be without annotations to predict for it.
        test_images: folder of its images.
        predict_dir: any folder of images to predict for, with its subfolders.
        batch_size: images per process and step.
        num_workers: processes that read images; None: one fewer than the cores of this process,
            at most 16.
        hflip: training: probability of a horizontal flip.
        scale_and_crop: training: scale and crop every second image as DETR does, as the 3x
            schedule has it.
        group_by_shape: training: steps of images that are all upright or all wide, to pad less.
        empty_images: training: keep images without objects.
        skip_invalid: leave invalid images and annotations out with a warning that counts them,
            instead of stopping. COCO's own training split has two boxes without an area.

    Raises:
        InputError: a file or folder is missing, or see `read_coco`.
    """

    def __init__(
        self,
        root: str = "",
        train_json: str | None = None,
        train_images: str | None = None,
        val_json: str | None = None,
        val_images: str | None = None,
        test_json: str | None = None,
        test_images: str | None = None,
        predict_dir: str | None = None,
        batch_size: int = 2,
        num_workers: int | None = None,
        hflip: float = 0.5,
        scale_and_crop: bool = False,
        group_by_shape: bool = True,
        empty_images: bool = False,
        skip_invalid: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_corrupt=skip_invalid)
        if not 0 <= hflip <= 1:
            raise InputError(f"data.hflip is {hflip}; expected a probability")
        given = {
            "train": (train_json, train_images),
            "val": (val_json, val_images),
            "test": (test_json, test_images),
        }
        self.paths: dict[str, tuple[Path, Path]] = {}
        for split, (file, folder) in given.items():
            if root and split != "test":
                file = file or str(Path(root) / f"annotations/instances_{split}2017.json")
                folder = folder or str(Path(root) / f"{split}2017")
            if (file is None) != (folder is None):
                raise InputError(
                    f"found data.{split}_json {file} and data.{split}_images {folder}\n"
                    "expected both or neither"
                )
            if file is not None and folder is not None:
                self.paths[split] = Path(file), Path(folder)
        self.predict_dir: Path | None = None
        if predict_dir is not None:
            self.predict_dir, self.predict_files = predict_files(predict_dir)
        self.hflip = hflip
        self.scale_and_crop = scale_and_crop
        self.group_by_shape = group_by_shape
        self.empty_images = empty_images
        self._files: dict[str, CocoFile] = {}
        categories = self.categories()
        self.class_names = [name for _, name in categories]
        self.category_ids = [category for category, _ in categories]

    def categories(self) -> list[tuple[int, str]]:
        """Return the categories' (id in the file, name) in the order of their labels."""
        if not self.paths and self.predict_dir is None:
            raise InputError("found neither data.root nor data.val_json\nexpected one of them")
        for split in ("val", "train", "test"):  # the validation split's file is the shorter one
            if split in self.paths:
                return self.file(split).categories
        return []  # a checkpoint knows its own

    def file(self, split: str) -> CocoFile:
        """Return the checked json of a split.

        Raises:
            InputError: there is none, it is broken, or it has other categories.
        """
        if split not in self._files:
            if split not in self.paths:
                raise InputError(
                    f"there is no {split} split\nexpected data.{split}_json and data.{split}_images"
                )
            path, folder = self.paths[split]
            file = read_coco(path, folder, self.skip_corrupt, annotated=split != "test")
            for other, known in self._files.items():
                if file.categories != known.categories:
                    raise InputError(
                        f"{path} has {len(file.categories)} categories, {self.paths[other][0]} has "
                        f"{len(known.categories)}, or they differ in order, id or name\n"
                        "expected the same in every split"
                    )
            self._files[split] = file
        return self._files[split]

    def setup(self, stage: str) -> None:
        """Read what the stage needs, so that mistakes are found before anything is trained."""
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(
            stage, ()
        ):
            self.file(split)

    def source(self, split: Split) -> CocoImages | FolderImages:
        """Return the images of a split."""
        if split == "predict":
            if self.predict_dir is not None:
                return FolderImages(self.predict_dir, self.predict_files.files)
            return CocoImages(self.file("test" if "test" in self.paths else "val"), "predict")
        if split != "train":
            return CocoImages(self.file(split), "eval")
        file = self.file("train")
        if not self.empty_images and not file.has_objects.any():
            raise InputError(f"{self.paths['train'][0]}: no image has an object to train on")
        return CocoImages(
            file,
            "train",
            detection_transform(self.hflip, self.scale_and_crop),
            self.empty_images,
            global_seed(),
        )

    def collate(self, split: Split) -> Collate:  # noqa: ARG002
        """Return what makes two lists of the items."""
        return as_lists

    def groups(self, source: CocoImages) -> NDArray[np.integer[Any]] | None:
        """Return 1 for upright training images and 0 for wide ones."""
        if not self.group_by_shape:
            return None
        height, width = source.file.sizes[source.chosen].T
        return (height > width).astype(np.int64)
