"""YOLO as Ultralytics has it: a line per object, a class and a box or outline in image sides."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lightning_overlock.convert.scenes import (
    IMAGES,
    OBJECTS,
    Collection,
    Part,
    Scene,
    Thing,
    clipped,
    outlined,
    refuse_nothing,
    size_of,
)
from lightning_overlock.data.class_names import check_class_names, read_class_names
from lightning_overlock.data.images import find_images
from lightning_overlock.errors import InputError, printable
from lightning_overlock.yaml_files import parse_yaml

LAYOUT = "data.yaml (names, train, val), or classes.txt, images/ and labels/"


def read(root: Path, _: str) -> Collection:
    """Return a data set of Ultralytics' layout.

    Args:
        root: The folder of data.yaml, or of images/, labels/ and classes.txt.

    Raises:
        InputError: There is no such file, it is broken, or it leads to no images.
    """
    files = sorted(path for path in root.glob("*.y*ml") if "names" in _content(path))
    if len(files) > 1:
        raise InputError(
            f"--root {printable(root)}: found {', '.join(printable(f.name) for f in files)}\n"
            "expected one file with the key names"
        )
    if files:
        content = _content(files[0])
        names = _names(content["names"], files[0])
        places = _places(content, files[0])
    else:
        names = _listed(root)
        inside = [name for name in ("train", "val", "test") if (root / "images" / name).is_dir()]
        places = {name: [root / "images" / name] for name in inside}
        places = places or {"train": [root / "images"]}
    parts = {name: Part() for name in places}
    for name, part in parts.items():
        for folder, image in _images(places[name]):
            _read_image(part, names, folder, image)
    refuse_nothing(parts.values(), root, LAYOUT)
    return Collection(parts, names)


def _content(path: Path) -> dict[str, Any]:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(path)} cannot be read ({error})\nexpected YAML") from error


def _names(given: Any, path: Path) -> list[str]:
    if isinstance(given, dict):
        if sorted(given) != list(range(len(given))):
            raise InputError(
                f"{printable(path)}: names has the keys {sorted(map(str, given))[:5]}\n"
                f"expected 0 to {len(given) - 1}"
            )
        given = [given[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise InputError(f"{printable(path)}: names is {given!r:.60}\nexpected a list of names")
    if odd := [name for name in given if isinstance(name, bool | dict | list) or name is None]:
        raise InputError(
            f"{printable(path)}: names has {odd[0]!r:.60}\nexpected words; quote 'no', 'on', 'null'"
        )
    names = [str(name) for name in given]
    check_class_names(names, str(path))
    return names


def _listed(root: Path) -> list[str]:
    path = root / "classes.txt"
    if not path.is_file():
        raise InputError(
            f"--root {printable(root)}: found neither data.yaml nor classes.txt\nexpected {LAYOUT}"
        )
    return read_class_names(path)


def _places(content: dict[str, Any], path: Path) -> dict[str, list[Path]]:
    """Return the folders and lists of images of each part."""
    bases = [path.parent / str(content.get("path") or "."), path.parent]
    places: dict[str, list[Path]] = {}
    for name in ("train", "val", "test"):
        given = content.get(name)
        for entry in given if isinstance(given, list) else [given] if given else []:
            # Roboflow's files begin with ../ where the folder is beside them.
            spelt = [str(entry), str(entry).removeprefix("../")]
            tried = [base / one for base in bases for one in spelt]
            found = next((place for place in tried if place.exists()), None)
            if found is None:
                raise InputError(
                    f"{printable(path)}: {name} is {printable(entry)}, which is not there\n"
                    f"expected {printable(tried[0])}, a folder of images or a list of them"
                )
            places.setdefault(name, []).append(found)
    if "train" not in places:
        raise InputError(f"{printable(path)}: found no train\nexpected a folder of images")
    return places


def _images(places: list[Path]) -> list[tuple[Path, Path]]:
    """Return (folder, image) of all images of folders and of lists of images."""
    found = []
    for place in places:
        if place.is_dir():
            found += [(place, place / file) for file in find_images(place).files]
        else:
            lines = place.read_text(encoding="utf-8").splitlines()
            images = [place.parent / line.strip() for line in lines if line.strip()]
            found += [(image.parent, image) for image in images]
    return found


def _read_image(part: Part, names: list[str], folder: Path, image: Path) -> None:
    size = size_of(part, image, str(image))
    if size is None:
        return
    before, images, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    labels = Path(f"{before}{os.sep}labels{os.sep}{after}" if images else image).with_suffix(".txt")
    things = []
    try:
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
    except (OSError, ValueError):
        part.leave_out(IMAGES, "with labels that cannot be read", str(labels))
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            thing = _thing(line.split(), names, size)
            if isinstance(thing, str):
                part.leave_out(OBJECTS, thing, f"{labels}, line {number}")
            else:
                things.append(thing)
    part.add(Scene(image, os.path.relpath(image, folder), size, things))


def _thing(words: list[str], names: list[str], size: tuple[int, int]) -> Thing | str:
    """Return the object of a line, or why it is left out."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return "with something else than numbers"
    label, places = values[0], np.array(values[1:])
    if not label.is_integer() or not 0 <= label < len(names):
        return "of a class without a name"
    height, width = size
    if len(places) == 4:
        x, y, w, h = (places * [width, height, width, height]).tolist()
        box = clipped(x - w / 2, y - h / 2, x + w / 2, y + h / 2, size)
        return box if isinstance(box, str) else Thing(names[int(label)], box)
    if len(places) < 6 or len(places) % 2:
        return f"with {len(places)} numbers, neither a box nor an outline"
    found = outlined([(places.reshape(-1, 2) * [width, height]).flatten().tolist()], size)
    return found if isinstance(found, str) else Thing(names[int(label)], *found)
