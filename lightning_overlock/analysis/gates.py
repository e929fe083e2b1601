"""Gates of both backbones: the local map before, the gate, the map after.

OverLoCK (arXiv 2502.20087) multiplies the mixed features of every block of Focus-Net by
SiLU(BN(1x1(value))), which reaches from -0.28 upwards; ConvNeur (arXiv 2603.19567) multiplies
F_loc by sigmoid(G), between 0 and 1. The rows are those of ConvNeur's figure 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.hooks import evaluation, module_outputs, to_model_device
from lightning_overlock.analysis.style import draw_map, draw_picture, panels, style
from lightning_overlock.layers.tap import capture
from lightning_overlock.models.overlock import DynamicBlock


class Gate(NamedTuple):
    """One block's gate on a batch of images.

    Attributes:
        before: (B, C, h, w), what is gated: ConvNeur's F_loc, OverLoCK's mixed features behind
            their channel attention.
        gate: (B, C, h, w).
        after: (B, C, h, w), their product.
    """

    before: NDArray[np.float32]
    gate: NDArray[np.float32]
    after: NDArray[np.float32]


def gates(model: nn.Module, images: Tensor) -> dict[str, Gate]:
    """Return the gates of a model's blocks.

    Args:
        model: An OverLoCK with `gate=True` or a ConvNeur with `fusion="gate"`.
        images: (B, 3, H, W), normalised as the model wants them.

    Returns:
        The block's name, for example "focus.0.blocks.1", and its gate.

    Raises:
        ValueError: The model has no gate.

    Example:
        >>> import timm
        >>> found = gates(timm.create_model("test_convneur"), torch.randn(2, 3, 64, 64))
        >>> found["stages.0.blocks.0"].gate.shape
        (2, 8, 16, 16)
    """
    attention = [
        f"{name}.se" for name, block in model.named_modules() if isinstance(block, DynamicBlock)
    ]
    with (
        evaluation(model),
        torch.no_grad(),
        capture(model) as tapped,
        module_outputs(model, attention) as mixed,
    ):
        model(to_model_device(model, images))
    found = {}
    for path, gate in tapped.items():
        block, _, name = path.rpartition(".")
        if name != "gate":
            continue
        local = mixed[f"{block}.se"] if f"{block}.se" in mixed else tapped[f"{block}.local"]
        found[block] = Gate(*(x.float().cpu().numpy() for x in (local, gate, local * gate)))
    if not found:
        raise ValueError("the model has no gate; expected gate=True or fusion='gate'")
    return found


def gate_rows(found: dict[str, Gate]) -> list[dict[str, Any]]:
    """Return one row per gate: how open it is and what its openness depends on.

    Args:
        found: What `gates` returns.

    Returns:
        Rows with "block", "mean", "deviation" (of all values), and the shares of the gate's
        variance "by channel" (of channel means), "by place" (of means over channels, within an
        image) and "by image" (of image means); and "local kept", the norm of the map after over
        that before.

    Example:
        >>> ones = np.ones((1, 2, 4, 4), np.float32)
        >>> row = gate_rows({"block": Gate(ones, ones / 2, ones / 2)})[0]
        >>> row["mean"], row["local kept"]
        (0.5, 0.5)
    """
    rows = []
    for name, (before, gate, after) in found.items():
        values = gate.astype(np.float64)
        variance = float(values.var())
        scale = variance if variance > 0 else 1.0
        places = values.mean(1)
        whole = float(np.linalg.norm(before.astype(np.float64)))
        rows.append(
            {
                "block": name,
                "mean": float(values.mean()),
                "deviation": variance**0.5,
                "by channel": float(values.mean((0, 2, 3)).var()) / scale,
                "by place": float((places - places.mean((1, 2), keepdims=True)).var()) / scale,
                "by image": float(values.mean((1, 2, 3)).var()) / scale,
                "local kept": float(np.linalg.norm(after.astype(np.float64))) / whole
                if whole > 0
                else float("nan"),
            }
        )
    return rows


def plot_gates(
    image: Tensor, found: dict[str, Gate], blocks: Sequence[str] | None = None, index: int = 0
) -> Figure:
    """Draw a row per block: image, local map before, gate, map after.

    Maps are root mean squares over channels, gates means over channels; before and after share
    their scale.

    Args:
        image: (3, H, W).
        found: What `gates` returns.
        blocks: Names of blocks; None draws the first gate of every stage.
        index: Place of the image in the batch.

    Example:
        >>> ones = np.ones((1, 2, 4, 4), np.float32)
        >>> figure = plot_gates(torch.rand(3, 32, 32), {"block": Gate(ones, ones / 2, ones / 2)})
        >>> len(figure.axes)  # four panels, three bars
        7
    """
    if blocks is None:
        by_stage = {name.rpartition(".blocks")[0]: name for name in reversed(found)}
        blocks = [name for name in found if name in by_stage.values()]
    size = (image.shape[-2], image.shape[-1])
    with style():
        figure, axes = panels(len(blocks), 4, width=2.3, height=1.9)
        for line, (row, name) in enumerate(zip(axes, blocks, strict=True)):
            before, gate, after = (values[index] for values in found[name])
            draw_picture(row[0], image, name)
            rms = [np.sqrt(np.square(values).mean(0)) for values in (before, after)]
            titles = ("local map before", "gate", "map after") if line == 0 else ("", "", "")
            draw_map(row[1], rms[0], size, titles[0], "RMS over channels")
            draw_map(row[2], gate.mean(0), size, titles[1], "mean over channels")
            draw_map(row[3], rms[1], size, titles[2], "RMS over channels")
            for panel in (row[1], row[3]):
                panel.images[0].set_clim(0, max(float(values.max()) for values in rms))
    return figure
