"""MNIST's file format, idx: arrays of bytes behind a short head, compressed or not.

Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits, 1998.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_overlock.errors import InputError, printable

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}
FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
UNSIGNED_BYTES = 8


def find_idx_folder(name: str, root: Path) -> Path | None:
    """Return the folder that holds all four files of a set; None if there is none.

    Args:
        name: Torchvision's name of the set.
        root: Where to look: in torchvision's folder below it, in it itself, in a folder below it
            called as Debian's; and in Debian's own place at last.
    """
    below = (
        [root / name / "raw", root / "fashion-mnist"] if name in DEBIAN else [root / name / "raw"]
    )
    folders = [*below, root, *([DEBIAN[name]] if name in DEBIAN else [])]
    return next((f for f in folders if all(_file(f, file) is not None for file in FILES)), None)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


class IdxImages:
    """Grey images of one part: items (PIL image, label).

    Args:
        folder: Where the files are.
        train: The training part; otherwise the test part.
        classes: The names of the classes.

    Raises:
        InputError: A file is broken, or they do not belong together.
    """

    def __init__(self, folder: Path, train: bool, classes: list[str]) -> None:
        self.classes = classes
        images, labels = [
            _file(folder, name) for name in FILES[slice(0, 2) if train else slice(2, 4)]
        ]
        assert images is not None
        assert labels is not None
        self.data = read_idx(images, dimensions=3)
        self.targets = read_idx(labels, dimensions=1)
        if len(self.data) != len(self.targets):
            raise InputError(
                f"{printable(labels)} has {len(self.targets):,} labels\n"
                f"expected {len(self.data):,}, one for each image in {printable(images)}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index]), int(self.targets[index])


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in a file; one that ends in .gz is unpacked on the way.

    Args:
        path: The file.
        dimensions: How many the array must have.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{printable(path)} cannot be read: {error}\nexpected the file as published"
        ) from error
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        raise InputError(
            f"{printable(path)} begins with {content[:4].hex(' ') or 'nothing'}\n"
            f"expected 00 00 08 {dimensions:02x}, bytes in {dimensions} dimension(s)"
        )
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=head)
    if values.size != int(np.prod(shape)):
        raise InputError(
            f"{printable(path)} has {values.size:,} values\n"
            f"expected {' x '.join(map(str, shape))}, as its head says"
        )
    return values.reshape(shape)
