"""What is typed after `lightning export`: read and checked without torch."""

import argparse
import os
import shutil
from pathlib import Path

from lightning_overlock.arguments import CommandParser, image_size
from lightning_overlock.errors import InputError, did_you_mean, require_extra
from lightning_overlock.files import require_writable
from lightning_overlock.runs.checkpoint import checkpoint_in, require_checkpoint
from lightning_overlock.runs.layout import folder_of

# The file or folder of each format, where no --output is typed.
FORMATS = {"timm": "timm", "onnx": "model.onnx", "torch": "model.pt2", "aoti": "model.aoti.pt2"}
DTYPES = ("float32", "bfloat16", "float16")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return what was typed after `export`, with the checkpoint and the output as paths.

    Raises:
        InputError: A mistake in it.
    """
    args = _parser().parse_args(arguments)
    for option in ("ckpt_path", "format"):
        if getattr(args, option) is None:
            raise InputError(
                f"export: --{option} is missing.\n"
                f"Expected lightning export --ckpt_path FILE|RUN --format {'|'.join(FORMATS)}."
            )
    if args.format not in FORMATS:
        raise InputError(
            f"--format {args.format}: no such format.{did_you_mean(args.format, FORMATS)}\n"
            f"Expected one of {', '.join(FORMATS)}."
        )
    if args.format == "timm" and (args.size or args.dynamic):
        raise InputError(
            "--size and --dynamic are of use with onnx, torch and aoti; a timm folder holds "
            "weights for every size"
        )
    if args.format == "onnx" and args.dtype == "bfloat16":
        raise InputError("--dtype bfloat16: onnxruntime has no kernels of it; expected float16")
    if args.format == "onnx":
        require_extra("export", ONNX_PACKAGES, "--format onnx needs")
    if args.format == "aoti":
        _require_compiler()
    args.ckpt_path = checkpoint_in(args.ckpt_path)
    require_checkpoint(args.ckpt_path)
    suffix = Path(FORMATS[args.format]).suffix
    if args.output and suffix and args.output.suffix != suffix:
        raise InputError(
            f"--output {args.output}: expected a name that ends in {suffix}, by which the file is "
            "known to torch and to `lightning bench --exported`"
        )
    if args.output is None:
        run = folder_of(args.ckpt_path) or args.ckpt_path.parent
        args.output = run / "export" / FORMATS[args.format]
    for path in {args.output, report_path(args.output, args.format == "timm")}:
        if path.exists():
            raise InputError(
                f"--output {path}: this exists already.\n"
                "Expected a new name: nothing is written over."
            )
    require_writable(args.output.parent, "Name another place with --output.")
    return args


def report_path(output: Path, timm_folder: bool) -> Path:
    """Return where the report of an export goes: beside a file, inside a folder."""
    return output / "report.json" if timm_folder else output.with_name(f"{output.name}.json")


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")  # what Inductor takes
    if shutil.which(compiler) is None:
        raise InputError(
            f"--format aoti needs a C++ compiler, found no {compiler}.\n"
            "Expected g++ to be installed, or the name of another in the environment's CXX."
        )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="lightning export",
        description="Write a trained network to a file that is used without this package. The file "
        "is compared with the network at once, and refused where it differs; sizes, differences "
        "and latencies are in a JSON report beside it.",
    )
    add = parser.add_argument
    add("--ckpt_path", type=Path, metavar="FILE|RUN", help="a checkpoint, or the folder of a run")
    add(
        "--format",
        metavar="|".join(FORMATS),
        help="timm: a folder for timm.create_model('local-dir:FOLDER'), with a model card; onnx: "
        "for onnxruntime; torch: for torch.export.load; aoti: compiled for this kind of CPU",
    )
    add("--output", type=Path, metavar="PATH", help="what is written (default: RUN/export/…)")
    add(
        "--size",
        type=image_size,
        metavar="N|HxW",
        help="pixels of the images (default: those that the network was evaluated at)",
    )
    add(
        "--dynamic",
        action="store_true",
        help="leave batch, height and width open; a detector takes one image at a time",
    )
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    add(
        "--seconds",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="how long each latency is measured (default: 2)",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds {text}: expected a number above 0")
    return seconds
