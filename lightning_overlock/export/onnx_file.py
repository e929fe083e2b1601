"""A network as an ONNX file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lightning_overlock.bench.exported import INPUT
from lightning_overlock.errors import InputError


def save_onnx(
    program: ExportedProgram, path: Path, names: Sequence[str], metadata: dict[str, str]
) -> int:
    """Write a program as an ONNX file and return its opset.

    Args:
        program: Of `export_program`.
        path: The file.
        names: Of the outputs.
        metadata: Goes into the file's `metadata_props`, with "opset".

    Raises:
        InputError: An operation has no translation.
    """
    from torch.onnx.errors import OnnxExporterError

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own parts
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(names),
                custom_translation_table=_translations(),
            )
    except OnnxExporterError as error:
        reason = [line for line in str(error).splitlines() if "Error" in line]
        raise InputError(
            f"this network has no ONNX form: {reason[-1] if reason else error}\nnothing was written"
        ) from error
    opset = int(written.model.opset_imports[""])
    written.model.metadata_props.update(metadata | {"opset": str(opset)})
    written.save(path)
    return opset


def _translations() -> dict[Any, Any]:
    """Return translations of operations that torch's exporter has for fixed sizes only."""
    aten = torch.ops.aten
    return {
        aten.adaptive_avg_pool2d.default: _adaptive_average,
        aten._adaptive_avg_pool2d.default: _adaptive_average,
    }


def _adaptive_average(x: Any, output_size: Sequence[Any]) -> Any:
    """Averages over a grid of cells as two products: cell i has the pixels [i L / g, (i+1) L / g).

    Rows and columns of a cell are weighted alike, so that one matrix per axis does it, whatever
    the map's size. It is written in onnxscript, with ONNX's operators.
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def matrix(axis: int, cells: Any) -> Any:  # (cells, L)
        length = op.Shape(x, start=axis, end=axis + 1)
        cells = op.Constant(value_ints=[int(cells)]) if isinstance(cells, int) else cells
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        place = op.Range(zero, op.Squeeze(length), one)
        cell = op.Unsqueeze(op.Range(zero, op.Squeeze(cells), one), op.Constant(value_ints=[1]))
        first = op.Div(op.Mul(cell, length), cells)
        # Rounded up: (a + g - 1) // g.
        end = op.Add(op.Mul(op.Add(cell, one), length), op.Sub(cells, one))
        end = op.Div(end, cells)
        inside = op.And(op.GreaterOrEqual(place, first), op.Less(place, end))
        weight = op.CastLike(inside, x)
        return op.Div(weight, op.CastLike(op.Sub(end, first), x))

    rows, columns = matrix(2, output_size[0]), matrix(3, output_size[1])
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))
