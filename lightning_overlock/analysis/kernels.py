"""ContMix's dynamic kernels: how they look, how wide they are, whether the context moves them.

Source of the kernels: OverLoCK (arXiv 2502.20087, section 3.3). The measures are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.hooks import evaluation, to_model_device
from lightning_overlock.analysis.style import draw_overlay, draw_picture, panels, style
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.tap import capture
from lightning_overlock.models.overlock import OverLoCK

Kernels = dict[str, NDArray[np.float32]]


def dynamic_kernels(model: nn.Module, images: Tensor) -> Kernels:
    """Return the kernels that every ContMix layer of a model makes for images.

    Args:
        model: A network with `ContMix` layers, or such a layer.
        images: (B, 3, H, W), normalised as the model wants them (for a layer, its input).

    Returns:
        The layer's name with the kernel's size, for example "focus.0.blocks.1 7x7", and its
        kernels (B, G, h, w, K, K), each summing to one. h and w are the map's, or those that it
        is resized to where it is smaller than K. The window of pixel (i, j) starts at row
        clamp(i - K // 2, 0, h - K), and at the column alike.

    Raises:
        ValueError: The model has no ContMix layer.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_overlock")
        >>> kernels = dynamic_kernels(model, torch.randn(2, 3, 64, 64))
        >>> kernels["focus.0.blocks.0 5x5"].shape
        (2, 2, 7, 7, 5, 5)
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ContMix)}
    if not layers:
        raise ValueError("the model has no ContMix layer, so no dynamic kernels")
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str) -> Callable[[ContMix, tuple[Tensor, ...]], None]:
        def hook(layer: ContMix, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] = layer.aggregation_size(*inputs[0].shape[-2:])

        return hook

    handles = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    try:
        with evaluation(model), torch.no_grad(), capture(model, "kernel", "small_kernel") as found:
            model(to_model_device(model, images))
    finally:
        for handle in handles:
            handle.remove()
    kernels = {}
    for path, weights in found.items():
        layer = path.rpartition(".")[0]
        side = round(weights.shape[-1] ** 0.5)
        name = f"{layer.removesuffix('.mixer')} {side}x{side}".strip()
        kernels[name] = (
            weights.reshape(*weights.shape[:2], *sizes[layer], side, side).float().cpu().numpy()
        )
    return kernels


def on_map(kernels: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """Return the kernels of one pixel at their places on the map.

    Args:
        kernels: (B, G, h, w, K, K).
        row: Row of the pixel on the map, 0 to h - 1.
        column: Column of the pixel, 0 to w - 1.

    Returns:
        (B, G, h, w), zero outside the pixel's window.

    Example:
        >>> kernels = np.full((1, 1, 5, 5, 3, 3), 1 / 9, np.float32)
        >>> (on_map(kernels, 0, 0)[0, 0] > 0).astype(int).tolist()[:2]
        [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    """
    batch, groups, height, width, size, _ = kernels.shape
    top = min(max(row - size // 2, 0), height - size)
    left = min(max(column - size // 2, 0), width - size)
    out = np.zeros((batch, groups, height, width), np.float32)
    out[:, :, top : top + size, left : left + size] = kernels[:, :, row, column]
    return out


def entropy(kernels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the entropy of kernels in nats: 0 for a single tap, log K^2 for a uniform kernel.

    Args:
        kernels: (..., K, K), each summing to one.

    Returns:
        (...).

    Example:
        >>> round(float(entropy(np.full((3, 3), 1 / 9))), 4)  # log 9
        2.1972
    """
    weights = np.asarray(kernels, np.float64)
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return -(weights * logs).sum((-2, -1)) + 0.0


def effective_size(kernels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the side, in pixels of the map, of the uniform kernel with the same entropy.

    Args:
        kernels: (..., K, K).

    Returns:
        (...), between 1 and K.

    Example:
        >>> round(float(effective_size(np.full((7, 7), 1 / 49))), 4)
        7.0
    """
    return np.exp(entropy(kernels) / 2)


def kernel_rows(kernels: Kernels) -> list[dict[str, Any]]:
    """Return one row per layer, kernel size and group, means over images and pixels.

    Args:
        kernels: What `dynamic_kernels` returns.

    Returns:
        Rows with "kernel", "group", "entropy nats", "share of log K^2" and "effective size px" (of
        the map).

    Example:
        >>> kernel_rows({"3x3": np.full((1, 1, 4, 4, 3, 3), 1 / 9)})[0]["group"]
        0
    """
    rows = []
    for name, weights in kernels.items():
        nats, sizes = entropy(weights), effective_size(weights)
        for group in range(weights.shape[1]):
            mean = float(nats[:, group].mean())
            rows.append(
                {
                    "kernel": name,
                    "group": group,
                    "entropy nats": mean,
                    "share of log K^2": mean / float(np.log(weights.shape[-1] ** 2)),
                    "effective size px": float(sizes[:, group].mean()),
                }
            )
    return rows


@contextmanager
def exchanged_prior(model: nn.Module) -> Iterator[None]:
    """Give every image of a batch the context prior of the next one inside the block.

    Args:
        model: An OverLoCK with its decomposition, or a module that contains one.

    Raises:
        ValueError: The model makes no context prior.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_overlock").eval()
        >>> images = torch.randn(2, 3, 64, 64)
        >>> with exchanged_prior(model), torch.no_grad():
        ...     model(images).shape
        torch.Size([2, 1000])
    """
    taps = [
        module.context_prior_tap
        for module in model.modules()
        if isinstance(module, OverLoCK) and module.context_proj is not None
    ]
    if not taps:
        raise ValueError("the model makes no context prior; expected an OverLoCK with dds=True")
    handles = [
        tap.register_forward_hook(lambda _tap, _inputs, prior: prior.roll(1, 0)) for tap in taps
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def context_rows(model: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """Measure how much kernels react to the context: exchange the context prior between images.

    A kernel's change is the total variation distance, half the sum of absolute differences of its
    taps: 0 for none, 1 for kernels without a tap in common. In blocks behind the first the change
    of the features, which the exchanged prior has altered too, takes part.

    Args:
        model: An OverLoCK with its decomposition.
        images: (B, 3, H, W), two or more; each gets the context prior of the one before it.

    Returns:
        Rows with "kernel", "group", "change" (own features, the other's context prior against
        both own), "difference" (between the kernels of the two images as they are, for scale);
        means over images and pixels.

    Raises:
        ValueError: There are fewer than two images, no context prior or no ContMix layer.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_overlock")
        >>> rows = context_rows(model, torch.randn(2, 3, 64, 64))
        >>> list(rows[0])
        ['kernel', 'group', 'change', 'difference']
    """
    if len(images) < 2:
        raise ValueError(f"found {len(images)} image(s); exchanging the context prior takes two")
    own = dynamic_kernels(model, images)
    with exchanged_prior(model):
        exchanged = dynamic_kernels(model, images)
    rows = []
    for name, weights in own.items():
        change = _distance(weights, exchanged[name])
        difference = _distance(weights, np.roll(weights, 1, axis=0))
        rows += [
            {
                "kernel": name,
                "group": group,
                "change": float(change[group]),
                "difference": float(difference[group]),
            }
            for group in range(weights.shape[1])
        ]
    return rows


def _distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean total variation distance per group, (G,)."""
    apart = np.abs(first.astype(np.float64) - second).sum((-2, -1)) / 2
    return np.asarray(apart.mean((0, 2, 3)))


def plot_kernels(
    image: Tensor,
    kernels: Kernels,
    pixels: Sequence[tuple[int, int]],
    group: int | None = None,
    index: int = 0,
) -> Figure:
    """Draw the kernels of chosen pixels over an image: a row per pixel, a column per layer.

    Args:
        image: (3, H, W).
        kernels: What `dynamic_kernels` returns.
        pixels: (row, column) in the image.
        group: The channel group whose kernel is drawn; None draws the mean of all groups.
        index: Place of the image in the batch that the kernels were made for.

    Example:
        >>> kernels = {"3x3": np.full((1, 2, 4, 4, 3, 3), 1 / 9, np.float32)}
        >>> figure = plot_kernels(torch.rand(3, 32, 32), kernels, [(4, 4), (30, 16)])
        >>> len(figure.axes)
        4
    """
    height, width = image.shape[-2:]
    with style():
        figure, axes = panels(len(pixels), 1 + len(kernels), width=1.8, height=1.9)
        for line, (row, (i, j)) in enumerate(zip(axes, pixels, strict=True)):
            draw_picture(row[0], image, f"pixel ({i}, {j})")
            for panel, (name, weights) in zip(row[1:], kernels.items(), strict=True):
                rows, columns = weights.shape[2:4]
                found = on_map(weights[index : index + 1], i * rows // height, j * columns // width)
                drawn = found[0].mean(0) if group is None else found[0, group]
                draw_overlay(panel, image, drawn, name if line == 0 else "")
            for panel in row:
                panel.plot(j, i, marker="+", color="white", markersize=9, markeredgewidth=2.5)
                panel.plot(j, i, marker="+", color="black", markersize=8, markeredgewidth=1)
    return figure


def plot_context(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw how much every layer's kernels change with the context, group means and groups.

    Args:
        rows: What `context_rows` returns.

    Example:
        >>> row = {"kernel": "7x7", "group": 0, "change": 0.1, "difference": 0.3}
        >>> figure = plot_context([row])
        >>> figure.axes[0].get_ylabel()
        'change of kernels (0 to 1)'
    """
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    with style():
        figure, axes = panels(1, 1, width=max(4.0, 0.6 * len(names)), height=3.0)
        panel = axes[0, 0]
        for key, label in (
            ("change", "context prior exchanged"),
            ("difference", "another image altogether"),
        ):
            groups = [[row[key] for row in rows if row["kernel"] == name] for name in names]
            (line,) = panel.plot([float(np.mean(values)) for values in groups], label=label)
            for place, values in enumerate(groups):
                panel.plot(
                    [place] * len(values), values, linestyle="", marker=".", color=line.get_color()
                )
        panel.set_xticks(range(len(names)), names, rotation=40, ha="right")
        panel.set_xlabel("layer and kernel size (px of its map)")
        panel.set_ylabel("change of kernels (0 to 1)")
        panel.set_ylim(bottom=0)
        panel.legend()
    return figure
