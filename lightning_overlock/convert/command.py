"""`lightning data`: reads one format, writes another, and counts what is left out."""

import argparse
from collections.abc import Callable
from pathlib import Path

from lightning_overlock.convert import cityscapes, labelme, optimize, pets, voc, yolo
from lightning_overlock.convert.scenes import (
    Collection,
    Part,
    cut_validation,
)
from lightning_overlock.convert.write import BACKGROUND, write_coco, write_masks
from lightning_overlock.data.class_names import check_class_names
from lightning_overlock.data.dense_transforms import IGNORE
from lightning_overlock.data.left_out import refuse_if_too_many
from lightning_overlock.errors import InputError, printable

READERS: dict[str, Callable[[Path, str], Collection]] = {
    "cityscapes": cityscapes.read,
    "labelme": labelme.read,
    "pets": pets.read,
    "voc": voc.read,
    "yolo": yolo.read,
}


def run(args: argparse.Namespace) -> int:
    """Run `lightning data convert` or `lightning data optimize`.

    Args:
        args: What was typed, as `options.read_options` returns it.

    Returns:
        The exit code 0.

    Raises:
        InputError: There is nothing to convert, or too much would be left out.
    """
    largest = vars(args)["data.max_left_out"]
    if args.command == "optimize":
        optimize.run(args.root, args.output, args.chunk_mb, args.num_workers, largest)
        return 0
    found = READERS[args.format](args.root, args.to)
    if not found.class_names:
        raise InputError(f"--root {printable(args.root)}: found no objects\nexpected some")
    class_names = found.class_names
    if args.to == "masks" and found.read_labels is None:
        class_names = [BACKGROUND, *(name for name in class_names if name != BACKGROUND)]
        if len(class_names) > IGNORE:
            raise InputError(
                f"found {len(class_names):,} classes\nexpected at most {IGNORE} in label maps"
            )
    check_class_names(class_names, str(args.root))
    for name, part in found.parts.items():
        _limit(args.root, name, part, largest)
    found = cut_validation(found, args.cut_validation, args.split_seed)
    for name, part in found.parts.items():
        if args.to == "coco":
            notes = write_coco(args.output, name, part, class_names, args.images)
        else:
            notes = write_masks(
                args.output, name, part, class_names, args.images, found.read_labels
            )
            _limit(args.root, name, part, largest)
        print(f"{name}: {_told(part)}")
        for note in notes:
            print(f"{name}: {note}")
    print(f"{len(class_names)} classes; {_how_to_train(args.to, args.output, list(found.parts))}")
    return 0


def _limit(root: Path, name: str, part: Part, largest: float) -> None:
    for what, count in part.found.items():
        refuse_if_too_many(f"{printable(root)}, {name}", part.left_out[what], count, largest)


def _told(part: Part) -> str:
    told = [part.left_out[what].summary(count) for what, count in part.found.items() if count]
    return "; ".join(told)


def _how_to_train(to: str, output: Path, parts: list[str]) -> str:
    if to == "masks":
        return f"train with --data SegmentationFolderDataModule --data.root {output}"
    given = [
        f"--data.{name}_json {output}/{name}.json --data.{name}_images {output}/{name}"
        for name in parts
    ]
    return f"train with --data CocoDataModule {' '.join(given)}"
