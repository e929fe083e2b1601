"""The neural memory at work: surprise per chunk, the path of its weights, other chunks and scans.

Surprise of chunk t is the mean of (M_{t-1}(k_t) - v_t)^2 over its tokens and features (Titans,
arXiv 2501.00663; as used by ConvNeur, arXiv 2603.19567). Distances are ours.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.hooks import evaluation, module_outputs, to_model_device
from lightning_overlock.analysis.style import draw_map, draw_picture, panels, style
from lightning_overlock.layers.neural_memory import NeuralMemory, Scan, largest_step
from lightning_overlock.layers.tap import capture
from lightning_overlock.ops.neural_memory import Weights
from lightning_overlock.ops.shuffled_order import shuffled_order


class MemoryTrace(NamedTuple):
    """How one memory is written with a batch of maps, in raster order.

    Attributes:
        surprise: (B, T), before each chunk is written.
        distance: (B, T), of the weights from the initial memory after each chunk: the norm of the
            difference over the norm of the initial weights, gamma included.
        step_length: (B, T), how far each chunk moves the weights, in the same unit. The sum is
            the length of their path.
        chunk_of: (h, w) int64, the chunk that each pixel of the map belongs to.
    """

    surprise: NDArray[np.float32]
    distance: NDArray[np.float32]
    step_length: NDArray[np.float32]
    chunk_of: NDArray[np.int64]


def memory_traces(model: nn.Module, images: Tensor) -> dict[str, MemoryTrace]:
    """Return what the memories of a model do while they read images.

    Args:
        model: A ConvNeur with memories, or a `NeuralMemory` itself.
        images: (B, 3, H, W), normalised as the model wants them (for a memory its map, (B, D, h,
            w)).

    Returns:
        The memory's name, for example "stages.0.global_branch.operator", and its trace.

    Raises:
        ValueError: The model has no neural memory.

    Example:
        >>> import timm
        >>> traces = memory_traces(timm.create_model("test_convneur"), torch.randn(2, 3, 64, 64))
        >>> trace = traces["stages.0.global_branch.operator"]
        >>> trace.surprise.shape == trace.distance.shape, trace.chunk_of.shape
        (True, (16, 16))
    """
    memories = _memories(model)
    maps: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(_memory: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps[name] = inputs[0]

        return hook

    handles = [m.register_forward_pre_hook(remember(name)) for name, m in memories.items()]
    traces = {}
    with evaluation(model), torch.no_grad():
        try:
            with capture(model, "surprise") as found:
                model(to_model_device(model, images))
        finally:
            for handle in handles:
                handle.remove()
        for name, memory in memories.items():
            x = maps[name]
            height, width = x.shape[-2:]
            distance, step_length = _trajectory(memory.states(x))
            chunk_of = np.arange(height * width) // memory.chunk_length(height * width)
            if memory.scan == "shuffled":
                chunk_of = chunk_of[shuffled_order(height * width).argsort().numpy()]
            traces[name] = MemoryTrace(
                found[f"{name}.surprise".lstrip(".")].float().cpu().numpy(),
                distance,
                step_length,
                chunk_of.reshape(height, width),
            )
    return traces


def _memories(model: nn.Module) -> dict[str, NeuralMemory]:
    memories = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NeuralMemory) and module.write != "none"
    }
    if not memories:
        raise ValueError(
            "the model has no neural memory that is written; expected global_operator='memory'"
        )
    return memories


def _trajectory(states: Iterator[Weights]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return distance and step length (B, T) of T + 1 states."""

    def flat(weights: Weights) -> Tensor:
        return torch.cat([w.detach().flatten(1) for w in weights], 1)

    start = last = flat(next(states))
    distance, step_length = [], []
    for weights in states:
        now = flat(weights)
        distance.append((now - start).norm(dim=1) / start.norm(dim=1))
        step_length.append((now - last).norm(dim=1) / start.norm(dim=1))
        last = now
    return tuple(torch.stack(x, 1).float().cpu().numpy() for x in (distance, step_length))  # type: ignore[return-value]


def surprise_map(trace: MemoryTrace) -> NDArray[np.float32]:
    """Return the surprise of the chunk that each pixel of the map belongs to, (B, h, w).

    Example:
        >>> chunks = np.array([[0, 0], [1, 1]])
        >>> two = np.array([[3.0, 1.0]], np.float32)
        >>> surprise_map(MemoryTrace(two, two, two, chunks))[0].tolist()
        [[3.0, 3.0], [1.0, 1.0]]
    """
    return trace.surprise[:, trace.chunk_of]


@contextmanager
def memory_settings(
    model: nn.Module, chunk_size: int | None = None, scan: Scan | None = None
) -> Iterator[None]:
    """Let all memories of a model cut and scan maps in another way inside the block.

    A larger chunk sums more losses, so a memory whose largest step would not be stable with it
    gets the largest that is (`layers.neural_memory.largest_step`).

    Args:
        model: A ConvNeur with memories, or a `NeuralMemory`.
        chunk_size: Tokens in a chunk; None leaves it.
        scan: "raster", "bidirectional" or "whole"; None leaves it.

    Raises:
        ValueError: The model has no memory.

    Example:
        >>> memory = NeuralMemory(8, chunk_size=4)
        >>> with memory_settings(memory, chunk_size=16, scan="whole"):
        ...     memory.chunk_size, memory.scan
        (16, 'whole')
        >>> memory.chunk_size, memory.scan
        (4, 'raster')
    """
    before = [
        (m, m.chunk_size, m.eval_chunk_size, m.scan, m.max_step) for m in _memories(model).values()
    ]
    try:
        for memory, _, _, old_scan, old_step in before:
            if chunk_size is not None:
                memory.chunk_size, memory.eval_chunk_size = chunk_size, None
            memory.scan = old_scan if scan is None else scan
            limit = largest_step(memory.dim, memory.chunk_size, memory.segment_chunks)
            memory.max_step = min(old_step, limit)
        yield
    finally:
        for memory, old_size, old_eval_size, old_scan, old_step in before:
            memory.chunk_size, memory.eval_chunk_size = old_size, old_eval_size
            memory.scan, memory.max_step = old_scan, old_step


def memory_rows(
    model: nn.Module,
    images: Tensor,
    chunk_sizes: Sequence[int] = (),
    scans: Sequence[Scan] = (),
) -> list[dict[str, Any]]:
    """Measure what changes with chunk length and scan, with the weights as they are.

    Args:
        model: A ConvNeur with memories, or a `NeuralMemory`.
        images: (B, 3, H, W), normalised as the model wants them.
        chunk_sizes: Tokens of the chunks to try, with the scan as built.
        scans: Scans to try, with the chunks as built.

    Returns:
        Rows with "setting" ("as built" first), "memory", "chunk tokens", "chunks", "surprise of
        the first chunk", "surprise of the last chunk", "distance" (after the last), "path length"
        (sum of the steps) and "change of the read-out": the norm of the difference of the memory's
        output to that as built over the norm of the latter. Means over images. Surprise, distance
        and path length are those of the raster order whatever the scan.

    Raises:
        ValueError: The model has no memory.

    Example:
        >>> rows = memory_rows(NeuralMemory(8, chunk_size=16), torch.randn(1, 8, 8, 8), [8])
        >>> [(row["setting"], row["chunks"]) for row in rows]
        [('as built', 4), ('chunks of 8', 8)]
    """
    settings: list[tuple[str, dict[str, Any]]] = [("as built", {})]
    settings += [(f"chunks of {size}", {"chunk_size": size}) for size in chunk_sizes]
    settings += [(f"{scan} scan", {"scan": scan}) for scan in scans]
    memories = _memories(model)
    rows = []
    built: dict[str, Tensor] = {}
    for setting, changes in settings:
        with memory_settings(model, **changes), module_outputs(model, list(memories)) as read:
            traces = memory_traces(model, images)
        built = built or read
        for name, trace in traces.items():
            change = (read[name] - built[name]).flatten(1).norm(dim=1)
            change = change / built[name].flatten(1).norm(dim=1)
            rows.append(
                {
                    "setting": setting,
                    "memory": name,
                    "chunk tokens": int((trace.chunk_of == 0).sum()),
                    "chunks": trace.surprise.shape[1],
                    "surprise of the first chunk": float(trace.surprise[:, 0].mean()),
                    "surprise of the last chunk": float(trace.surprise[:, -1].mean()),
                    "distance": float(trace.distance[:, -1].mean()),
                    "path length": float(trace.step_length.sum(1).mean()),
                    "change of the read-out": float(change.mean()),
                }
            )
    return rows


def plot_surprise(images: Tensor, traces: dict[str, MemoryTrace]) -> Figure:
    """Draw a row per image: the image, then every memory's surprise over it.

    Args:
        images: (B, 3, H, W).
        traces: What `memory_traces` returns for these images.

    Example:
        >>> two = np.array([[3.0, 1.0]], np.float32)
        >>> trace = MemoryTrace(two, two, two, np.array([[0, 0], [1, 1]]))
        >>> len(plot_surprise(torch.rand(1, 3, 32, 32), {"memory": trace}).axes)
        3
    """
    size = (images.shape[-2], images.shape[-1])
    with style():
        figure, axes = panels(len(images), 1 + len(traces), width=2.3, height=1.9)
        for index, (row, image) in enumerate(zip(axes, images, strict=True)):
            draw_picture(row[0], image)
            for panel, (name, trace) in zip(row[1:], traces.items(), strict=True):
                title = _short(name) if index == 0 else ""
                draw_map(panel, surprise_map(trace)[index], size, title, "surprise")
    return figure


def plot_trajectory(traces: dict[str, MemoryTrace]) -> Figure:
    """Draw surprise and distance of the weights against the chunk, means over images.

    Args:
        traces: What `memory_traces` returns.

    Example:
        >>> two = np.array([[3.0, 1.0]], np.float32)
        >>> trace = MemoryTrace(two, two, two, np.array([[0, 0], [1, 1]]))
        >>> figure = plot_trajectory({"memory": trace})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['chunk (in raster order)', 'chunk (in raster order)']
    """
    with style():
        figure, axes = panels(1, 2, width=3.4, height=2.6)
        labels = ("surprise (mean squared error)", "distance / initial norm")
        for panel, key, label in zip(axes[0], ("surprise", "distance"), labels, strict=True):
            for name, trace in traces.items():
                means = getattr(trace, key).mean(0)
                panel.plot(range(1, len(means) + 1), means, label=_short(name))
            panel.set_xlabel("chunk (in raster order)")
            panel.set_ylabel(label)
            panel.set_ylim(bottom=0)
        axes[0, 0].legend()
    return figure


def _short(name: str) -> str:
    return name.removesuffix(".global_branch.operator") or "memory"
