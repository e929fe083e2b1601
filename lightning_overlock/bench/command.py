"""`lightning bench`: what a model or an operation costs, read from the command line and printed.

`lightning bench NAME...` compares timm models, `--ops`, `--depthwise` and `--memory` the backends
of the package's operations. All candidates are taken in turn, round after round, and medians are
shown, so that a disturbance of the machine hits all of them; models that are compared on a CPU run
in a process each. `--profile` says where the time goes.
"""

import argparse
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lightning_overlock.bench.models import DTYPES, Setting, bench_models, profile_models
from lightning_overlock.bench.operations import (
    CONTMIX_SIZES,
    DEPTHWISE_SIZES,
    MEMORY_SIZES,
    bench_contmix,
    bench_depthwise,
    bench_memory,
)
from lightning_overlock.bench.report import Row, markdown, print_table
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.ops.contmix.operator import contmix_backend
from lightning_overlock.ops.depthwise.operator import depthwise_backend
from lightning_overlock.ops.dispatch import triton_obstacle

Tables = dict[str, list[Row]]


def main(arguments: list[str]) -> int:
    """Run `lightning bench` and print its tables.

    Args:
        arguments: What was typed after `bench`.

    Returns:
        The exit code 0.

    Raises:
        InputError: A mistake in what was typed.
    """
    args = _parser().parse_args(arguments)
    _check_arguments(args)
    args.device = _device(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    # An empty --seconds leaves each table its own.
    timing = {} if args.seconds is None else {"seconds": args.seconds}
    tables = _model_tables(args, timing) if args.names else {}
    tables |= _operation_tables(args, timing)
    for title, rows in tables.items():
        print_table(rows, title)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text("\n".join(f"{t}\n\n{markdown(r)}" for t, r in tables.items()))
    return 0


def _model_tables(args: argparse.Namespace, timing: dict[str, float]) -> Tables:
    height, width = args.size
    setting = Setting(
        batch_size=args.batch_size,
        size=args.size,
        device=args.device,
        dtype=args.dtype,
        channels_last=args.channels_last,
        inference_form=args.inference_form,
        features=args.features,
        train=not args.features if args.train is None else args.train,
        contmix_backend=args.contmix_backend,
        depthwise_backend=args.depthwise_backend,
    )
    shape = f"batch {args.batch_size}, {height}x{width} px, {args.dtype}"
    shape += ", channels-last" if args.channels_last else ""
    shape += ", inference form" if args.inference_form else ""
    shape += ", features" if args.features else ""
    more_rows = args.contmix_backend is not None or args.depthwise_backend is not None
    isolated = torch.device(args.device).type == "cpu" and (more_rows or len(args.names) > 1)
    shape += ", a process each" if isolated else ""
    title = f"Models: {shape}; {_where(args.device)}"
    tables = {title: bench_models(args.names, setting, isolated=isolated, **timing)}
    if args.profile:
        tables |= profile_models(args.names, setting, **timing)
    return tables


def _operation_tables(args: argparse.Namespace, timing: dict[str, Any]) -> Tables:
    where, tables = _where(args.device), {}
    if args.ops:
        title = f"ContMix: size BxHxWxK, {args.groups} groups of {args.group_channels} channels"
        tables[f"{title}, {args.dtype}; {where}"] = bench_contmix(
            args.sizes or CONTMIX_SIZES,
            groups=args.groups,
            channels=args.group_channels,
            device=args.device,
            dtype=args.dtype,
            **timing,
        )
    if args.depthwise:
        title = f"Depthwise convolutions: size BxCxHxWxK, {args.dtype}; {where}"
        title += "; Triton: not measured, it needs a GPU" if args.device == "cpu" else ""
        tables[title] = bench_depthwise(
            args.depthwise_sizes or DEPTHWISE_SIZES,
            device=args.device,
            dtype=args.dtype,
            compiled=args.compile,
            **timing,
        )
    if args.memory:
        tables[f"Neural memory: size BxNxDxC, float32; {where}"] = bench_memory(
            args.memory_sizes or MEMORY_SIZES, device=args.device, **timing
        )
    return tables


def _where(device: str) -> str:
    """Return where figures come from, for a title."""
    if torch.device(device).type == "cpu":
        return f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return f"torch {torch.__version__}, Triton {triton}, {name}"


# What is typed -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (\S+)", message)
        near = did_you_mean(wrong[1].partition("=")[0], known) if wrong else ""
        raise InputError(f"bench: {message}.{near}\n`lightning bench --help` lists all options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightning bench",
        allow_abbrev=False,
        description="Parameters, multiply-adds, time and extra peak memory of timm models side by "
        "side, or of the package's operations. All are taken in turn, several models on a CPU in "
        "a process each; medians. In brackets: relative to the first row; of a time, how many "
        "times as fast. --profile adds where the time goes, against the device's measured "
        "ceilings.",
    )
    _add_model_options(parser)
    _add_operation_options(parser)
    add = parser.add_argument
    add("--seconds", type=float, help="time for each figure (default: 5; operations: 2)")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="timm models, those of this package included")
    add("--batch-size", type=int, default=4, help="images in a batch (default: %(default)s)")
    add("--size", type=_size, default=(224, 224), metavar="N|HxW", help="pixels (default: 224)")
    add("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add(
        "--dtype",
        choices=DTYPES,
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
    add(
        "--contmix-backend",
        choices=contmix_backend.names,
        help="add a second row for models with ContMix: as built, with ContMix on this backend",
    )
    add(
        "--depthwise-backend",
        choices=depthwise_backend.names,
        help="add a row for models with large depthwise convolutions: with these on this backend",
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
    add("--groups", type=int, default=8, help="groups of --ops (default: %(default)s)")
    add("--group-channels", type=int, default=16, help="channels of each (default: %(default)s)")
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
    if not (args.names or args.ops or args.depthwise or args.memory):
        raise InputError(
            "nothing to measure: name timm models, or give --ops, --depthwise or --memory"
        )
    for option in ("batch_size", "threads", "groups", "group_channels", "seconds"):
        found = getattr(args, option)
        if found is not None and found <= 0:
            raise InputError(f"--{option.replace('_', '-')} {found}: expected more than zero")
    for option, needed in (
        ("sizes", "ops"),
        ("depthwise_sizes", "depthwise"),
        ("compile", "depthwise"),
        ("memory_sizes", "memory"),
        ("contmix_backend", "names"),
        ("depthwise_backend", "names"),
        ("profile", "names"),
    ):
        if getattr(args, option) and not getattr(args, needed):
            needed = "NAME" if needed == "names" else f"--{needed}"
            raise InputError(f"--{option.replace('_', '-')} is of use with {needed} only")
    for path in (args.json, args.markdown):
        if path and not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder to write {path.name} into")
    if args.features and args.train:
        raise InputError("--train needs logits, --features gives none")


def _device(args: argparse.Namespace) -> str:
    """Return the device to run on, after checking that it and the backends asked for can."""
    device: str = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used: {reason}") from error
    obstacle = triton_obstacle(torch.device(device))
    for option in ("contmix_backend", "depthwise_backend"):
        if getattr(args, option) == "triton" and obstacle is not None:
            raise InputError(f"--{option.replace('_', '-')} triton: this backend {obstacle}")
    if args.depthwise_backend == "onednn" and torch.device(device).type != "cpu":
        raise InputError(f"--depthwise-backend onednn is for CPUs, --device is {device}")
    return device


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise InputError(f"--size {text}: expected pixels, such as 224 or 800x1344 (HxW)")
    height, _, width = text.partition("x")
    return int(height), int(width or height)
