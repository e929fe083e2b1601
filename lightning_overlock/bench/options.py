"""What is typed after `lightning bench`: read and checked without torch."""

import argparse
import re
from pathlib import Path

from lightning_overlock.arguments import CommandParser, folder_path, image_size
from lightning_overlock.errors import InputError, did_you_mean, require_extra
from lightning_overlock.files import require_file_writable
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_1, check_ranges

# Batch, height, width and window of ContMix: the maps of a 224 px image, of a COCO image of
# 800x1344, and both kernels of a stage.
CONTMIX_SIZES = ("4x7x7x7", "4x14x14x5", "4x14x14x13", "1x25x42x7", "1x50x84x5", "1x50x84x13")
# Batch, tokens, channels and chunk of the neural memory: ConvNeur's first stage at 112, 224 and
# 448 px, so that the growth with the number of tokens shows.
MEMORY_SIZES = ("4x784x128x196", "4x3136x128x196", "4x12544x128x196")
# Batch, channels, height, width and kernel of the large depthwise convolutions: OverLoCK-T's four
# stages at 224 px.
DEPTHWISE_SIZES = ("4x64x56x56x17", "4x128x28x28x15", "4x256x14x14x13", "4x512x7x7x7")
GROUPS, GROUP_CHANNELS = 8, 16
# Those that large depthwise convolutions have branches for; a test compares.
KERNELS = (17, 15, 13, 11, 9, 7, 5)
# By name, as the operations know them; a test compares.
CONTMIX_BACKENDS = ("dense", "strips", "triton", "unfold")
DEPTHWISE_BACKENDS = ("conv", "onednn", "aten", "triton")
EXPORTED = (".onnx", ".pt2")
TIMM_FILES = ("config.json", "model.safetensors")
DTYPE_NAMES = ("float32", "bfloat16", "float16")

RANGES = {
    "--batch-size": AT_LEAST_1,
    "--threads": AT_LEAST_1,
    "--groups": AT_LEAST_1,
    "--group-channels": AT_LEAST_1,
    "--seconds": ABOVE_0,
}


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Return what was typed after `bench`.

    Raises:
        InputError: A mistake in it.
    """
    args = _parser().parse_args(arguments)
    _check_arguments(args)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="lightning bench",
        description="Parameters, multiply-adds, time and extra peak memory of timm models side by "
        "side, or of the package's operations. All are taken in turn, several models on a CPU in "
        "a process each; medians. In brackets: relative to the first row; of a time, how many "
        "times as fast. --profile adds where the time goes, against the device's measured "
        "ceilings.",
    )
    _add_model_options(parser)
    _add_row_options(parser)
    _add_operation_options(parser)
    add = parser.add_argument
    add("--seconds", type=float, help="time for each figure (default: 5; operations: 2)")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="timm models, those of this package included")
    add(
        "--exported",
        nargs="+",
        type=folder_path,
        default=[],
        metavar="FILE",
        help="networks of `lightning export` in the table too: timm folders as models are, with "
        "their weights; .onnx and .pt2 files as they are, their inference on the CPU",
    )
    add("--batch-size", type=int, default=4, help="images in a batch (default: %(default)s)")
    add(
        "--size", type=image_size, default=(224, 224), metavar="N|HxW", help="pixels (default: 224)"
    )
    add("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add(
        "--dtype",
        choices=DTYPE_NAMES,
        default="float32",
        help="other than float32: models under autocast to it (default: %(default)s)",
    )
    add(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory format (default: channels-last)",
    )
    add(
        "--inference-form",
        action="store_true",
        help="merge branches and norms (timm's reparameterize_model) before inference; training "
        "is measured in the training form",
    )
    add("--features", action="store_true", help="the four feature maps instead of the logits")
    add(
        "--train",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure a training step too (default: yes, unless --features)",
    )


def _add_row_options(parser: argparse.ArgumentParser) -> None:
    """Add what gives models further rows or tables."""
    add = parser.add_argument
    add(
        "--contmix-backend",
        choices=CONTMIX_BACKENDS,
        help="add a second row for models with ContMix: as built, with ContMix on this backend",
    )
    add(
        "--depthwise-backend",
        choices=DEPTHWISE_BACKENDS,
        help="add a row for models with large depthwise convolutions: with these on this backend",
    )
    add(
        "--teacher",
        metavar="NAME",
        help="add a row for every model: its training step with this timm model as its teacher, "
        "whose logits are compared, as model.teacher does",
    )
    add(
        "--teacher-dtype",
        choices=DTYPE_NAMES,
        help="what the teacher computes in, outside of autocast (default: float32)",
    )
    add(
        "--profile",
        action="store_true",
        help="profile every model by operation: time, bytes and multiply-adds, and the least time "
        "at the copy bandwidth and matrix rate measured here (roofline)",
    )


def _add_operation_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ops", action="store_true", help="the backends of ContMix, relative to unfold")
    add(
        "--sizes",
        nargs="+",
        metavar="BxHxWxK",
        help=f"images, map and window of --ops (default: {' '.join(CONTMIX_SIZES)})",
    )
    add("--groups", type=int, default=GROUPS, help="groups of --ops (default: %(default)s)")
    add("--group-channels", type=int, default=GROUP_CHANNELS, help="of each (default: %(default)s)")
    add(
        "--depthwise",
        action="store_true",
        help="the backends of large depthwise convolutions, relative to torch's in NCHW; Triton's "
        "is measured on a GPU only",
    )
    add(
        "--depthwise-sizes",
        nargs="+",
        metavar="BxCxHxWxK",
        help="images, channels, map and kernel of --depthwise "
        f"(default: {' '.join(DEPTHWISE_SIZES)})",
    )
    add("--compile", action="store_true", help="torch.compile as another backend of --depthwise")
    add("--memory", action="store_true", help="the neural memory, relative to vmap(grad)")
    add(
        "--memory-sizes",
        nargs="+",
        metavar="BxNxDxC",
        help="sequences, tokens, channels and tokens of a chunk of --memory "
        f"(default: {' '.join(MEMORY_SIZES)})",
    )


def _check_arguments(args: argparse.Namespace) -> None:
    if not (args.names or args.exported or args.ops or args.depthwise or args.memory):
        raise InputError(
            "nothing to measure: name timm models, or give --exported, --ops, --depthwise or "
            "--memory"
        )
    numbers = {name.replace("_", "-"): value for name, value in vars(args).items()}
    check_ranges("", {f"--{name}": value for name, value in numbers.items()}, RANGES)
    for option, needed in (
        ("sizes", "ops"),
        ("depthwise_sizes", "depthwise"),
        ("compile", "depthwise"),
        ("memory_sizes", "memory"),
        ("contmix_backend", "names"),
        ("depthwise_backend", "names"),
        ("teacher", "names"),
        ("teacher_dtype", "teacher"),
        ("profile", "names"),
    ):
        if getattr(args, option) and not getattr(args, needed):
            needed = "NAME" if needed == "names" else f"--{needed}"
            raise InputError(f"--{option.replace('_', '-')} is of use with {needed} only")
    if not args.ops and (args.groups, args.group_channels) != (GROUPS, GROUP_CHANNELS):
        raise InputError("--groups and --group-channels are of use with --ops only")
    for sizes, numbers_of in (
        (args.sizes, contmix_size),
        (args.depthwise_sizes, depthwise_size),
        (args.memory_sizes, memory_size),
    ):
        for size in sizes or ():
            numbers_of(size)
    if args.json and args.json == args.markdown:
        raise InputError(f"--json and --markdown are both {args.json}, expected a file for each")
    for option in ("json", "markdown"):
        if path := getattr(args, option):
            require_file_writable(path, f"--{option} {path}")
    if args.features and args.train:
        raise InputError("--train needs logits, --features gives none")
    if args.teacher and (args.features or args.train is False):
        option = "--features" if args.features else "--no-train"
        raise InputError(f"--teacher is about the training step, which {option} leaves out")
    _check_exported(args)


def _check_exported(args: argparse.Namespace) -> None:
    """Refuse what is no exported network, and what such files do not have; set the device."""
    for path in args.exported:
        if not path.exists():
            near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(
                f"--exported {path}: no such file or folder.{did_you_mean(str(path), near)}\n"
                "Expected what `lightning export` has written; names of models stand before "
                "--exported."
            )
        if path.is_dir():
            if lacking := [name for name in TIMM_FILES if not (path / name).is_file()]:
                raise InputError(
                    f"--exported {path}: this folder has no {' and no '.join(lacking)}.\n"
                    "Expected one of `lightning export --format timm`, or a .onnx or .pt2 file."
                )
        elif path.suffix not in EXPORTED:
            raise InputError(
                f"--exported {path}: expected a .onnx or .pt2 file, or a folder of timm.\n"
                "`lightning export --ckpt_path FILE|RUN` makes them of a checkpoint."
            )
    files = [path for path in args.exported if path.is_file()]
    if not files:
        return
    if any(path.suffix == ".onnx" for path in files):
        require_extra("export", ["onnxruntime"], "--exported: .onnx files need")
    for option, wrong, reason in (
        ("--device", args.device not in (None, "cpu"), "on the CPU"),
        ("--dtype", args.dtype != "float32", "in the type that they were exported in"),
        ("--features", args.features, "with the outputs that they have"),
    ):
        if wrong:
            raise InputError(f"{option}: {files[0]} is measured {reason}; leave this option out")
    if args.train and len(files) == len(args.exported) and not args.names:
        raise InputError(f"--train: {files[0]} cannot be trained; leave this option out")
    args.device = "cpu"


def contmix_size(size: str) -> list[int]:
    """Return the batch, height, width and window of `--sizes`.

    Raises:
        InputError: They are no such numbers, or the window does not fit.
    """
    batch, height, width, window = _numbers("--sizes", size, "BxHxWxK, such as 4x14x14x13")
    if window % 2 == 0 or window > min(height, width):
        raise InputError(f"--sizes {size}: the window must be odd and fit into the map")
    return [batch, height, width, window]


def depthwise_size(size: str) -> list[int]:
    """Return the batch, channels, height, width and kernel of `--depthwise-sizes`.

    Raises:
        InputError: They are no such numbers, or no convolution has this kernel.
    """
    found = _numbers("--depthwise-sizes", size, "BxCxHxWxK, such as 4x64x56x56x17")
    if found[-1] not in KERNELS:
        raise InputError(f"--depthwise-sizes {size}: the kernel must be one of {[*KERNELS]}")
    return found


def memory_size(size: str) -> list[int]:
    """Return the batch, tokens, channels and tokens of a chunk of `--memory-sizes`.

    Raises:
        InputError: They are no such numbers, or the tokens are no whole chunks.
    """
    batch, tokens, dim, chunk = _numbers("--memory-sizes", size, "BxNxDxC, such as 4x196x64x14")
    if tokens % chunk:
        raise InputError(f"--memory-sizes {size}: {tokens} tokens are no whole chunks")
    return [batch, tokens, dim, chunk]


def _numbers(option: str, size: str, expected: str) -> list[int]:
    count = expected.partition(",")[0].count("x")
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{count}}}", size):
        raise InputError(f"{option}: '{size}' is no size; expected {expected}")
    return [int(number) for number in size.split("x")]
