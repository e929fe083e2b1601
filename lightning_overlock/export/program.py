"""A network as a program of torch's own operations (`torch.export`)."""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightning_overlock.bench.exported import METADATA
from lightning_overlock.errors import InputError


def export_program(network: nn.Module, images: Tensor, open_dims: Sequence[int]) -> ExportedProgram:
    """Return a network as a program.

    Args:
        network: In evaluation mode; maps (B, 3, H, W) to tensors.
        images: An example.
        open_dims: Dimensions of the images that are left open: 0, 2 and 3, or some of them.

    Raises:
        InputError: The network cannot be exported so; says why.
    """
    shapes = dict.fromkeys(open_dims, Dim.DYNAMIC)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torchvision describes its operations in a way that torch 2.15 deprecates.
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(network, (images,), dynamic_shapes=(shapes,))
    except Exception as error:  # torch has no common type for what a trace cannot follow
        text = str(error).strip().splitlines()[0]
        raise InputError(
            f"torch.export cannot follow this network on images of {list(images.shape)}"
            f"{' with open sizes' if open_dims else ''}: {text}\n"
            + ("expected a larger --size, or none of --dynamic" if open_dims else "")
        ) from error
    left = {str(n.target) for n in program.graph.nodes if "lightning_overlock" in str(n.target)}
    assert not left, f"operators of this package are left: {left}"
    return program


def least_sizes(program: ExportedProgram) -> dict[str, int]:
    """Return the least height and width that a program takes."""
    (images,) = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    found = {}
    for name, side in zip(("height", "width"), images.meta["val"].shape[2:], strict=True):
        if isinstance(side, torch.SymInt):
            found[name] = int(program.range_constraints[side.node.expr].lower)
        else:
            found[name] = int(side)
    return found


def save_program(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Write a program, with a JSON text beside it in the same file."""
    torch.export.save(program, path, extra_files={METADATA: metadata})


def compile_program(program: ExportedProgram, path: Path, metadata: str) -> None:
    """Compile a program by AOTInductor and write the package, with a JSON text inside.

    Raises:
        InputError: Inductor cannot compile it.
    """
    from torch._inductor import aoti_compile_and_package

    try:
        aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # Inductor has no common type for what it cannot compile
        text = str(error).strip().splitlines()[0]
        raise InputError(f"AOTInductor cannot compile this network: {text}") from error
    with zipfile.ZipFile(path, "a") as package:  # where torch.export.save has it
        package.writestr(f"{path.stem}/extra/{METADATA}", metadata)
