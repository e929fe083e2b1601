"""What is typed after `lightning data`: read and checked without torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_overlock.arguments import CommandParser, folder_path
from lightning_overlock.errors import InputError, printable, require_extra
from lightning_overlock.files import is_remote, require_writable
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, SHARE, check_ranges

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[CommandParser]


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
    if args.command == "optimize":
        return _check_optimize(args)
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
    _require_new_folder(args.output)
    return args


def _check_optimize(args: argparse.Namespace) -> argparse.Namespace:
    ranges = {"chunk_mb": ABOVE_0, "num_workers": AT_LEAST_1, "data.max_left_out": SHARE}
    check_ranges("", vars(args), ranges)
    require_extra("streaming", ["litdata"], "data optimize: it needs")
    if not args.root.is_dir():
        raise InputError(
            f"{printable(args.root)}: this is no folder.\nExpected one with train/ and val/, each "
            "with a folder of images per class."
        )
    if "://" not in args.output:
        args.output = str(folder_path(args.output))
        _require_new_folder(Path(args.output))
    elif not is_remote(args.output):
        raise InputError(f"--output {args.output}: expected a folder, s3://… or gs://….")
    args.output = args.output.rstrip("/")
    return args


def _require_new_folder(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"--output {printable(output)}: there is something already.\nExpected a folder "
            "that is empty or not there yet."
        )
    require_writable(output, "Expected another folder after --output.")


def _parser() -> argparse.ArgumentParser:
    top = CommandParser(prog="lightning data")
    commands = top.add_subparsers(dest="command", metavar="convert|optimize", required=True)
    _add_convert(commands)
    _add_optimize(commands)
    return top


def _add_optimize(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "optimize",
        help="a folder of images as LitData's chunks, to be read in place or from a store",
        description="Images in FOLDER/train/CLASS, val/CLASS and, if there, test/CLASS as "
        "LitData's chunks: the files' bytes as they are, labels, names and classes.txt. What is no "
        "image is left out and counted by reason.",
        epilog="example: lightning data optimize imagenet --output s3://BUCKET/imagenet",
    )
    add = parser.add_argument
    add("root", type=folder_path, metavar="FOLDER", help="where the splits lie")
    add("--output", required=True, metavar="FOLDER|URL", help="a folder, s3://… or gs://…")
    add(
        "--chunk_mb",
        type=float,
        default=64,
        metavar="MB",
        help="size of a chunk (default: %(default)s)",
    )
    add(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes that write (default: one fewer than the cores)",
    )
    _add_max_left_out(parser, "a class's files")


def _add_max_left_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--data.max_left_out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help=f"largest share of {what} that may be left out (default: %(default)s)",
    )


def _add_convert(commands: "Subparsers") -> None:
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
    _add_max_left_out(parser, "a part's images or objects")
