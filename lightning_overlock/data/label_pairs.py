"""Which image has which label map: by their names, and of equal size."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lightning_overlock.data.images import FoundImages, find_images
from lightning_overlock.data.orientation import viewed_file
from lightning_overlock.errors import InputError, printable

SKIP = "expected the file to be repaired or removed, or data.skip_invalid to be true"
READERS = 16  # it is the disk that is waited for

Pair = tuple[str, str]


class Problem(NamedTuple):
    """What is against using an image.

    Attributes:
        file: The file that is to blame.
        reason: The name that it is counted under, for example "without a label map".
        message: What is told where it stops everything.
    """

    file: str
    reason: str
    message: str


class MatchedPairs(NamedTuple):
    """Images and their label maps.

    Attributes:
        pairs: (image, label map), sorted, relative to their folders.
        problems: What is wrong with files that have no counterpart.
        found: The files in the images' folder.
    """

    pairs: list[Pair]
    problems: list[Problem]
    found: FoundImages


def match_pairs(images: Path, labels: Path) -> MatchedPairs:
    """Match the images of a folder with the label maps of another: equal names but for the suffix.

    Where one name has several label maps, the PNG counts.
    """
    found, maps = find_images(images), find_images(labels)
    found.passed_over.merge(maps.passed_over)
    found.passed_over.merge(maps.left_out)
    problems = []
    image_of: dict[str, str] = {}
    for file in found.files:
        stem = os.path.splitext(file)[0]  # noqa: PTH122 - a million Paths are slow
        other = image_of.setdefault(stem, file)
        if other != file:
            message = f"{printable(images / file)}: has the name of {printable(other)}, for one "
            problems.append(
                Problem(file, "with the name of another image", f"{message}label map\n{SKIP}")
            )
    map_of: dict[str, str] = {}
    for file in sorted(maps.files, key=lambda file: not file.lower().endswith(".png")):
        kept = map_of.setdefault(os.path.splitext(file)[0], file)  # noqa: PTH122
        if kept != file:
            found.passed_over.add("beside a label map of the same name", file)
    for stem, file in image_of.items():
        if stem not in map_of:
            message = f"{printable(images / file)}: no label map {printable(labels / stem)}.png"
            problems.append(Problem(file, "without a label map", f"{message}\n{SKIP}"))
    for stem, file in map_of.items():
        if stem not in image_of:
            message = f"{printable(labels / file)}: no image {printable(images / stem)}.*"
            problems.append(
                Problem(file, "that are label maps without an image", f"{message}\n{SKIP}")
            )
    pairs = [(file, map_of[stem]) for stem, file in image_of.items() if stem in map_of]
    return MatchedPairs(pairs, problems, found)


class Compared(NamedTuple):
    """What the heads of images and of their label maps say.

    Attributes:
        problems: What is against each pair, None if nothing is.
        pixels: The label maps' number of pixels.
        hidden_turns: Images that are turned where their label maps are not, or otherwise, without a
            size that would tell for which of both the labels were made.
    """

    problems: list[Problem | None]
    pixels: int
    hidden_turns: list[str]


def compare_sizes(pairs: Sequence[tuple[Path, Path]], max_pixels: int | None) -> Compared:
    """Compare the sizes of images and label maps, reading no more than their heads.

    Args:
        pairs: The files.
        max_pixels: Most pixels of one image; None is no limit.
    """

    def look(pair: tuple[Path, Path]) -> tuple[Problem | None, int, bool]:
        image, label = pair
        try:
            own, labels = (viewed_file(path, max_pixels) for path in pair)
        except InputError as error:
            return Problem(str(image), "that cannot be read", str(error)), 0, False
        problem = None
        if own.size != labels.size:
            message = sizes_differ(image, own.size, label, labels.size)
            problem = Problem(str(image), "of another size than the label map", message)
        hidden = own.orientation != labels.orientation and (own.hides_turn or labels.hides_turn)
        return problem, labels.size[0] * labels.size[1], hidden and not problem

    with ThreadPoolExecutor(READERS) as pool:
        looked = list(pool.map(look, pairs))
    return Compared(
        [problem for problem, _, _ in looked],
        sum(pixels for _, pixels, _ in looked),
        [str(image) for (image, _), (_, _, hidden) in zip(pairs, looked, strict=True) if hidden],
    )


def sizes_differ(
    image: str | Path, image_size: tuple[int, ...], label: str | Path, label_size: tuple[int, ...]
) -> str:
    """Return the message that an image and a label map have different (width, height)."""
    return (
        f"{printable(label)}: {label_size[0]} x {label_size[1]} pixels, but {image_size[0]} x "
        f"{image_size[1]} in {printable(image)} (turned as its EXIF says)\n{SKIP}"
    )
