"""Effective receptive field: how much every pixel of the image matters to a central output.

Source: Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks (arXiv 1701.04128); the areas of the central square are RepLKNet's measure (arXiv
2203.06717, table 10).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.hooks import evaluation, to_model_device
from lightning_overlock.analysis.style import name_pixels, panels, style

SHARES = (0.2, 0.3, 0.5, 0.99)


def receptive_fields(
    model: nn.Module, images: Tensor, stages: Sequence[int] | None = None, batch_size: int = 8
) -> dict[str, NDArray[np.float64]]:
    """Return the effective receptive field of a model's stages.

    The gradient of the central output of a stage, summed over its channels, with respect to the
    image; absolute values, summed over the image's channels and averaged over images. (Luo et al.
    average over random images and signals, RepLKNet takes the positive part instead of the
    absolute value.) For fields that belong to the model and not to its border, images should be
    larger than those it is trained with; for fields that belong to the data, take real ones.

    Args:
        model: A timm model with or without `features_only`, or any module that maps an image to
            a map (B, C, h, w) or a list of them.
        images: (B, 3, H, W), normalised as the model wants them.
        stages: Places in timm's `feature_info`; None takes all, or all maps of the list.
        batch_size: Images taken at a time.

    Returns:
        The stage's name, for example "focus.0", and its field (H, W), which sums to one.

    Raises:
        ValueError: An output is no map, or no gradient reaches the image.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_convnext")
        >>> fields = receptive_fields(model, torch.randn(2, 3, 64, 64), stages=[0, 3])
        >>> {name: field.shape for name, field in fields.items()}
        {'stages.0': (64, 64), 'stages.3': (64, 64)}
    """
    sums: dict[str, Tensor] = {}
    with evaluation(model), torch.enable_grad():
        for batch in torch.split(to_model_device(model, images), batch_size):
            batch = batch.detach().clone().requires_grad_()
            maps = _stage_maps(model, batch, stages)
            for number, (name, value) in enumerate(maps.items(), 1):
                if value.ndim != 4:
                    raise ValueError(
                        f"{name} gives {tuple(value.shape)}; expected a map (B, C, h, w)"
                    )
                centre = value[:, :, value.shape[2] // 2, value.shape[3] // 2].sum()
                (slope,) = torch.autograd.grad(centre, batch, retain_graph=number < len(maps))
                field = slope.abs().double().sum((0, 1)).cpu()
                sums[name] = sums.get(name, torch.zeros_like(field)) + field
    for name, field in sums.items():
        if not field.sum() > 0:
            raise ValueError(f"the central output of {name} has no finite slope but zero")
    return {name: (field / field.sum()).numpy() for name, field in sums.items()}


def _stage_maps(model: Any, images: Tensor, stages: Sequence[int] | None) -> dict[str, Tensor]:
    """Return maps (B, C, h, w) by the names of their stages."""
    if hasattr(model, "forward_intermediates"):
        # Not all models return them in the order asked for.
        indices = sorted(range(len(model.feature_info)) if stages is None else stages)
        names = [model.feature_info[index]["module"] for index in indices]
        maps = model.forward_intermediates(
            images, indices=indices, output_fmt="NCHW", intermediates_only=True
        )
        return dict(zip(names, maps, strict=True))
    maps = model(images)
    maps = [maps] if isinstance(maps, Tensor) else list(maps)
    if hasattr(model, "feature_info"):
        names = model.feature_info.module_name()
    else:
        names = [f"output {number}" for number in range(len(maps))]
    return {names[index]: maps[index] for index in stages or range(len(maps))}


class Square(NamedTuple):
    """The smallest square around a field's centre that holds a share of its mass.

    Attributes:
        side: Side in pixels; where the square sticks out of the image, that of a square of as many
            pixels as lie inside.
        area: Share of the image, 0 to 1.
        row: Row of the centre, to half a pixel.
        column: Column of the centre, to half a pixel.
    """

    side: float
    area: float
    row: float
    column: float


def central_square(field: NDArray[np.float64], share: float) -> Square:
    """Return the smallest square around a field's centre that holds a share of its mass.

    The centre is the median of the mass along rows and along columns, to half a pixel: where
    strided convolutions put the centre of an output differs between networks by up to a cell.

    Args:
        field: (H, W), sums to one.
        share: Share of the mass, above 0 and at most 1.

    Raises:
        ValueError: The share is out of range.

    Example:
        >>> field = np.zeros((15, 15))
        >>> field[4:11, 4:11] = 1 / 49
        >>> central_square(field, 0.99)
        Square(side=7.0, area=0.21777777777777776, row=7.0, column=7.0)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected above 0 and at most 1")
    middle = [_median(field.sum(1)), _median(field.sum(0))]
    away = [abs(np.arange(length) - m) for length, m in zip(field.shape, middle, strict=True)]
    distance = np.maximum.outer(away[0], away[1])
    # Rings of pixels at the same distance; half a pixel between centre coordinates is exact.
    rings, ring_of, sizes = np.unique(distance, return_inverse=True, return_counts=True)
    mass = np.cumsum(np.bincount(ring_of.ravel(), field.ravel()))
    # A share of 1 must not fail by rounding.
    last = min(int(np.searchsorted(mass, share * mass[-1] * (1 - 1e-9))), len(rings) - 1)
    pixels = int(sizes[: last + 1].sum())
    return Square(
        side=float(np.sqrt(pixels)),
        area=pixels / field.size,
        row=middle[0],
        column=middle[1],
    )


def _median(mass: NDArray[np.float64]) -> float:
    """Return the coordinate that halves the mass, to half a pixel."""
    edges = np.arange(len(mass) + 1) - 0.5
    halved = np.interp(0.5, np.concatenate([[0.0], np.cumsum(mass) / mass.sum()]), edges)
    return round(2 * float(halved)) / 2


def field_rows(
    fields: dict[str, NDArray[np.float64]], shares: Sequence[float] = SHARES
) -> list[dict[str, Any]]:
    """Return one row per stage: side and area of the central squares.

    Args:
        fields: Fields by name, as `receptive_fields` returns them.
        shares: Shares of the mass, above 0 and at most 1.

    Returns:
        Rows with "stage" and, for every share, "50 % side px" and "50 % area" (share of the
        image).

    Example:
        >>> field_rows({"all alike": np.full((10, 10), 0.01)}, shares=[0.5])
        [{'stage': 'all alike', '50 % side px': 8.0, '50 % area': 0.64}]
    """
    rows = []
    for name, field in fields.items():
        row: dict[str, Any] = {"stage": name}
        for share in shares:
            square = central_square(field, share)
            row[f"{100 * share:g} % side px"] = square.side
            row[f"{100 * share:g} % area"] = square.area
        rows.append(row)
    return rows


def plot_receptive_fields(
    fields: dict[str, NDArray[np.float64]], shares: Sequence[float] = (0.5, 0.99), cell: int = 1
) -> Figure:
    """Draw fields side by side on a logarithmic scale, with their central squares.

    Args:
        fields: Fields by name, each (H, W).
        shares: Shares of the mass that the squares hold.
        cell: Side in pixels of the squares that a field is averaged over to be drawn; fields of
            noise are speckled. The central squares are those of the field itself.

    Raises:
        ValueError: A field's sides are no multiples of the cell.

    Example:
        >>> figure = plot_receptive_fields({"stage": np.full((10, 10), 0.01)})
        >>> figure.axes[0].get_title()
        'stage'
    """
    with style():
        figure, axes = panels(1, len(fields), width=2.4, height=2.5)
        for panel, (name, field) in zip(axes[0], fields.items(), strict=True):
            height, width = field.shape
            if height % cell or width % cell:
                raise ValueError(f"{name} is {height}x{width}; expected multiples of cell={cell}")
            coarse = field.reshape(height // cell, cell, width // cell, cell).mean((1, 3))
            drawn = panel.imshow(
                np.maximum(coarse / coarse.max(), 1e-4),
                norm=LogNorm(1e-4, 1),
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )
            for share, dash in zip(shares, ("-", "--", ":", "-."), strict=False):
                square = central_square(field, share)
                panel.add_patch(
                    Rectangle(
                        (square.column - square.side / 2, square.row - square.side / 2),
                        square.side,
                        square.side,
                        fill=False,
                        edgecolor="white",
                        linestyle=dash,
                        label=f"{100 * share:g} %: {square.side:.0f} px",
                    )
                )
            name_pixels(panel, name)
            panel.legend(
                loc="lower left",
                labelcolor="white",
                frameon=True,
                facecolor="black",
                edgecolor="none",
            )
        figure.colorbar(drawn, ax=axes, label="share of the largest slope", shrink=0.9)
    return figure
