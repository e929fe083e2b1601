"""What is typed after `lightning robustness`: read and checked without torch."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_overlock.arguments import CommandParser, folder_path
from lightning_overlock.errors import InputError, printable
from lightning_overlock.files import require_writable
from lightning_overlock.ranges import AT_LEAST_0, AT_LEAST_1, SHARE, check_ranges


class Benchmark(NamedTuple):
    """A set of images that classifiers are tested on.

    Attributes:
        title: What it is called in tables.
        what: What is in it, for the help.
    """

    title: str
    what: str


# By the name of their option, in the order of the table.
BENCHMARKS = {
    "imagenet": Benchmark("ImageNet", "the validation images themselves, for comparison"),
    "imagenet_v2": Benchmark("V2", "ImageNet-V2 (arXiv 1902.10811), folders 0 to 999"),
    "imagenet_a": Benchmark("A", "ImageNet-A (arXiv 1907.07174)"),
    "imagenet_r": Benchmark("R", "ImageNet-R (arXiv 2006.16241)"),
    "imagenet_sketch": Benchmark("Sketch", "ImageNet-Sketch (arXiv 1905.13549)"),
    "imagenet_c": Benchmark("C", "ImageNet-C (arXiv 1903.12261), CORRUPTION/SEVERITY/CLASS"),
}
# Largest share of a class's files that are no images.
MAX_LEFT_OUT = 0.1
RANGES = {
    "data.batch_size": AT_LEAST_1,
    "data.num_workers": AT_LEAST_0,
    "data.max_left_out": SHARE,
}


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return what was typed after `robustness`.

    Returns:
        With `folders`, the folder of each benchmark that was given, by the option's name.

    Raises:
        InputError: A mistake in it, or a folder that is none.
    """
    args = _parser().parse_args(arguments)
    given = vars(args)
    check_ranges("", given, RANGES)
    args.folders = {name: given[f"data.{name}"] for name in BENCHMARKS if given[f"data.{name}"]}
    backbone, weights = given["model.backbone"], given["model.init_from"]
    if bool(args.ckpt_path) == bool(backbone):
        raise InputError(
            "robustness: expected either --ckpt_path FILE|RUN, or --model.backbone NAME for one "
            "of timm's models with ImageNet's classes."
        )
    if weights is not None and not backbone:
        raise InputError("--model.init_from: expected --model.backbone NAME as well.")
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"--model.init_from {printable(weights)}: this file does not exist.")
    if not args.folders:
        known = ", ".join(f"--data.{name}" for name in BENCHMARKS)
        raise InputError(f"robustness: found no images; expected FOLDER after one of {known}.")
    require_folders(args.folders, "--data.")
    if args.output is not None:
        require_writable(args.output, "Expected another folder after --output.")
    return args


def require_folders(folders: Mapping[str, Path], prefix: str) -> None:
    """Raise for a benchmark's folder that is none.

    Args:
        folders: The folders, by the benchmark's name.
        prefix: What stands before the name where it is typed, for messages.
    """
    for name, folder in folders.items():
        if not folder.is_dir():
            raise InputError(
                f"{prefix}{name} {printable(folder)}: this is no folder; expected "
                f"{BENCHMARKS[name].what}."
            )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="lightning robustness",
        description="Top-1 accuracy of classifiers on images that are unlike the training's, with "
        "their calibration, beside published figures. Folders are named by the model's classes or, "
        "where these are ImageNet's, by WordNet ids; only the classes that are there compete.",
    )
    add = parser.add_argument
    add(
        "--ckpt_path",
        nargs="+",
        default=[],
        metavar="FILE|RUN",
        help="checkpoints, or folders of runs (their best): a row each",
    )
    add("--model.backbone", metavar="NAME", help="one of timm's models, with its own weights")
    add("--model.init_from", metavar="FILE", help="weights for it, such as the authors' release")
    for name, benchmark in BENCHMARKS.items():
        add(f"--data.{name}", type=folder_path, metavar="FOLDER", help=benchmark.what)
    add("--data.batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    add("--data.num_workers", type=int, help="processes that read images (default: by the cores)")
    add(
        "--data.max_left_out",
        type=float,
        default=MAX_LEFT_OUT,
        help="largest share of a class's files that are no images (default: %(default)s)",
    )
    add("--device", help="cpu, cuda, … (default: cuda if there is one)")
    add(
        "--output",
        type=folder_path,
        metavar="FOLDER",
        help="where robustness.md, .csv and .tex go (default: the run's folder, of one run)",
    )
    return parser
