"""Objects with boxes and masks: COCO 2017, or any COCO json with a folder of images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.coco_annotations import MOST_CROWDS
from lightning_overlock.data.coco_file import (
    Category,
    CocoFile,
    Purpose,
    read_categories,
    read_coco,
    read_json,
)
from lightning_overlock.data.coco_objects import decode_mask
from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.data.dense_transforms import detection_transform, to_float, to_pixels
from lightning_overlock.data.images import MAX_PIXELS, ImageFiles, predict_files, read_image
from lightning_overlock.data.left_out import MAX_LEFT_OUT, LeftOut
from lightning_overlock.data.loading import (
    Collate,
    CorruptImage,
    Key,
    as_lists,
    global_seed,
    seeded,
)
from lightning_overlock.errors import InputError

# The splits and files that lie below COCO's own folder.
OF_ROOT = ("train", "val")
KINDS = ("json", "images")
ALL_PATHS = [f"{split}_{kind}" for split in (*OF_ROOT, "test") for kind in KINDS]


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
        seed: Seed of the augmentation.
        max_pixels: Most pixels of one image; None is no limit.
    """

    def __init__(
        self,
        file: CocoFile,
        kind: Purpose,
        transform: Callable[..., Any] | None = None,
        empty: bool = True,
        seed: int = 0,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
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
        image = read_image(path, self.max_pixels)
        pixels = F.to_image(image)
        height, width = image.height, image.width
        if self.kind != "predict" and [height, width] != file.sizes[index].tolist():
            raise CorruptImage(f"{path}: not as large any more as when the run began")
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
        # What a crop has cut away; a box of one pixel stays, however its sides are rounded.
        left, keep = F.sanitize_bounding_boxes(sample.pop("boxes"), min_size=0.99, min_area=0.98)
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
        max_pixels: Most pixels of one image; None is no limit.
    """

    def __init__(self, folder: Path, files: list[str], max_pixels: int | None = MAX_PIXELS) -> None:
        self.images = ImageFiles(folder, files, None, to_pixels, max_pixels=max_pixels)

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


def _lacks_a_path(options: Options) -> bool:
    return None in (options[f"{split}_{kind}"] for split in OF_ROOT for kind in KINDS)


def _may_leave_out(options: Options) -> bool:
    # Crowd regions are left out in any case; up to a half may be.
    return bool(options["skip_invalid"] or options["max_left_out"] > MOST_CROWDS)


class CocoDataModule(BaseDataModule):
    """COCO 2017 below `root`, or any COCO json with a folder of images for each split.

    Images are (3, H, W) float32 RGB in [0, 1] of any size, which the detector resizes and
    normalises; batches are two lists, (images, targets). Training targets have `boxes` (N, 4)
    float32, x1 y1 x2 y2 in pixels, `labels` (N,) int64 from 1, `masks` (N, H, W) uint8 where the
    file has segmentations, and `image_id`. As for COCO, crowd regions are not trained on and images
    without objects are left out. Evaluation targets have `image_id`, `file_name`, `size` (H, W) and
    `annotations`, the file's own with what `read_coco` computes, crowds included. What `predict`
    gives has `path` instead of annotations: images of `predict_dir`, or of the test split, or of
    the validation split.

    Whatever is left out is counted by reason and told when a run begins; see `read_coco` for what
    is checked.

    Args:
        root: Folder with annotations/instances_{train,val}2017.json, train2017/ and val2017/.
        train_json: The training split's json, instead of `root`'s.
        train_images: Folder of its images.
        val_json: The validation split's json.
        val_images: Folder of its images.
        test_json: The test split's json; may be without annotations to predict for it.
        test_images: Folder of its images.
        predict_dir: Images or folders, with their subfolders, to predict for.
        batch_size: Images per process and step.
        num_workers: Processes that read images; None: one fewer than the cores of this process,
            at most 16.
        hflip: Training: probability of a horizontal flip.
        scale_and_crop: Training: scale and crop every second image as DETR does, as the 3x
            schedule has it.
        group_by_shape: Training: steps of images that are all upright or all wide, to pad less.
        empty_images: Training: keep images without objects.
        masks: Read the objects' masks. None: as the task says (`model.masks`), and without a task
            where any object has one.
        skip_invalid: Leave invalid images, objects and polygons out instead of stopping. COCO's own
            training split has two boxes without an area.
        max_left_out: Largest share of the images, the boxes, or the boxes of a class that may be
            left out so.
        max_image_pixels: Largest number of pixels of an image, against files that fill the memory;
            null is no limit.

    Raises:
        InputError: A file or folder is missing, or see `read_coco`.
    """

    needs: ClassVar[dict[str, Need]] = {
        "root": ("one of train_json, train_images, val_json, val_images not given", _lacks_a_path),
        "max_left_out": (f"skip_invalid, or to be above {MOST_CROWDS} (crowds)", _may_leave_out),
    }
    labelled_options = frozenset(("root", *ALL_PATHS))
    training_options = frozenset(
        ("train_json", "train_images", "hflip", "scale_and_crop", "group_by_shape", "empty_images")
    )

    def __init__(
        self,
        root: str = "",
        train_json: str | None = None,
        train_images: str | None = None,
        val_json: str | None = None,
        val_images: str | None = None,
        test_json: str | None = None,
        test_images: str | None = None,
        predict_dir: str | list[str] | None = None,
        batch_size: int = 2,
        num_workers: int | None = None,
        hflip: float = 0.5,
        scale_and_crop: bool = False,
        group_by_shape: bool = True,
        empty_images: bool = False,
        masks: bool | None = None,
        skip_invalid: bool = False,
        max_left_out: float = MAX_LEFT_OUT,
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_invalid, max_left_out, max_image_pixels)
        if not 0 <= hflip <= 1:
            raise InputError(f"data.hflip is {hflip}; expected a probability")
        given = {
            "train": (train_json, train_images),
            "val": (val_json, val_images),
            "test": (test_json, test_images),
        }
        options = {
            f"{split}_{kind}": path
            for split, paths in given.items()
            for kind, path in zip(KINDS, paths, strict=True)
        } | {"root": root, "skip_invalid": skip_invalid, "max_left_out": max_left_out}
        warn_of_unused("data", type(self), options, self.needs)
        self.paths = _paths(root, given)
        self.predict_dir: Path | None = None
        if predict_dir is not None:
            self.predict_dir, self.predict_files = predict_files(predict_dir)
        self.hflip = hflip
        self.scale_and_crop = scale_and_crop
        self.group_by_shape = group_by_shape
        self.empty_images = empty_images
        self.masks = masks
        self._files: dict[tuple[str, Purpose, bool | None], CocoFile] = {}
        self._take(self.categories())

    def _take(self, categories: Sequence[Category]) -> None:
        self.class_names = [name for _, name in categories]
        self.category_ids = [category for category, _ in categories]

    def categories(self) -> list[Category]:
        """Return the categories' (id in the file, name) in the order of their labels."""
        if not self.paths and self.predict_dir is None:
            raise InputError("found neither data.root nor data.val_json\nexpected one of them")
        for split in ("val", "train", "test"):  # the validation split's file is the shorter one
            if split in self.paths:
                path, _ = self.paths[split]
                try:
                    return read_categories(path, read_json(path))
                except InputError:
                    if self.predict_dir is None:
                        raise
        return []  # a checkpoint knows its own

    def prediction_state(self) -> dict[str, Any]:
        """Return what `predict` must know of the training data, in plain types."""
        return {"class_names": list(self.class_names), "category_ids": list(self.category_ids)}

    def load_prediction_state(self, state: dict[str, Any]) -> None:
        """Take what `prediction_state` has returned in training, in place of the data's own."""
        self._take(list(zip(state["category_ids"], state["class_names"], strict=True)))

    @property
    def wants_masks(self) -> bool | None:
        """Whether masks are wanted: by the argument, the task, or None where nobody says it."""
        task = getattr(self.trainer, "lightning_module", None)
        wanted: bool | None = getattr(task, "hparams", {}).get("masks")
        if None not in (wanted, self.masks) and wanted != self.masks:
            found = f"data.masks is {self.masks}, model.masks is {wanted}".lower()
            raise InputError(f"{found}\nexpected the same, or no data.masks")
        return wanted if self.masks is None else self.masks

    def file(self, split: str, purpose: Purpose) -> CocoFile:
        """Return the checked json of a split.

        Raises:
            InputError: There is none, it is broken, or it has other categories.
        """
        key = split, purpose, self.wants_masks
        if key not in self._files:
            if split not in self.paths:
                raise InputError(
                    f"there is no {split} split\nexpected data.{split}_json and data.{split}_images"
                )
            path, folder = self.paths[split]
            file = read_coco(
                path,
                folder,
                purpose,
                self.wants_masks,
                # A missing image costs its own prediction, not those of the others.
                self.skip_corrupt or purpose == "predict",
                1.0 if purpose == "predict" else self.max_left_out,
                self.max_image_pixels,
            )
            own = list(zip(self.category_ids, self.class_names, strict=True))
            if purpose != "predict" and sorted(file.categories) != sorted(own):
                raise InputError(
                    f"{path} has {len(file.categories)} categories, other splits have {len(own)}, "
                    "or they differ in id or name\nexpected the same in every split"
                )
            self._files[key] = file._replace(categories=own)
        return self._files[key]

    def examine(self, split: Split) -> str:
        """Check a split before anything long begins, and return what is left out of it."""
        source = self.source(split)
        if isinstance(source, FolderImages):
            return self.predict_files.summary()
        notes = list(source.file.notes)
        if len(source) < len(source.file.ids):
            empty = np.flatnonzero(~source.file.has_objects)
            left_out = LeftOut("images")
            first = os.fsdecode(source.file.names[empty[0]])
            left_out.add("without an object to train on", first, len(empty))
            notes.append(left_out.summary(len(source.file.ids)))
        return "; ".join(notes)

    def places(self, split: Split) -> list[Path]:
        """Return the json and the folder of a split."""
        return list(self.paths.get(split, ()))

    def source(self, split: Split) -> CocoImages | FolderImages:
        """Return the images of a split."""
        limit = self.max_image_pixels
        if split == "predict":
            if self.predict_dir is not None:
                return FolderImages(self.predict_dir, self.predict_files.files, limit)
            given = "test" if "test" in self.paths else "val"
            return CocoImages(self.file(given, "predict"), "predict", max_pixels=limit)
        if split != "train":
            return CocoImages(self.file(split, "eval"), "eval", max_pixels=limit)
        file = self.file("train", "train")
        if not self.empty_images and not file.has_objects.any():
            raise InputError(
                f"{self.paths['train'][0]}: no image has an object to train on\n"
                "expected annotations, or data.empty_images true"
            )
        return CocoImages(
            file,
            "train",
            detection_transform(self.hflip, self.scale_and_crop),
            self.empty_images,
            global_seed(),
            max_pixels=limit,
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


def _paths(
    root: str, given: dict[str, tuple[str | None, str | None]]
) -> dict[str, tuple[Path, Path]]:
    """Return each split's json and folder: those given, else COCO's own below `root`."""
    paths = {}
    for split, (file, folder) in given.items():
        if root and split in OF_ROOT:
            file = file or str(Path(root) / f"annotations/instances_{split}2017.json")
            folder = folder or str(Path(root) / f"{split}2017")
        if (file is None) != (folder is None):
            raise InputError(
                f"found data.{split}_json {file} and data.{split}_images {folder}\n"
                "expected both or neither"
            )
        if file is not None and folder is not None:
            paths[split] = Path(file), Path(folder)
    return paths
