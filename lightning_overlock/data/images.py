"""Image files: which files of a folder are images, and what is in one."""

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightning_overlock.data.left_out import LeftOut
from lightning_overlock.data.loading import CorruptImage, Key, seeded
from lightning_overlock.errors import InputError, printable

# Pillow's own limit: it warns of half as many pixels and refuses more.
MAX_PIXELS = 178_956_970
# What Pillow knows by its suffix and cannot read by itself: it needs Ghostscript, a handler of
# Windows or of another library, or only writes it.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
SOME_SUFFIXES = ".jpg .png .webp .tif .gif .bmp or another that Pillow reads"
NO_FILE = "that are no files, or links to nothing"
# What operating systems, storage boxes and notebooks put beside images, besides hidden names.
SYSTEM_NAMES = {
    "@eadir",
    "@recycle",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "__pycache__",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of image files, in lower case: those of all formats that Pillow reads.

    A plugin that has registered itself with Pillow adds its own. What only looks like an image file
    to Pillow is left out, see `NO_IMAGES`.
    """
    registered = Image.registered_extensions()
    # Pillow's reader of JPEG reads MPO, several JPEG in one file.
    readable = (Image.OPEN.keys() | {"MPO"}) - NO_IMAGES
    return frozenset(suffix for suffix, kind in registered.items() if kind in readable)


class FoundImages(NamedTuple):
    """The images of a folder.

    Attributes:
        files: Their paths relative to the folder, sorted.
        left_out: Other files, by reason.
        passed_over: Hidden files and folders, those of the system, and files beside an image of the
            same name, such as its caption: nobody takes them for images of their own.
    """

    files: list[str]
    left_out: LeftOut
    passed_over: LeftOut

    def summary(self) -> str:
        """Return how many files are used and what is not, or "" where all are."""
        parts = []
        if self.left_out.total:
            parts.append(self.left_out.summary(len(self.files) + self.left_out.total))
        if self.passed_over.total:
            parts.append(f"passed over {self.passed_over.reasons()}")
        return "; ".join(parts)

    def add(self, other: "FoundImages", folder: str) -> None:
        """Add the images of a subfolder."""
        self.files.extend(os.path.join(folder, file) for file in other.files)  # noqa: PTH118
        self.left_out.merge(other.left_out, folder)
        self.passed_over.merge(other.passed_over, folder)


def find_images(folder: str | Path, subfolders: bool = True) -> FoundImages:
    """Find the images of a folder; they are told by their suffix, in upper or lower case.

    Linked files and folders are followed, but not in circles.

    Args:
        folder: Where to look.
        subfolders: Look into its subfolders, too, at any depth.

    Raises:
        InputError: A folder cannot be read.
    """
    found = FoundImages([], LeftOut("files"), LeftOut("files"))
    suffixes = image_suffixes()
    top = os.path.realpath(folder)
    # Folders to look into: the path in `folder`, the real one, and the real ones it lies in.
    waiting: list[tuple[str, str, frozenset[str]]] = [("", top, frozenset([top]))]
    while waiting:
        inside, real, above = waiting.pop()
        files = []
        for entry in _entries(os.path.join(folder, inside)):  # noqa: PTH118
            path = os.path.join(inside, entry.name)  # noqa: PTH118 - a million Paths are slow
            if is_systems(entry.name):
                found.passed_over.add("hidden or of the system", path)
            elif entry.is_dir():
                link = entry.is_symlink()
                target = os.path.realpath(entry.path) if link else f"{real}/{entry.name}"
                if target in above:
                    found.passed_over.add("linked in a circle", path)
                elif subfolders:
                    waiting.append((path, target, above | {target}))
            elif entry.is_file():
                files.append(path)
            else:
                found.left_out.add(NO_FILE, path)
        _sort_out(files, suffixes, found)
    found.files.sort()
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{printable(folder)}: this folder cannot be read ({error.strerror})"
        ) from error


def is_systems(name: str) -> bool:
    """Tell whether a file or folder is hidden, or the system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _sort_out(files: list[str], suffixes: frozenset[str], found: FoundImages) -> None:
    """Tell the images among the files of one folder from others."""
    parts = [os.path.splitext(file) for file in files]  # noqa: PTH122
    images = {stem for stem, suffix in parts if suffix.lower() in suffixes}
    for file, (stem, suffix) in zip(files, parts, strict=True):
        if suffix.lower() in suffixes:
            found.files.append(file)
            continue
        reason = f"with the suffix {printable(suffix.lower())}" if suffix else "without a suffix"
        if stem in images:
            found.passed_over.add(f"{reason} beside an image of the same name", file)
        else:
            found.left_out.add(reason, file)


def predict_files(given: str | Path | Sequence[str | Path]) -> tuple[Path, FoundImages]:
    """Return the folder of `data.predict_dir` and its images; it may be files and folders, too.

    Args:
        given: An image, a folder, or several of both. An empty list is no image at all: the data
            are wanted for their transform alone.

    Returns:
        The folder that all of them lie in, and the images, relative to it.

    Raises:
        InputError: One is not there, or a folder has no images.
    """
    names = [given] if isinstance(given, str | Path) else given
    for name in names:
        if not str(name) or not Path(name).exists():
            raise InputError(
                f"data.predict_dir: '{printable(name)}' is not there\n"
                "expected image files or folders of images"
            )
    paths = [Path(name) for name in names]
    if any(path.is_absolute() for path in paths):
        paths = [path.absolute() for path in paths]
    folders = [path if path.is_dir() else path.parent for path in paths]
    common = Path(os.path.commonpath(folders)) if folders else Path()
    together = FoundImages([], LeftOut("files"), LeftOut("files"))
    for path, folder in zip(paths, folders, strict=True):
        found = FoundImages([path.name], LeftOut("files"), LeftOut("files"))
        if path.is_dir():
            found = find_images(path)
        if not found.files:
            raise InputError(
                f"data.predict_dir: no images in {printable(path)}\nfound {listing(path)}\n"
                f"expected files that end in {SOME_SUFFIXES}, in subfolders too"
            )
        inside = str(folder.relative_to(common))
        together.add(found, "" if inside == "." else inside)
    return common, together._replace(files=list(dict.fromkeys(together.files)))


def listing(folder: Path) -> str:
    """Return the first names in a folder, for a message."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return some(names) if names else "an empty folder"


def some(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    if not names:
        return "none"
    shown = ", ".join(printable(name) for name in names[:5])
    return shown + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


class _PillowLimit:
    """Lifts Pillow's limit on the number of pixels while a file is read; ours counts instead.

    Pillow's is a global of the process, and several threads may read at a time.
    """

    def __init__(self) -> None:
        self.limit = Image.MAX_IMAGE_PIXELS
        self.reset()

    def reset(self) -> None:
        """Start with nobody reading."""
        self.lock = threading.Lock()
        self.readers = 0

    def __enter__(self) -> None:
        with self.lock:
            self.readers += 1
            if self.readers == 1:
                self.limit = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = None

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.limit


_pillow_limit = _PillowLimit()
# A worker that is forked while another thread reads must not wait for that thread's lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pillow_limit.reset)


@contextlib.contextmanager
def open_image(
    path: str | Path, max_pixels: int | None = MAX_PIXELS, content: bytes | None = None
) -> Iterator[Image.Image]:
    """Open an image file, and name it in whatever goes wrong in the block.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; None is no limit.
        content: Its bytes, where it lies inside another file; `path` is a name only.

    Raises:
        CorruptImage: The content is no intact image, or has too many pixels.
        InputError: The file cannot be opened at all.
    """
    try:
        file = path if content is None else io.BytesIO(content)
        with _pillow_limit, Image.open(file) as image:
            width, height = image.size
            if max_pixels is not None and width * height > max_pixels:
                raise CorruptImage(
                    f"{printable(path)}: {width:,} x {height:,} pixels are more than "
                    f"{max_pixels:,}, the limit data.max_image_pixels\n"
                    "expected a smaller image, or a higher limit (null is none), which keeps an "
                    "image from filling the memory"
                )
            yield image
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise anything on broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{printable(path)}: {error.strerror}") from error
        raise CorruptImage(
            f"{printable(path)}: no intact image ({_reason(path, content, error)})\n"
            "expected the file to be repaired or removed, or data.skip_corrupt (boxes and label "
            "maps: data.skip_invalid) to be true"
        ) from error


def _reason(path: str | Path, content: bytes | None, error: Exception) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__
    size = Path(path).stat().st_size if content is None else len(content)
    return "no known format" if size else "the file is empty"


def read_image(
    path: str | Path, max_pixels: int | None = MAX_PIXELS, content: bytes | None = None
) -> Image.Image:
    """Read an image file as it looks in a viewer, in 8-bit RGB.

    It is turned as its EXIF orientation says, transparent parts lie on white, 16-bit values are
    scaled to 8 bits. From an animation or a stack of pages the first image is read.

    Args:
        path: The file.
        max_pixels: Largest number of pixels; None is no limit.
        content: Its bytes, where it lies inside another file; `path` is a name only.

    Raises:
        CorruptImage: The content is no intact image, or has too many pixels.
        InputError: The file cannot be opened at all.
    """
    with open_image(path, max_pixels, content) as image:
        return _upright_rgb(image)


def as_image(given: str | Path | Image.Image | NDArray[Any], place: int) -> Image.Image:
    """Return an image as `read_image` returns that of a file.

    Args:
        given: A file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
        place: Its place among others, for the message.

    Raises:
        InputError: It is none of these, or cannot be read.
    """
    if isinstance(given, str | Path):
        return read_image(given)
    if isinstance(given, np.ndarray):
        values = given[..., 0] if given.ndim == 3 and given.shape[2] == 1 else given
        shaped = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in {3, 4})
        if values.dtype != np.uint8 or not shaped or not values.size:
            raise InputError(
                f"image {place} is an array of {given.dtype} and shape {given.shape}\n"
                "expected uint8 of shape (H, W), (H, W, 3) or (H, W, 4)"
            )
        given = Image.fromarray(values)
    if not isinstance(given, Image.Image):
        raise InputError(
            f"image {place} is a {type(given).__name__}\nexpected a path, a PIL image or an array"
        )
    try:
        return _upright_rgb(given.copy())
    except (OSError, ValueError) as error:
        raise InputError(f"image {place} cannot be read: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # malformed EXIF leaves a readable image
        ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert("RGB") would cut 16-bit values off at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}, more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point values of unknown range; 8 or 16 bits are read")
    elif image.mode == "LAB":
        lab, srgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only in place it is
        image = converted
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def drawn_transform(
    mean: float, std: float, size: int | None = None
) -> Callable[[Image.Image], Tensor]:
    """Return what makes a tensor (3, H, W) of an image as data modules draw them.

    Args:
        mean: Mean of a pixel in [0, 1].
        std: Its standard deviation.
        size: Side in pixels that images of another size are resized to; None keeps theirs.
    """

    def transform(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        if size is not None and pixels.shape[1:] != (size, size):
            pixels = F.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
        return (pixels - mean) / std

    return transform


class ImageFiles:
    """Images of a folder, transformed.

    Args:
        folder: Where `files` lie.
        files: Paths relative to the folder.
        labels: A class index for each file; None makes items (image, path) instead.
        transform: Makes a tensor (3, H, W) of a PIL image; may draw random numbers.
        seed: Seed of those.
        max_pixels: Most pixels of one image; None is no limit.
    """

    def __init__(
        self,
        folder: Path,
        files: list[str],
        labels: list[int] | None,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.folder = "" if folder == Path() else str(folder)  # no ./ before names
        # Bytes in one array: a list of a million strings would be copied into every worker bit by
        # bit, as each look at one changes its reference count.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = None if labels is None else np.array(labels)
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | str]:
        path = os.path.join(self.folder, os.fsdecode(self.files[key.index]))  # noqa: PTH118
        image = read_image(path, self.max_pixels)
        with seeded(self.seed, key.epoch, key.index):
            tensor = self.transform(image)
        return tensor, path if self.labels is None else int(self.labels[key.index])
