"""Pascal VOC: boxes in XML, which labelImg writes, too, and label maps with a palette.

M. Everingham et al., The Pascal Visual Object Classes challenge, IJCV 2010.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.convert.scenes import (
    IMAGES,
    OBJECTS,
    Collection,
    Part,
    Scene,
    Thing,
    clipped,
    image_beside,
    refuse_nothing,
    size_of,
)
from lightning_overlock.data.label_maps import read_values
from lightning_overlock.data.loading import CorruptImage
from lightning_overlock.errors import InputError, printable

# In the order of the label maps' values.
CLASS_NAMES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip
PARTS = ("train", "val", "test")


def read(root: Path, to: str) -> Collection:
    """Return a VOC data set.

    Args:
        root: VOCdevkit, one year's folder in it, or a folder of XML files of labelImg.
        to: "coco" reads boxes, "masks" the label maps.

    Raises:
        InputError: There are no annotations, or a list of images cannot be read.
    """
    folder = _year(root)
    if to == "masks":
        return _segmentation(root, folder)
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    lists = _lists(folder, "Main") or {"train": sorted(p.stem for p in annotations.glob("*.xml"))}
    parts: dict[str, Part] = {}
    for name, stems in lists.items():
        parts[name] = Part()
        for stem in stems:
            if (annotations / f"{stem}.xml").is_file():
                _read_xml(parts[name], folder, annotations / f"{stem}.xml")
            elif name != "test":  # those of the test parts were never published
                parts[name].leave_out(IMAGES, "without an annotation", stem)
    parts = {name: part for name, part in parts.items() if part.scenes or name == "train"}
    refuse_nothing(parts.values(), root, "Annotations/*.xml and JPEGImages")
    found = {thing.label for p in parts.values() for scene in p.scenes for thing in scene.things}
    own = [name for name in CLASS_NAMES[1:] if found <= set(CLASS_NAMES)]
    return Collection(parts, own or sorted(found))


def _year(root: Path) -> Path:
    """Return the folder with the annotations: the root, or the only year below it."""
    if any((root / name).is_dir() for name in ("Annotations", "SegmentationClass")):
        return root
    years = sorted(path for pattern in ("VOC2*", "VOCdevkit/VOC2*") for path in root.glob(pattern))
    if len(years) > 1:
        raise InputError(
            f"--root {printable(root)}: found {len(years)} years\nexpected one of "
            f"{', '.join(printable(year) for year in years)}"
        )
    return years[0] if years else root


def _lists(folder: Path, task: str) -> dict[str, list[str]]:
    """Return the names of each part's images, {} where nothing says them."""
    known = {name: folder / "ImageSets" / task / f"{name}.txt" for name in (*PARTS, "trainval")}
    there = {name: path for name, path in known.items() if path.is_file()}
    if "train" not in there and "trainval" in there:
        there["train"] = there["trainval"]
    found = {}
    for name in PARTS:
        if name not in there:
            continue
        try:
            lines = there[name].read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{printable(there[name])} cannot be read ({error})\nexpected a name per line"
            ) from error
        found[name] = [line.split()[0] for line in lines if line.strip()]
    return found


def _read_xml(part: Part, folder: Path, path: Path) -> None:
    """Add the image of one XML file."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError):
        part.leave_out(IMAGES, "with an annotation that is no intact XML", str(path))
        return
    given = Path(root.findtext("filename") or "")
    images = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else path.parent
    image = image_beside(images, path.stem)
    if image is None and given.name:
        image = images / given.name
    size = size_of(part, image, str(path))
    if size is None or image is None:
        return
    told = tuple(_number(root, f"size/{side}") for side in ("height", "width"))
    if all(told) and told != size:  # labelImg may write 0
        part.leave_out(IMAGES, "of another size than the annotation says", str(image))
        return
    things = []
    for entry in root.iter("object"):
        thing = _thing(entry, size)
        if isinstance(thing, str):
            part.leave_out(OBJECTS, thing, str(path))
        else:
            things.append(thing)
    part.add(Scene(image, image.name, size, things))


def _thing(entry: ElementTree.Element, size: tuple[int, int]) -> Thing | str:
    """Return an object, or why it is left out.

    VOC counts pixels from 1 and includes the last one. Its difficult objects count neither for nor
    against a detector, as COCO's crowds do not.
    """
    label = (entry.findtext("name") or "").strip()
    if not label:
        return "without a name"
    sides = [_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if any(side is None for side in sides):
        return "without the four numbers of a box"
    left, top, right, bottom = (side for side in sides if side is not None)
    box = clipped(left - 1, top - 1, right, bottom, size)
    if isinstance(box, str):
        return box
    return Thing(label, box, crowd=(entry.findtext("difficult") or "0").strip() == "1")


def _number(entry: ElementTree.Element, place: str) -> float | None:
    try:
        return float(entry.findtext(place) or "")
    except ValueError:
        return None


def _segmentation(root: Path, folder: Path) -> Collection:
    maps = folder / "SegmentationClass"
    lists = _lists(folder, "Segmentation") or {"train": sorted(p.stem for p in maps.glob("*.png"))}
    parts = {}
    for name, stems in lists.items():
        part = Part()
        for stem in stems:
            image = image_beside(folder / "JPEGImages", stem)
            size = size_of(part, image, stem)
            if size is None or image is None:
                continue
            label_map = maps / f"{stem}.png"
            if label_map.is_file():
                part.add(Scene(image, image.name, size, [], label_map))
            elif name != "test":
                part.leave_out(IMAGES, "without a label map", stem)
        if part.scenes or name == "train":
            parts[name] = part
    refuse_nothing(parts.values(), root, "SegmentationClass/*.png and JPEGImages")
    return Collection(parts, CLASS_NAMES, read_labels)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return a label map's classes, 255 for void.

    Raises:
        CorruptImage: It cannot be read, or has another value.
    """
    values = read_values(path)
    if bad := set(np.unique(values).tolist()) - {*range(len(CLASS_NAMES)), 255}:
        raise CorruptImage(f"{printable(path)}: the value {min(bad)} is no class of VOC")
    return values.astype(np.uint8)
