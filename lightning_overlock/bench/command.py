"""`lightning bench`: what a model or an operation costs, read from the command line and printed.

`lightning bench NAME...` compares timm models, with `--exported` networks of `lightning export`
beside them; `--ops`, `--depthwise` and `--memory` the backends of the package's operations. All
candidates are taken in turn, round after round, and medians are shown, so that a disturbance of the
machine hits all of them; models that are compared on a CPU run in a process each. `--profile` says
where the time goes.
"""

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from lightning_overlock.bench.measure import usable_device
from lightning_overlock.bench.models import LOCAL_DIR, Setting, bench_models, profile_models
from lightning_overlock.bench.operations import bench_contmix, bench_depthwise, bench_memory
from lightning_overlock.bench.options import CONTMIX_SIZES, DEPTHWISE_SIZES, MEMORY_SIZES
from lightning_overlock.bench.report import Row, markdown, print_table
from lightning_overlock.errors import InputError
from lightning_overlock.ops.dispatch import triton_obstacle

Tables = dict[str, list[Row]]


def run(args: argparse.Namespace) -> int:
    """Run `lightning bench` and print its tables.

    Args:
        args: What was typed after `bench`, as `read_options` returns it.

    Returns:
        The exit code 0.

    Raises:
        InputError: A mistake in what was typed.
    """
    args.device = _device(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    # An empty --seconds leaves each table its own.
    timing = {} if args.seconds is None else {"seconds": args.seconds}
    tables = _model_tables(args, timing) if args.names or args.exported else {}
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
        teacher=args.teacher,
        teacher_dtype=args.teacher_dtype or "float32",
    )
    shape = f"batch {args.batch_size}, {height}x{width} px, {args.dtype}"
    shape += ", channels-last" if args.channels_last else ""
    shape += ", inference form" if args.inference_form else ""
    shape += ", features" if args.features else ""
    more_rows = bool(args.contmix_backend or args.depthwise_backend or args.teacher)
    files = [path for path in args.exported if path.is_file()]
    names = [*args.names, *(f"{LOCAL_DIR}{path}" for path in args.exported if path.is_dir())]
    isolated = torch.device(args.device).type == "cpu" and (
        more_rows or bool(files) or len(names) > 1
    )
    shape += ", a process each" if isolated else ""
    shape += ", .onnx and .pt2 as they are" if files else ""
    title = f"Models: {shape}; {_where(args.device)}"
    tables = {title: bench_models(names, setting, isolated=isolated, exported=files, **timing)}
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


def _device(args: argparse.Namespace) -> str:
    """Return the device to run on, after checking that it and the backends asked for can."""
    device = usable_device(args.device)
    obstacle = triton_obstacle(torch.device(device))
    for option in ("contmix_backend", "depthwise_backend"):
        if getattr(args, option) == "triton" and obstacle is not None:
            raise InputError(f"--{option.replace('_', '-')} triton: this backend {obstacle}")
    if args.depthwise_backend == "onednn" and torch.device(device).type != "cpu":
        raise InputError(f"--depthwise-backend onednn is for CPUs, --device is {device}")
    return device
