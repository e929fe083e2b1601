"""Images with a class for every pixel: folders of images and of label maps."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_overlock.data.base import BaseDataModule, Split
from lightning_overlock.data.class_names import (
    check_class_names,
    read_class_names,
    warn_if_other,
)
from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.data.dense_transforms import segmentation_transform, to_pixels
from lightning_overlock.data.images import (
    MAX_PIXELS,
    FoundImages,
    ImageFiles,
    listing,
    predict_files,
)
from lightning_overlock.data.label_maps import (
    Colour,
    LabelCode,
    colour_of,
    label_code,
    palette_of,
)
from lightning_overlock.data.label_pairs import (
    Pair,
    Problem,
    compare_sizes,
    match_pairs,
)
from lightning_overlock.data.label_survey import (
    Content,
    classes_in,
    judge,
    numbered_classes,
    sample,
    survey,
)
from lightning_overlock.data.labelled_images import LabelledImages
from lightning_overlock.data.left_out import MAX_LEFT_OUT, LeftOut, refuse_if_too_many
from lightning_overlock.data.loading import (
    Collate,
    as_lists,
    global_seed,
    stack,
)
from lightning_overlock.data.orientation import tell_hidden_turns
from lightning_overlock.errors import InputError, printable


def _uses_root(options: Options) -> bool:
    if None in (*options["train"], *options["val"]):
        return True
    root = Path(options["root"])
    tests = None in options["test"] and (root / "images/test").is_dir()
    return tests or (options["class_names"] is None and (root / "classes.txt").is_file())


class SegmentationFolderDataModule(BaseDataModule):
    """Images in one folder and label maps of the same names in another, for each split.

    Below `root` these are images/{train,val,test} and labels/{train,val,test}, subfolders included;
    test, or its labels, may be missing. A label map is a PNG, or another file without loss, that is
    grey (8 or 16 bits) or has a palette; its values are the class numbers unless `label_values`
    says otherwise, and 255 is ignored. It belongs to the image as a viewer shows it, turned as EXIF
    says. Images are float32 RGB in [0, 1], which the task normalises. Training batches are (images
    (B, 3, H, W), labels (B, H, W) int64), crops of one size; evaluation batches two lists, (images,
    labels), at the files' own sizes; `predict` has (images, paths): of `predict_dir`, or of the
    test split, or of the validation split.

    Before training, all sizes are compared, and the values of as many label maps as can be read in
    seconds (`label_survey.PIXELS_READ`) are held against the classes; every map is checked again as
    it is read.

    Args:
        root: Folder of the splits.
        train_images: Folder of training images, instead of `root`'s.
        train_labels: Folder of their label maps.
        val_images: Folder of validation images.
        val_labels: Folder of their label maps.
        test_images: Folder of test images.
        test_labels: Folder of their label maps; not needed to predict.
        class_names: The names, or a text file with one per line. None: `root`/classes.txt; without
            it, all training labels are read and the classes are called 0, 1, … to the largest.
        label_values: The value of each class in the files, in the classes' order: numbers such as
            [0, 255], or colours such as [[0, 0, 0], [255, 0, 0]]. None: values are class numbers.
        reduce_zero_label: 0 in the files is no class and 1 is the first, as in ADE20K.
        predict_dir: Images or folders, with their subfolders, to predict for.
        batch_size: Images per process and step.
        num_workers: Processes that read images; None: one fewer than the cores of this process,
            at most 16.
        crop_size: Training: side of the crops, or (height, width).
        resize: Training: longest long side and longest short side, times a random ratio; the image
            is made as large as fits both.
        ratio: Training: smallest and largest of that ratio.
        largest_share: Training: of ten crops, the first in which no class has this share.
        hflip: Training: probability of a horizontal flip.
        photometric: Training: change brightness, contrast, saturation and hue at random.
        skip_invalid: Leave pairs that are incomplete or do not fit out and count them, instead of
            stopping.
        max_left_out: Largest share of a split's files that may be left out.
        max_image_pixels: Largest number of pixels of an image, against files that fill the memory;
            null is no limit.

    Raises:
        InputError: A folder is missing or empty, an image has no label map, a label map no image,
            another size or other values than the classes have, or an argument is out of its range.
    """

    needs: ClassVar[dict[str, Need]] = {
        "root": ("a folder of train, val or test not given, or classes.txt in it", _uses_root)
    }
    labelled_options = frozenset(
        ("root", "train_images", "train_labels", "val_images", "val_labels", "test_images")
    ) | {"test_labels", "class_names", "label_values", "reduce_zero_label"}
    training_options = frozenset(
        ("crop_size", "resize", "ratio", "largest_share", "hflip", "photometric")
    )

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
        label_values: list[int] | list[tuple[int, int, int]] | None = None,
        reduce_zero_label: bool = False,
        predict_dir: str | list[str] | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        crop_size: int | tuple[int, int] = 512,
        resize: tuple[int, int] = (2048, 512),
        ratio: tuple[float, float] = (0.5, 2.0),
        largest_share: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
        skip_invalid: bool = False,
        max_left_out: float = MAX_LEFT_OUT,
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers, skip_invalid, max_left_out, max_image_pixels)
        self.root = root
        self.given_names = class_names
        self.label_values = label_values
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
        options = {"root": root, "class_names": class_names, **given}
        warn_of_unused("data", type(self), options, self.needs)
        self.folders: dict[str, tuple[Path, Path | None]] = {}
        for split, (images, labels) in given.items():
            if root and (split != "test" or Path(root, "images/test").is_dir()):
                images = images or str(Path(root, "images", split))
                labels = labels or str(Path(root, "labels", split))
            if images is None and labels is None:
                continue
            if images is None or (labels is None and split != "test"):
                raise InputError(
                    f"found data.{split}_images {images} and data.{split}_labels {labels}\n"
                    "expected both or neither"
                )
            self.folders[split] = Path(images), None if labels is None else Path(labels)
        if not self.folders and predict_dir is None:
            raise InputError("found neither data.root nor data.train_images\nexpected one of them")
        self._pairs: dict[str, list[Pair]] = {}
        self._left_out: dict[str, LeftOut] = {}
        self._passed_over: dict[str, str] = {}
        self._contents: dict[str, list[Content]] = {}
        self._palettes: dict[int, tuple[Colour, Path]] = {}
        self._predicted = None if predict_dir is None else predict_files(predict_dir)
        if self._predicted is None:  # else the training data may be gone
            _ = self.code

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

    # Classes

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The classes' names: as given, or the values of the classes in the files."""
        given = self.given_names
        own = Path(self.root, "classes.txt")
        there = bool(self.root) and own.is_file()
        if isinstance(given, list):
            check_class_names(given, "data.class_names")
        if given is not None:
            names = read_class_names(Path(given)) if isinstance(given, str) else list(given)
            if there:
                warn_if_other(names, own)
            return names
        if there:
            return read_class_names(own)
        if self.label_values is not None:
            code = label_code(len(self.label_values), False, self.label_values)
            values = code.values or ()
            return [f"#{value:06x}" if code.colours else str(value) for value in values]
        if "train" not in self.folders:
            raise InputError(
                "found no names of classes and no training labels\n"
                "expected data.class_names, or data.train_images and data.train_labels"
            )
        labels = self._labels("train")
        files = [labels / label for _, label in self.pairs("train")]
        self._contents["train"] = survey(files, False, self.max_image_pixels)
        return numbered_classes(self._contents["train"], self.reduce_zero_label, labels)

    @property
    def code(self) -> LabelCode:
        """Which value in the files is which class."""
        return label_code(len(self.class_names), self.reduce_zero_label, self.label_values)

    @cached_property
    def palette(self) -> list[Colour]:
        """The classes' colours: given, or of the first training label's palette; [] for none."""
        given = self._written_code()
        if given.colours and given.values:
            return [colour_of(value) for value in given.values]
        if "train" not in self.folders or not self._labels("train").is_dir():
            return []
        with Image.open(self._labels("train") / self.pairs("train")[0][1]) as image:
            colours = dict(enumerate(palette_of(image)))
        first = int(self.reduce_zero_label)
        values = given.values or range(first, first + len(self.class_names))
        found = [colours[value] for value in values if value in colours]
        return found if len(found) == len(self.class_names) else []

    def label_image(self, labels: NDArray[np.integer[Any]]) -> Image.Image:
        """Return predicted classes (H, W) as a label map with the values of the data's own."""
        return self._written_code().encode(labels)

    def _written_code(self) -> LabelCode:
        """Return the code as far as it is known without the names of the classes."""
        return label_code(len(self.label_values or [0]), self.reduce_zero_label, self.label_values)

    def prediction_state(self) -> dict[str, Any]:
        """Return the classes' names, values and colours."""
        values = self.label_values
        return {
            **super().prediction_state(),
            "label_values": values and [v if isinstance(v, int) else list(v) for v in values],
            "reduce_zero_label": self.reduce_zero_label,
            "palette": [list(colour) for colour in self.palette],
        }

    def load_prediction_state(self, state: dict[str, Any]) -> None:
        """Take what `prediction_state` has returned in training."""
        super().load_prediction_state(state)
        self.label_values = state.get("label_values", self.label_values)
        self.reduce_zero_label = state.get("reduce_zero_label", self.reduce_zero_label)
        self.palette = [(red, green, blue) for red, green, blue in state.get("palette", [])]

    # Files

    def pairs(self, split: str) -> list[Pair]:
        """Return the (image, label map) of a split, sorted, relative to their folders.

        Raises:
            InputError: There is no such split, or, unless invalid ones are skipped, one of a pair
                is missing.
        """
        if split in self._pairs:
            return self._pairs[split]
        labels = self._labels(split)
        images = self.folders[split][0]
        for kind, folder in (("images", images), ("labels", labels)):
            if not folder.is_dir():
                raise InputError(
                    f"{printable(folder)}: no folder\nexpected the {kind} of the {split} split"
                )
        matched = match_pairs(images, labels)
        self._left_out[split] = LeftOut("files")
        self._left_out[split].merge(matched.found.left_out)
        passed_over = matched.found.passed_over
        self._passed_over[split] = (
            f"passed over {passed_over.reasons()}" if passed_over.total else ""
        )
        if not matched.pairs:
            raise InputError(
                f"{printable(images)}: no images with label maps in {printable(labels)}\n"
                f"found {listing(images)}; {listing(labels)}\n"
                "expected files of the same names but for the suffix"
            )
        self._leave_out(split, matched.problems, len(matched.pairs))
        self._pairs[split] = matched.pairs
        return matched.pairs

    def _labels(self, split: str) -> Path:
        if split not in self.folders or self.folders[split][1] is None:
            found = "has no labels" if split in self.folders else "is not there"
            raise InputError(
                f"the {split} split {found}\nexpected data.{split}_images and data.{split}_labels"
            )
        return cast("Path", self.folders[split][1])

    def _leave_out(self, split: str, problems: list[Problem], used: int) -> None:
        """Stop at the first problem, or count all."""
        problems = sorted(problems, key=lambda problem: problem.message)
        if problems and not self.skip_corrupt:
            first, *rest = problems[0].message.split("\n")
            more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
            raise InputError("\n".join([first + more, *rest]))
        left_out = self._left_out[split]
        for problem in problems:
            left_out.add(problem.reason, problem.file)
        source = printable(self.folders[split][0])
        refuse_if_too_many(source, left_out, used + left_out.total, self.max_left_out)

    def examine(self, split: Split) -> str:
        """Compare the sizes of images and label maps, and look at the labels' values."""
        if split == "predict":
            return self._unlabelled()[1].summary()
        pairs, labels = self.pairs(split), self._labels(split)
        files = [(self.folders[split][0] / image, labels / label) for image, label in pairs]
        problems, pixels, hidden_turns = compare_sizes(files, self.max_image_pixels)
        kept = [number for number, problem in enumerate(problems) if not problem]
        self._leave_out(split, [problem for problem in problems if problem], len(kept))
        self._pairs[split] = [pairs[number] for number in kept]
        told = self._look_at_labels(split, [files[number][1] for number in kept], pixels)
        if hidden_turns:
            told.append(tell_hidden_turns(hidden_turns, "label maps"))
        if self._left_out[split].total:
            left_out = self._left_out[split]
            told.insert(0, left_out.summary(len(kept) + left_out.total))
        return "; ".join(filter(None, [*told, self._passed_over[split]]))

    def places(self, split: Split) -> list[Path]:
        """Return the folders of a split."""
        return [folder for folder in self.folders.get(split, ()) if folder is not None]

    def _look_at_labels(self, split: str, paths: list[Path], pixels: int) -> list[str]:
        code, limit = self.code, self.max_image_pixels
        contents = self._contents.pop(split, None)  # there if the classes were named by it
        if contents is None:
            contents = survey(sample(paths, pixels), code.colours, limit)
            rare = len(classes_in(contents, code)) < 2
            if rare and len(contents) < len(paths):  # rare, or not there at all
                contents = survey(paths, code.colours, limit)
        told = judge(
            contents,
            code,
            self.class_names,
            self._labels(split),
            training=split == "train",
            skip=self.skip_corrupt,
            max_left_out=self.max_left_out,
            palettes=self._palettes,
        )
        if len(contents) < len(paths):
            told.append(
                f"the values of {len(contents):,} of {len(paths):,} label maps were looked at, and "
                "each is when it is read"
            )
        return told

    def _unlabelled(self) -> tuple[Path, FoundImages]:
        """Return the folder to predict for, and its images."""
        if self._predicted is None:
            name = "test" if "test" in self.folders else "val"
            if name not in self.folders:
                raise InputError("found nothing to predict for\nexpected data.predict_dir")
            self._predicted = predict_files(self.folders[name][0])
        return self._predicted

    def source(self, split: Split) -> LabelledImages | ImageFiles:
        """Return the images of a split."""
        if split == "predict":
            folder, found = self._unlabelled()
            return ImageFiles(
                folder, found.files, None, to_pixels, max_pixels=self.max_image_pixels
            )
        pairs = self.pairs(split)
        return LabelledImages(
            self.folders[split][0],
            self._labels(split),
            pairs,
            self.code,
            segmentation_transform(**self.augmentation) if split == "train" else None,
            global_seed(),
            self.max_image_pixels,
        )

    def collate(self, split: Split) -> Collate:
        """Return what stacks training crops and makes lists of images of other splits."""
        return stack if split == "train" else as_lists
