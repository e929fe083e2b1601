"""What is typed after `lightning data`: read and checked without torch."""

import argparse
from typing import NamedTuple

from lightning_overlock.arguments import CommandParser, folder_path
from lightning_overlock.errors import InputError, printable
from lightning_overlock.files import require_writable
from lightning_overlock.ranges import AT_LEAST_0, SHARE, check_ranges


class Format(NamedTuple):
    """A format that is read.

    Attributes:
        to: What it can be converted to.
        what: What lies below its root, for the help.
    """

    to: tuple[str, ...]
    what: str


FORMATS = {
    "voc": Format(
        ("coco", "masks"),
        "Pascal VOC, or files of labelImg: Annotations/*.xml (to coco) or SegmentationClass/*.png "
        "(to masks), JPEGImages, ImageSets",
    ),
    "yolo": Format(
        ("coco", "masks"), "data.yaml, images/ and labels/*.txt, boxes or outlines (Ultralytics)"
    ),
    "labelme": Format(("coco", "masks"), "*.json beside images, in subfolders train, val, test"),
    "cityscapes": Format(("coco", "masks"), "leftImg8bit and gtFine"),
    "pets": Format(("masks",), "Oxford-IIIT Pet: images and annotations with trimaps"),
}
EXAMPLE = (
    "example: lightning data convert voc --to coco --root VOCdevkit/VOC2012 --output voc\n"
    "It says at its end how to train on the result."
)


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return what was typed after `data`.

    Raises:
        InputError: A mistake in it, a root that is no folder, or an output that is in use.
    """
    args = _parser().parse_args(arguments)
    check_ranges(
        "",
        vars(args),
        {"cut_validation": SHARE, "split_seed": AT_LEAST_0, "data.max_left_out": SHARE},
    )
    known = FORMATS[args.format]
    if args.to not in known.to:
        raise InputError(
            f"--to {args.to}: {args.format} has nothing for it.\nExpected --to {known.to[0]}."
        )
    if not args.root.is_dir():
        raise InputError(
            f"--root {printable(args.root)}: this is no folder.\nExpected {known.what}."
        )
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise InputError(
            f"--output {printable(args.output)}: there is something already.\nExpected a folder "
            "that is empty or not there yet."
        )
    require_writable(args.output, "Expected another folder after --output.")
    return args


def _parser() -> argparse.ArgumentParser:
    top = CommandParser(prog="lightning data")
    commands = top.add_subparsers(dest="command", metavar="convert", required=True)
    parser = commands.add_parser(
        "convert",
        help="annotations of other tools as COCO files or label maps",
        description="Annotations of other tools as COCO files or label maps, with images beside. "
        "What cannot be converted is left out and counted by reason.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    formats = "; ".join(f"{name}: {known.what}" for name, known in FORMATS.items())
    add("format", choices=list(FORMATS), metavar="FORMAT", help=formats)
    add("--to", required=True, choices=["coco", "masks"], help="a json a part, or label maps")
    add(
        "--root",
        required=True,
        type=folder_path,
        metavar="FOLDER",
        help="where the format's files lie",
    )
    add("--output", required=True, type=folder_path, metavar="FOLDER", help="where the result goes")
    add(
        "--images",
        choices=["copy", "link"],
        default="copy",
        help="copy images into the output, or link them there (default: %(default)s)",
    )
    add(
        "--cut_validation",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the training images that becomes the validation part where there is none; "
        "0 for none (default: %(default)s)",
    )
    add("--split_seed", type=int, default=0, help="seed of that cut (default: %(default)s)")
    add(
        "--data.max_left_out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="largest share of a part's images or objects that may be left out (default: "
        "%(default)s)",
    )
    return top
