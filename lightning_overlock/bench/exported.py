"""Files that `lightning export` has written: read, run, and their row of the table."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.bench.measure import Step
from lightning_overlock.bench.report import Row
from lightning_overlock.errors import InputError

Outputs = dict[str, Tensor]
# Maps images (B, 3, H, W) to named tensors.
Runner = Callable[[Tensor], Outputs]

INPUT = "images"
# The name of the metadata inside a program's file.
METADATA = "lightning_overlock.json"
ONNX = ".onnx"
# What is read of the metadata here; each value is a text, that of all but "outputs" in JSON.
KEYS = ("outputs", "size", "open", "least_size")


class ExportedFile(NamedTuple):
    """A file as a function, and what it says of itself.

    Args:
        run: The network.
        metadata: Texts by name, as `lightning export` has stored them.
        parameters: Number of its parameters; None where the file does not tell them from constants.
    """

    run: Runner
    metadata: dict[str, str]
    parameters: int | None


def as_runner(network: Callable[[Tensor], Any], names: Sequence[str]) -> Runner:
    """Return a network as a function with named outputs."""

    def run(images: Tensor) -> Outputs:
        with torch.inference_mode():
            found = network(images)
        return dict(zip(names, [found] if isinstance(found, Tensor) else found, strict=True))

    return run


def read_exported(path: Path) -> ExportedFile:
    """Return a `.onnx` or `.pt2` file (a program, or a package of AOTInductor) as a function.

    Raises:
        InputError: It is damaged, was not written by `lightning export`, or cannot be run here.
    """
    if path.suffix == ONNX:
        session = onnx_session(path)
        names = [output.name for output in session.get_outputs()]
        metadata = session.get_modelmeta().custom_metadata_map
        _require_ours(path, metadata)

        def run(images: Tensor) -> Outputs:
            found = session.run(None, {INPUT: images.numpy()})
            return dict(zip(names, map(torch.from_numpy, found), strict=True))

        return ExportedFile(run, metadata, None)
    metadata = _program_metadata(path)
    _require_ours(path, metadata)
    import torchvision  # noqa: F401  detectors have its operations

    names = metadata["outputs"].split(", ")
    if _is_compiled(path):
        from torch._inductor import aoti_load_package

        try:
            return ExportedFile(as_runner(aoti_load_package(str(path)), names), metadata, None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{path.name}: it cannot be loaded on this machine: {reason}"
            ) from error
    with warnings.catch_warnings():
        # Torch 2.11 reads the weights of a program as buffers that it does not write to.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        program = torch.export.load(path)
    count = sum(parameter.numel() for _, parameter in program.named_parameters())
    return ExportedFile(as_runner(program.module(), names), metadata, count)


def onnx_session(path: Path) -> Any:
    """Return onnxruntime's session of an ONNX file, on the CPU.

    Raises:
        InputError: onnxruntime cannot run it.
    """
    # It would report every session to its maker, from a thread beside what is timed.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    # As many threads as torch has, and none that spins while torch works.
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no type but this
        reason = str(error).splitlines()[0]
        raise InputError(f"{path.name}: onnxruntime cannot run this network: {reason}") from error


def exported_row(path: Path, batch_size: int, size: tuple[int, int]) -> Row:
    """Return the label and the costs of a file, after it has run once.

    Args:
        path: A `.onnx` or `.pt2` file.
        batch_size: Images in a batch.
        size: Their height and width.

    Returns:
        "model", "parameters M" and "multiply-adds G" of one image; the last two are None of a file
        that does not tell them: ONNX, AOTInductor.

    Raises:
        InputError: The file cannot be read or run, or takes no such images.
    """
    file = read_exported(path)
    _require_shape(path, file.metadata, batch_size, size)
    try:
        with FlopCounterMode(display=False) as counter:
            file.run(torch.rand(batch_size, 3, *size))
    except Exception as error:  # torch's guards and onnxruntime's exceptions share no type
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--exported {path}: it does not run on {batch_size}x3x{size[0]}x{size[1]}.\n{reason}"
        ) from error
    counted = counter.get_total_flops() / 2e9 / batch_size
    return {
        "model": str(path),
        "parameters M": None if file.parameters is None else file.parameters / 1e6,
        "multiply-adds G": None if file.parameters is None else counted,
    }


def exported_steps(path: Path, batch_size: int, size: tuple[int, int]) -> dict[str, Step]:
    """Return the inference step of a `.onnx` or `.pt2` file.

    onnxruntime keeps its work space for the next run, where its size cannot be seen; "inference,
    lean" gives it back after each.

    Args:
        path: The file.
        batch_size: Images in a batch.
        size: Their height and width.
    """
    images = torch.rand(batch_size, 3, *size)
    if path.suffix == ONNX:
        import onnxruntime

        session, feed = onnx_session(path), {INPUT: images.numpy()}
        giving_back = onnxruntime.RunOptions()
        giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return {
            "inference": lambda: session.run(None, feed),
            "inference, lean": lambda: session.run(None, feed, giving_back),
        }
    run = read_exported(path).run
    return {"inference": lambda: run(images)}


def _is_compiled(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        return any("/aotinductor/" in name for name in file.namelist())


def _program_metadata(path: Path) -> dict[str, str]:
    """Return the metadata inside a program's file; of another file, nothing.

    torch prints a page about a file that is no program before it raises.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (name,) = [n for n in file.namelist() if n.endswith(f"/extra/{METADATA}")]
            metadata: dict[str, str] = json.loads(file.read(name))
    except (zipfile.BadZipFile, ValueError):  # or there is none of this name
        return {}
    return metadata


def _require_ours(path: Path, metadata: dict[str, str]) -> None:
    if missing := [key for key in KEYS if key not in metadata]:
        raise InputError(
            f"--exported {path}: this file does not say its {', '.join(missing)}.\n"
            "Expected a whole file that this version's `lightning export` has written."
        )


def _require_shape(
    path: Path, metadata: dict[str, str], batch_size: int, size: tuple[int, int]
) -> None:
    """Refuse images that a file does not take.

    Raises:
        InputError: Says what it takes.
    """
    fixed, least = json.loads(metadata["size"]), json.loads(metadata["least_size"])
    is_open = json.loads(metadata["open"])
    asked = f"{batch_size} of {size[0]}x{size[1]}"
    if "height" not in is_open and tuple(fixed) != size:
        takes = f"images of {fixed[0]}x{fixed[1]} only"
        expected = f"--size {fixed[0]}x{fixed[1]}"
    elif size[0] < least["height"] or size[1] < least["width"]:
        takes = f"images from {least['height']}x{least['width']} on"
        expected = "a larger --size"
    elif "batch" not in is_open and batch_size != 1:
        takes, expected = "one image at a time", "--batch-size 1"
    else:
        return
    raise InputError(
        f"--exported {path}: this file takes {takes}, found {asked}.\nExpected {expected}."
    )
