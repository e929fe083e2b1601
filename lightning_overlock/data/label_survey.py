"""What label maps hold, looked at before training: do they fit the classes, and if not, why?"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.dense_transforms import IGNORE
from lightning_overlock.data.images import open_image, some
from lightning_overlock.data.label_maps import Colour, LabelCode, colour_of, palette_of, values_of
from lightning_overlock.data.left_out import LeftOut, refuse_if_too_many
from lightning_overlock.errors import InputError, printable

# So many pixels are looked at, which takes seconds, but no fewer label maps than these.
PIXELS_READ = 200_000_000
MAPS_READ = 32
# More values than these are not taken for classes that are numbered with gaps.
MOST_CLASSES = 40
READERS = 16  # it is the disk that is waited for


class Content(NamedTuple):
    """What is in one label map.

    Attributes:
        path: The file.
        values: Its values, sorted.
        palette: The colours of those that are places in a palette.
        error: Why it could not be read, "" if it could.
    """

    path: Path
    values: list[int]
    palette: dict[int, Colour]
    error: str = ""


def survey(paths: Iterable[Path], colours: bool, max_pixels: int | None) -> list[Content]:
    """Read label maps, several at a time.

    Args:
        paths: Theirs.
        colours: See `read_values`.
        max_pixels: See `read_values`.
    """

    def content(path: Path) -> Content:
        try:
            with open_image(path, max_pixels) as image:
                values = distinct(values_of(image, printable(path), colours))
                palette = [] if colours else palette_of(image)
        except InputError as error:
            return Content(path, [], {}, str(error))
        used = {value: palette[value] for value in values if 0 <= value < len(palette)}
        return Content(path, values, used)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(content, paths))


def distinct(values: NDArray[np.int32]) -> list[int]:
    """Return the different values of an array, sorted."""
    if values.min() >= 0 and values.max() < 65536:  # many times faster than sorting
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    flat = values.ravel()
    # Label maps have long runs of one value; sorting all pixels takes ten times as long.
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), len(flat) - 1)
    return np.unique(flat[ends]).tolist()


def sample(paths: Sequence[Path], pixels: int) -> list[Path]:
    """Return as many label maps as can be looked at in seconds, evenly spread.

    Args:
        paths: All of them.
        pixels: Theirs, together.
    """
    wanted = max(int(len(paths) * PIXELS_READ / max(pixels, 1)), MAPS_READ)
    if wanted >= len(paths):
        return list(paths)
    places = np.linspace(0, len(paths) - 1, wanted).round().astype(int)
    return [paths[place] for place in places.tolist()]


def judge(
    contents: Sequence[Content],
    code: LabelCode,
    names: Sequence[str],
    folder: Path,
    training: bool,
    skip: bool,
    max_left_out: float,
    palettes: dict[int, tuple[Colour, Path]],
) -> list[str]:
    """Hold label maps against the classes.

    Args:
        contents: What is in them.
        code: Which value is which class.
        names: Those of the classes.
        folder: Folder of the label maps, for messages.
        training: They are trained on, so that one class alone is an error.
        skip: Label maps that cannot be used are left out when they are read.
        max_left_out: Largest share of label maps that may be of no use.
        palettes: The colour of every place in the palettes of other splits, and whose it is; those
            of these maps are added.

    Returns:
        What should be said before training.

    Raises:
        InputError: The label maps were not made for these classes, in at most three lines with
            counts and the likely remedy.
    """
    _refuse_palettes(contents, palettes)
    left_out = LeftOut("label maps")
    broken = [content for content in contents if content.error]
    if broken and not skip:
        first, *rest = broken[0].error.split("\n")
        raise InputError(
            "\n".join([f"{first} ({len(broken):,} of {len(contents):,} label maps read)", *rest])
        )
    for content in broken:
        left_out.add("that cannot be read", str(content.path))
    strange = [content for content in contents if _strange(content, code)]
    if strange and not (skip and len(strange) <= max_left_out * len(contents)):
        raise InputError(_strange_values(strange, contents, code, folder))
    for content in strange:
        left_out.add("with values that are no class", str(content.path))
    told = _absent_classes(contents, code, names, folder, training)
    for content in contents:
        if content.values and not _present(content, code) and not _strange(content, code):
            left_out.add("whose pixels are all ignored", str(content.path))
    refuse_if_too_many(printable(folder), left_out, len(contents), max_left_out)
    return [*told, left_out.summary(len(contents))] if left_out.total else told


def _strange(content: Content, code: LabelCode) -> list[int]:
    """Return the values of a label map that are neither a class nor ignored."""
    values = np.array(content.values, dtype=np.int32)
    return values[code.decode(values)[1]].tolist()


def _present(content: Content, code: LabelCode) -> set[int]:
    """Return the classes in a label map."""
    labels, unknown = code.decode(np.array(content.values, dtype=np.int32))
    return set(labels[~unknown].tolist()) - {IGNORE}


def classes_in(contents: Sequence[Content], code: LabelCode) -> set[int]:
    """Return the classes that label maps have."""
    return {label for content in contents for label in _present(content, code)}


def numbered_classes(
    contents: Sequence[Content], reduce_zero_label: bool, folder: Path
) -> list[str]:
    """Return names for the classes where nobody has named them: their numbers in the files.

    Args:
        contents: What is in all label maps.
        reduce_zero_label: 0 is no class.
        folder: Folder of the label maps, for messages.

    Raises:
        InputError: The values do not look like the numbers of classes.
    """
    if broken := [content.error for content in contents if content.error]:
        raise InputError(broken[0])
    first = int(reduce_zero_label)
    values = _values(contents)
    numbers = [value for value in values if value != IGNORE and value >= first]
    count = max(numbers, default=0) + 1 - first
    if len(numbers) < 2 or count > IGNORE or 2 * len(numbers) <= count or values[0] < 0:
        ignored = f", and {IGNORE} is ignored" if IGNORE in values else ""
        likely = f"data.label_values {values}, if these are the classes in their order"
        if len(values) > MOST_CLASSES:
            likely = "numbers of objects, or pictures, in place of label maps"
        raise InputError(
            f"{printable(folder)}: the {len(contents):,} label maps hold {_listed(values, False)}"
            f"{ignored}\nexpected at least two classes, numbered {first}, {first + 1}, …\n"
            f"likely: {likely}"
        )
    return [str(number) for number in range(first, max(numbers) + 1)]


def _refuse_palettes(contents: Sequence[Content], known: dict[int, tuple[Colour, Path]]) -> None:
    """Refuse palettes that differ, as their places cannot be the numbers of classes."""
    for content in contents:
        for value, colour in content.palette.items():
            other, path = known.setdefault(value, (colour, content.path))
            if other != colour:
                raise InputError(
                    f"{value} is {other} in the palette of {printable(path)}, but {colour} in that "
                    f"of {printable(content.path)}\nexpected one palette whose places are class "
                    "numbers, or data.label_values with the colours in the classes' order"
                )


def _strange_values(
    strange: Sequence[Content], contents: Sequence[Content], code: LabelCode, folder: Path
) -> str:
    counts = Counter(value for content in strange for value in _strange(content, code))
    return (
        f"{printable(folder)}: {len(strange):,} of {len(contents):,} label maps read hold values "
        f"that are no class: {_listed(sorted(counts), code.colours)} (first {strange[0].path.name})"
        f"\nexpected {code.expected}\n{_remedy(_values(contents), code)}"
    )


def _absent_classes(
    contents: Sequence[Content],
    code: LabelCode,
    names: Sequence[str],
    folder: Path,
    training: bool,
) -> list[str]:
    """Refuse label maps that tell no two classes apart; return what to say of absent classes."""
    present = classes_in(contents, code)
    absent = [name for label, name in enumerate(names) if label not in present]
    if not absent:
        return []
    values = _values(contents)
    count = f"{len(contents):,} label maps read"
    ignored = "" if code.values and IGNORE in code.values else f", {IGNORE} is ignored"
    ignored = ignored if IGNORE in values and not code.colours else ""
    black_and_white = bool(ignored) and values == [0, IGNORE]
    if len(present) < 2 and len(names) > 1 and (training or black_and_white):
        only = f"only class '{names[next(iter(present))]}' occurs" if present else "no class occurs"
        raise InputError(
            f"{printable(folder)}: in the {count} (values {_listed(values, code.colours)}) {only}"
            f"{ignored}\n'{printable(absent[0])}' never does; expected {code.expected}\n"
            f"{_remedy(values, code)}"
        )
    if training and ignored and code.values is None and len(values) == len(names):
        first = int(code.reduce_zero_label)
        meant = list(range(first, first + len(names)))
        raise InputError(
            f"{printable(folder)}: the {count} hold as many values as there are classes "
            f"({_listed(values, False)}), but not '{printable(absent[0])}'{ignored}\n"
            f"{_remedy(values, code)}\nif {IGNORE} is to be ignored: data.label_values {meant}"
        )
    hint = f" ({_remedy(values, code)})" if ignored else ""
    return [f"none of the {count} has the class{'es' * (len(absent) > 1)} {some(absent)}{hint}"]


def _values(contents: Sequence[Content]) -> list[int]:
    return sorted({value for content in contents for value in content.values})


def _listed(values: Sequence[int], colours: bool) -> str:
    if colours:
        return f"{len(values):,} colours: {some([str(colour_of(value)) for value in values])}"
    return some([str(value) for value in values])


def _remedy(values: list[int], code: LabelCode) -> str:
    """Return what probably has to be done so that these values are the classes."""
    if code.values is not None:
        return "likely: data.label_values lacks a value that the files have, or has another"
    classes, least = code.num_classes, min(values, default=0)
    if len(values) == classes:
        return f"likely: data.label_values {values}, if these are the classes in their order"
    rest = [value for value in values if value != IGNORE]
    if not code.reduce_zero_label and max(rest, default=0) == classes and (least or len(rest) > 1):
        return "likely: data.reduce_zero_label true, if 0 is no class and 1 is the first"
    if len(rest) == classes:
        return f"likely: data.label_values {rest}, if these are the classes in their order"
    if len(rest) > 2 * classes + 2:
        return (
            "likely: pictures instead of label maps, or label maps that were resized with values "
            "in between (resize with nearest neighbours)"
        )
    return "likely: classes.txt (data.class_names) lacks names, or the files number them otherwise"
