"""One look for all figures: readable in grey, small enough for a page."""

from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Lines differ in lightness, dash and marker, so that a grey print tells them apart.
STYLE: Any = {
    "axes.prop_cycle": cycler(
        color=["#000000", "#b2452c", "#2f6fb3", "#7a7a7a", "#d9a21b", "#4aa391"],
        linestyle=["-", "--", "-.", ":", "-", "--"],
        marker=["o", "s", "^", "D", "v", "P"],
    ),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "figure.dpi": 110,
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.cmap": "viridis",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.bbox": "tight",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
# The lightness of viridis and inferno rises evenly from end to end.
OVERLAY = "inferno"


def style() -> AbstractContextManager[None]:
    """Return a block in which matplotlib draws in this package's style.

    Example:
        >>> with style():
        ...     figure, axes = panels(1, 2)
        >>> axes.shape
        (1, 2)
    """
    return matplotlib.rc_context(STYLE)


def panels(
    rows: int, columns: int, width: float = 2.2, height: float = 2.2
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of its own, not pyplot's, and its axes (rows, columns).

    Args:
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        width: Width of a panel in inches.
        height: Height of a panel in inches.

    Example:
        >>> figure, axes = panels(2, 3)
        >>> axes.shape
        (2, 3)
    """
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def picture(image: Tensor) -> NDArray[np.float32]:
    """Return an image (3, H, W) of any range as (H, W, 3) in [0, 1], stretched to that range.

    Example:
        >>> picture(torch.tensor([-1.0, 1.0]).expand(3, 1, 2))[0, :, 0].tolist()
        [0.0, 1.0]
    """
    image = image.detach().float().cpu()
    low, high = image.amin(), image.amax()
    return ((image - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy()


def enlarged(values: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map (h, w), or maps (B, h, w), at the size of the image, bilinear.

    Example:
        >>> enlarged(np.ones((7, 7)), (224, 224)).shape
        (224, 224)
    """
    maps = torch.as_tensor(np.asarray(values, np.float32))
    maps = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(maps, size, mode="bilinear").reshape(*values.shape[:-2], *size).numpy()


def draw_picture(axes: Axes, image: Tensor, title: str = "") -> None:
    """Draw an image (3, H, W) with its pixels on the axes.

    Example:
        >>> figure, axes = panels(1, 1)
        >>> draw_picture(axes[0, 0], torch.rand(3, 32, 32), "a picture")
        >>> axes[0, 0].get_ylabel()
        'row (px)'
    """
    axes.imshow(picture(image), interpolation="nearest")
    name_pixels(axes, title)


def draw_overlay(axes: Axes, image: Tensor, values: NDArray[Any], title: str = "") -> None:
    """Draw a map (h, w) of non-negative values over the grey image, its largest the brightest.

    Args:
        axes: Axes to draw in.
        image: (3, H, W).
        values: (h, w), enlarged to the image.
        title: Title of the panel.

    Example:
        >>> figure, axes = panels(1, 1)
        >>> draw_overlay(axes[0, 0], torch.rand(3, 32, 32), np.eye(4), "diagonal")
        >>> axes[0, 0].get_title()
        'diagonal'
    """
    height, width = image.shape[-2:]
    axes.imshow(picture(image).mean(2), cmap="gray", vmin=0, vmax=1)
    top = float(values.max()) or 1.0
    axes.imshow(enlarged(values, (height, width)), cmap=OVERLAY, alpha=0.65, vmin=0, vmax=top)
    name_pixels(axes, title)


def draw_map(
    axes: Axes, values: NDArray[Any], size: tuple[int, int], title: str = "", label: str = ""
) -> None:
    """Draw a map (h, w) in the coordinates of the image, with a bar that tells its values.

    Args:
        axes: Axes to draw in.
        values: (h, w).
        size: Height and width of the image in pixels.
        title: Title of the panel.
        label: What the values are, with their unit.

    Example:
        >>> figure, axes = panels(1, 1)
        >>> draw_map(axes[0, 0], np.eye(4), (32, 32), "diagonal", "share")
        >>> len(figure.axes)  # the panel and its bar
        2
    """
    height, width = size
    drawn = axes.imshow(
        values, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest"
    )
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8)
    name_pixels(axes, title)


def name_pixels(axes: Axes, title: str = "") -> None:
    """Name the axes of a panel that shows an image.

    Example:
        >>> figure, axes = panels(1, 1)
        >>> name_pixels(axes[0, 0], "title")
        >>> axes[0, 0].get_xlabel()
        'column (px)'
    """
    axes.grid(False)
    axes.set_title(title)
    axes.set_xlabel("column (px)")
    axes.set_ylabel("row (px)")
    axes.label_outer()
