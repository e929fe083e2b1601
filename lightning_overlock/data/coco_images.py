"""The images of a COCO json, held against their files."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from lightning_overlock.data.class_names import same_name
from lightning_overlock.data.coco_objects import UnusableError, shown, whole
from lightning_overlock.data.left_out import Check, LeftOut
from lightning_overlock.data.orientation import Viewed, tell_hidden_turns, viewed_file
from lightning_overlock.errors import InputError

# Images that were annotated as they are stored.
TURNED = "of another size than the json says, being turned by their EXIF"
UNTURNED = ", or the EXIF orientation removed from these files"


class ImageEntry(NamedTuple):
    """An image of the json.

    Attributes:
        name: Its file_name.
        size: (height, width); (0, 0) where nobody has looked.
    """

    name: str
    size: tuple[int, int]


def read_images(
    check: Check, entries: list[Any], folder: Path, max_pixels: int | None, sized: bool
) -> dict[int, ImageEntry]:
    """Return the usable images by their ids.

    Args:
        check: The check of the json.
        entries: The json's images.
        folder: Where their files are.
        max_pixels: Most pixels of one image; None is no limit.
        sized: Hold the json's sizes against the files'; where it has none, theirs are taken.

    Raises:
        InputError: There is no usable image, two have one id, or as `check` says for an image
            without an id, a name or a file, or of another size than its file.
    """
    left_out = LeftOut("images")
    images: dict[int, ImageEntry] = {}
    given: dict[int, dict[str, Any]] = {}
    listings: dict[Path, set[str]] = {}
    for place, entry in enumerate(entries):
        try:
            key, name = _identify(entry, folder, listings)
        except UnusableError as error:
            left_out.add(error.reason, f"images[{place}]: {error.found}")
            continue
        if key in images and images[key].name != name:  # whose are the annotations?
            raise InputError(
                f"{check.source}: two images have the id {key}: {shown(images[key].name)} and "
                f"{shown(name)}\nexpected an id for each"
            )
        if key in images:
            left_out.add("there twice", f"image {key}")
            continue
        images[key], given[key] = ImageEntry(name, (0, 0)), entry
    if sized:
        images = _with_sizes(check, images, given, folder, max_pixels, left_out)
    hint = _hint_at_folder(entries, folder) if left_out.total else ""
    hint += UNTURNED if TURNED in left_out.counts else ""
    check.settle(left_out, len(entries), hint)
    check.note(left_out, len(entries))
    if not images:
        raise InputError(f"{check.source}: no usable images: {left_out.reasons()}")
    return images


def _identify(entry: Any, folder: Path, listings: dict[Path, set[str]]) -> tuple[int, str]:
    """Return the id and file name of an image whose file is there."""
    entry = entry if isinstance(entry, dict) else {}
    key, name = whole(entry.get("id")), entry.get("file_name")
    if key is None:
        raise UnusableError("without a whole number as id", shown(entry.get("id")))
    if not isinstance(name, str) or not name:
        raise UnusableError("without a file_name", shown(name))
    # As it is, or as Windows writes the folders in it.
    for written in [name, PureWindowsPath(name).as_posix()] if "\\" in name else [name]:
        file = folder / written
        if file.parent not in listings:  # one look per folder, not one per image
            listings[file.parent] = _listing(file.parent)
        if file.name in listings[file.parent]:
            return key, written
    raise UnusableError("whose file is not there", f"{shown(name)} in {folder}")


def _listing(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except (OSError, ValueError):  # no folder, or a name that can be none
        return set()


def _hint_at_folder(entries: list[Any], folder: Path) -> str:
    """Return what to do about file names that are there under a similar name."""
    there = _listing(folder)
    alike = {same_name(name): name for name in there}
    for entry in entries:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in there:
            continue
        last = PureWindowsPath(name).name  # takes both kinds of slashes
        if last in there:
            return f", or the folder in which {shown(name)} is: {folder} has {shown(last)}"
        if other := alike.get(same_name(last)):  # in case, or in how Unicode composes it
            return f", or files named as in the json: {folder} has {shown(other)}"
    return ""


def _with_sizes(
    check: Check,
    images: dict[int, ImageEntry],
    given: dict[int, dict[str, Any]],
    folder: Path,
    max_pixels: int | None,
    left_out: LeftOut,
) -> dict[int, ImageEntry]:
    """Return the images whose files are as large as the json says, with their sizes."""
    sized = {}
    hidden_turns = []
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, or for the network
        files = [folder / image.name for image in images.values()]
        parts = [files[start : start + 64] for start in range(0, len(files), 64)]
        heads = chain.from_iterable(pool.map(_heads, parts, repeat(max_pixels)))
        for (key, image), head in zip(images.items(), heads, strict=True):
            if isinstance(head, str):
                left_out.add("that cannot be read", f"image {key}: {head}")
                continue
            wide, high = head.size
            said = given[key].get("height"), given[key].get("width")
            own = zip(said, (high, wide), strict=True)
            if all(side is None or whole(side) == real for side, real in own):
                sized[key] = image._replace(size=(high, wide))
                if head.hides_turn or (head.orientation != 1 and None in said):
                    hidden_turns.append(image.name)
                continue
            stored = [whole(side) for side in said] == [wide, high]
            turned = head.orientation >= 5 and stored
            left_out.add(
                TURNED if turned else "of another size than the json says",
                f"image {key}: {shown(image.name)} has {wide} x {high} pixels, turned as its "
                f"EXIF says, and the json has {shown(said[1])} x {shown(said[0])}",
            )
    if hidden_turns:
        check.notes.append(tell_hidden_turns(hidden_turns, "boxes"))
    return sized


def _heads(paths: list[Path], max_pixels: int | None) -> list[Viewed | str]:
    return [_head(path, max_pixels) for path in paths]


def _head(path: Path, max_pixels: int | None) -> Viewed | str:
    """Return how a viewer shows an image, or what is wrong with it."""
    try:
        return viewed_file(path, max_pixels)
    except InputError as error:
        return str(error).splitlines()[0]
