"""Images in shards, of a folder or a store: for data that are too many files, or too much."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.base import Split
from lightning_overlock.data.class_names import check_class_names, read_class_names
from lightning_overlock.data.images import MAX_PIXELS, ImageFiles, listing, read_image
from lightning_overlock.data.left_out import refuse_if_too_many
from lightning_overlock.data.litdata_chunks import INDEX_FILE, LitDataChunks, fetch_text
from lightning_overlock.data.loading import Key, global_seed, seeded
from lightning_overlock.data.tar_shards import TarShards, class_names_of
from lightning_overlock.data.timm_transforms import TimmTransformsDataModule
from lightning_overlock.errors import InputError, printable
from lightning_overlock.files import is_remote

CLASSES_FILE = "classes.txt"
# What data sets on the hub call their splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test",),
}
LAYOUT = (
    "expected train/ and val/ in it, each with LitData's index.json and chunks or with .tar files, "
    "or .tar files called so"
)


class Records(Protocol):
    """Encoded images of a split, read by their place in any order, in any process.

    `set_classes` takes the names of the classes; `read` returns name, bytes and label of an image.
    """

    kind: str
    folder: str
    shards: list[str]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int: ...

    def set_classes(self, class_names: Sequence[str], /) -> None: ...  # noqa: D102

    def read(self, index: int, /) -> tuple[str, bytes, int]: ...  # noqa: D102


class EncodedImages:
    """Images of shards, decoded and transformed: what `ImageFiles` is for files.

    Args:
        records: Where they are.
        named: Items are (image, name) instead of (image, label).
        transform: Makes a tensor (3, H, W) of a PIL image; may draw random numbers.
        seed: Seed of those.
        max_pixels: Most pixels of one image; None is no limit.
    """

    def __init__(
        self,
        records: Records,
        named: bool,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.records = records
        self.folder = records.folder
        self.labels = None if named else records.labels
        self.named = named
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        name, content, label = self.records.read(key.index)
        image = read_image(name, self.max_pixels, content)
        with seeded(self.seed, key.epoch, key.index):
            tensor = self.transform(image)
        return tensor, name if self.named else label


class StreamingDataModule(TimmTransformsDataModule):
    """Images in LitData's chunks or WebDataset's shards, a class each.

    `root` is a folder, or an s3:// or gs:// address. LitData's chunks lie in `root/train`,
    `root/val` and, if there, `root/test`, as `lightning data optimize` writes them. WebDataset's
    shards are .tar files in a folder: in folders of the splits, or with `train`, `val` or
    `validation`, and `test` in their names; a sample is `KEY.jpg` (or another image) with its class
    in `KEY.cls` or in the field `label` of `KEY.json`.

    Everything is as with an image folder of the same images in the same order: every image has its
    place, so that the order of an epoch is a function of (seed, epoch), a run is continued exactly,
    and processes share the images out. Of a store the bytes of each image are read when it is
    wanted, two requests for each; nothing is kept on a disk.

    Items of `predict` are the images of `predict_dir` or else of the test split, or of the
    validation split, named by shard and file.

    Args:
        root: Folder or address of the splits; not needed to predict with `predict_dir`.
        class_names: The names, or a text file with one per line. None: `root`/classes.txt, or else
            what the training shards say.
        kwargs: Further arguments of `TimmTransformsDataModule`.

    Raises:
        InputError: A split or the names of the classes are missing, a shard is missing or broken,
            litdata is not installed, or an argument is out of its range.
    """

    labelled_options = frozenset({"root", "class_names"})

    def __init__(
        self, root: str = "", class_names: list[str] | str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if "://" in root and not is_remote(root):
            raise InputError(
                f"data.root is '{printable(root)}'\nexpected a folder, s3://BUCKET/… or gs://BUCKET/…"
            )
        self.root = root.rstrip("/") if is_remote(root) else str(Path(root).expanduser())
        self._root_given = bool(root)
        self.given_names = class_names
        self._records: dict[str, Records] = {}
        if self._predicted is None:  # else the training data may be gone
            for split in ("train", "val"):
                self._of(split)

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names of the classes; labels are places in this list."""
        given = self.given_names
        if isinstance(given, str):
            return read_class_names(Path(given))
        if given is not None:
            check_class_names(given, "data.class_names")
            return list(given)
        own = f"{self.root}/{CLASSES_FILE}"
        if is_remote(own):
            names = (fetch_text(own) or "").split("\n")[:-1]
            check_class_names(names, own)
            if names:
                return names
        elif Path(own).is_file():
            return read_class_names(Path(own))
        train = self._of("train")
        if isinstance(train, TarShards):
            return class_names_of(train.words, train.folder)
        raise InputError(
            f"{printable(self.root)} has no {CLASSES_FILE}\n"
            "expected the name of one class per line in it, or data.class_names"
        )

    def examine(self, split: Split) -> str:
        """Look for the images of a split."""
        if split == "predict" and self._predicted is not None:
            return self._predicted[1].summary()
        records = self._of(self._unlabelled() if split == "predict" else split)
        found = f"{len(records):,} images in {len(records.shards):,} {records.kind}"
        if isinstance(records, TarShards) and records.left_out.total:
            found += f"; {records.left_out.summary(len(records) + records.left_out.total)}"
        return f"{found} of {printable(records.folder)}"

    def places(self, split: Split) -> list[Path]:
        """Return the shards of a split, where they are files."""
        if is_remote(self.root):
            return []
        return [Path(shard) for shard in self._of(split).shards]

    def source(self, split: Split) -> ImageFiles | EncodedImages:
        """Return the images of a split.

        Raises:
            InputError: There is no such split.
        """
        transform, seed = self.transform(training=split == "train"), global_seed()
        if split == "predict" and self._predicted is not None:
            folder, found = self._predicted
            return ImageFiles(folder, found.files, None, transform, seed, self.max_image_pixels)
        named = split == "predict"
        records = self._of(self._unlabelled() if named else split)
        return EncodedImages(records, named, transform, seed, self.max_image_pixels)

    def _of(self, split: str) -> Records:
        """Return the records of "train", "val" or "test", with their classes."""
        if split not in self._records:
            if not self._root_given:
                raise InputError(
                    f"data.root is not given\n{LAYOUT}; to predict with a checkpoint, "
                    "data.predict_dir does"
                )
            # Kept before the classes are asked for, which the training shards may have to name.
            self._records[split] = self._find(split)
            self._records[split].set_classes(self.class_names)
        return self._records[split]

    def _find(self, split: str) -> Records:
        """Return the records of a split, whatever they lie in."""
        if is_remote(self.root):
            return LitDataChunks(f"{self.root}/{split}")
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"data.root: '{printable(self.root)}' is no folder\n{LAYOUT}")
        if Path(root, split, INDEX_FILE).is_file():
            return LitDataChunks(str(root / split))
        shards = tar_files(root, split)
        if not shards:
            raise InputError(
                f"data.root: {printable(self.root)} has nothing of the split '{split}'\n"
                f"found {listing(root)}\n{LAYOUT}"
            )
        records = TarShards(shards, split)
        total = len(records) + records.left_out.total
        refuse_if_too_many(printable(root), records.left_out, total, self.max_left_out)
        return records

    def _unlabelled(self) -> str:
        """Return the split that is predicted for where no images are given."""
        if is_remote(self.root):
            there = fetch_text(f"{self.root}/test/{INDEX_FILE}") is not None
        else:
            root = Path(self.root)
            there = Path(root, "test", INDEX_FILE).is_file() or bool(tar_files(root, "test"))
        return "test" if there else "val"


def tar_files(root: Path, split: str) -> list[Path]:
    """Return the .tar files of a split, sorted: those in its folder, or those called so in `root`.

    Args:
        root: Where to look.
        split: "train", "val" or "test".
    """
    names = SPLIT_NAMES[split]
    for name in names:
        if inside := sorted(Path(root, name).glob("*.tar")):
            return inside
    called = re.compile(rf"(?:^|[^a-z])(?:{'|'.join(names)})(?:[^a-z]|$)")
    return sorted(
        path
        for path in root.glob("*.tar")
        if called.search(os.path.splitext(path.name)[0].lower())  # noqa: PTH122
    )
