"""`lightning export`: writes a trained network, holds it against its task, reports."""

import argparse
import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_overlock import __version__
from lightning_overlock.bench.exported import Runner, as_runner, read_exported
from lightning_overlock.errors import InputError
from lightning_overlock.export.comparison import compare, latencies
from lightning_overlock.export.detector import ExportedDetector
from lightning_overlock.export.network import exported_network, normalisation
from lightning_overlock.export.options import report_path
from lightning_overlock.export.program import (
    compile_program,
    export_program,
    least_sizes,
    save_program,
)
from lightning_overlock.export.timm_folder import preprocessing, save_timm
from lightning_overlock.runs.checkpoint import read_checkpoint
from lightning_overlock.runs.layout import folder_of
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.classification import ClassificationTask
from lightning_overlock.tasks.load import task_of

Shape = tuple[int, int, int, int]


def run(args: argparse.Namespace) -> int:
    """Run `lightning export` and say what was written.

    Args:
        args: What was typed after `export`, as `read_options` returns it.

    Returns:
        The exit code 0.

    Raises:
        InputError: The checkpoint or an option does not fit, or what was made differs from the
            task's network; then nothing is written.
    """
    checkpoint = read_checkpoint(args.ckpt_path)
    task = task_of(checkpoint, args.ckpt_path)
    dtype: torch.dtype = getattr(torch, args.dtype)
    with _whole_or_nothing(args.output) as output:
        if args.format == "timm":
            report = _export_timm(task, checkpoint, args, output, dtype)
        else:
            report = _export_program(task, args, output, dtype)
        report = _facts(task, args) | report
        path = report_path(args.output, args.format == "timm")
        beside = output / path.name if args.format == "timm" else path
        beside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    times = report["latency_ms"]
    worst = max(row["difference"] for row in report["checks"])
    print(f"{args.output}: largest difference {worst:.2g} on {len(report['checks'])} batches")
    print(f"one batch: {times['eager']:.1f} ms as it was, {times['exported']:.1f} ms exported")
    print(f"report: {path}")
    return 0


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """Lend a place beside a file or folder, which takes its name at the end, if all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parent))
    try:
        yield folder / target.name
        (folder / target.name).rename(target)
    finally:
        shutil.rmtree(folder)


def _facts(task: BaseTask, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "format": args.format,
        "checkpoint": str(args.ckpt_path),
        "task": type(task).__name__,
        "backbone": task.backbone,
        "class_names": task.class_names,
        "dtype": args.dtype,
        "versions": {"torch": version("torch"), "lightning_overlock": __version__},
    }


def _export_timm(
    task: BaseTask,
    checkpoint: dict[str, Any],
    args: argparse.Namespace,
    folder: Path,
    dtype: torch.dtype,
) -> dict[str, Any]:
    folder.mkdir()
    run = folder_of(args.ckpt_path) or args.ckpt_path.parent
    eager = as_runner(copy.deepcopy(task.model), ["logits"])
    loaded = _converting(
        as_runner(save_timm(task, checkpoint, run, folder, dtype), ["logits"]), dtype
    )
    expected = preprocessing(task)
    height, width = expected["input_size"][1:]
    shapes = [(batch, 3, height, width) for batch in (1, 3)]
    return {
        "input": expected,
        "checks": compare(eager, loaded, shapes, dtype),
        "latency_ms": latencies(eager, loaded, shapes[0], args.seconds),
    }


def _converting(runner: Runner, dtype: torch.dtype) -> Runner:
    return lambda images: {k: v.float() for k, v in runner(images.to(dtype)).items()}


def _export_program(
    task: BaseTask, args: argparse.Namespace, path: Path, dtype: torch.dtype
) -> dict[str, Any]:
    height, width = args.size or _usual_size(task)
    # It is held against the network as it was trained, so that what the type costs is in the check.
    original = exported_network(copy.deepcopy(task), torch.float32)
    network = exported_network(task, dtype)
    one_image = isinstance(network, ExportedDetector)
    open_dims = [] if not args.dynamic else [2, 3] if one_image else [0, 2, 3]
    # A batch of one would be taken for a fixed one.
    shape: Shape = (2 if 0 in open_dims else 1, 3, height, width)
    eager = as_runner(original, network.outputs)
    _try(eager, shape)
    program = export_program(network, torch.rand(shape), open_dims)
    sizes = {
        "size": [height, width],
        "open": [("batch", "", "height", "width")[dim] for dim in open_dims],
        "least_size": least_sizes(program),
    }
    metadata = {
        "task": type(task).__name__,
        "backbone": task.backbone,
        "class_names": json.dumps(task.class_names),
        "input": "images: RGB in [0, 1], batch x 3 x height x width",
        "outputs": ", ".join(network.outputs),
        **{name: json.dumps(value) for name, value in sizes.items()},
    }
    report: dict[str, Any] = {"outputs": list(network.outputs)}
    if args.format == "onnx":
        from lightning_overlock.export.onnx_file import save_onnx

        report["opset"] = save_onnx(program, path, network.outputs, metadata)
    elif args.format == "aoti":
        compile_program(program, path, json.dumps(metadata))
    else:
        save_program(program, path, json.dumps(metadata))
    exported = read_exported(path).run
    rows = compare(eager, exported, _checked_shapes(shape, open_dims), dtype)
    return (
        report
        | sizes
        | {
            "checks": rows,
            "latency_shape": [1, 3, height, width],
            "latency_ms": latencies(eager, exported, (1, 3, height, width), args.seconds),
        }
    )


def _usual_size(task: BaseTask) -> tuple[int, int]:
    """Return the size that a network is evaluated at; of a short side only, a square."""
    if isinstance(task, ClassificationTask):
        return normalisation(task)[2]
    side = task.hparams.get("test_size") or task.hparams.get("min_size") or 512
    side = side[-1] if isinstance(side, list | tuple) else side
    return side, side


def _checked_shapes(shape: Shape, open_dims: list[int]) -> list[Shape]:
    """Return the shape itself and, of what is open, others that were never seen."""
    _, channels, height, width = shape
    sizes = [(height, width)]
    if 2 in open_dims:
        sizes.append((height + 37, width + 64))
    batches = (1, 3) if 0 in open_dims else (1,)
    return [(batch, channels, *size) for size in sizes for batch in batches]


def _try(network: Runner, shape: Shape) -> None:
    """Run the network once as it is.

    Raises:
        InputError: It takes no images of this size.
    """
    try:
        network(torch.rand(shape))
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--size {shape[2]}x{shape[3]}: the network takes no images of this size\n"
            f"{str(error).splitlines()[0]}"
        ) from error
