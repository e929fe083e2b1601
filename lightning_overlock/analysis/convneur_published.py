"""Sizes of ConvNeur, a re-implementation with reconstructed dimensions, beside the published ones.

`python -m lightning_overlock.analysis.convneur_published` prints the table.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.layers.neural_memory import NeuralMemory
from lightning_overlock.models import convneur
from lightning_overlock.models.convneur import MapAttention


class Row(NamedTuple):
    """A row of the paper's tables (arXiv 2603.19567): 224 px, ImageNet-1K."""

    name: str
    variant: str
    ideas: dict[str, Any]  # arguments that make the variant this row
    params_m: float | None
    flops_g: float
    top1: float


PUBLISHED = (
    Row("M1", "convneur_m1", {}, 4.3, 0.71, 75.4),
    Row("M2", "convneur_m2", {}, 6.1, 1.0, 77.6),
    Row("M3", "convneur_m3", {}, 10.6, 1.8, 80.0),
    Row("M4", "convneur_m4", {}, 18.1, 3.06, 81.5),
    Row("M3, no global branch", "convneur_m3", {"global_placement": "none"}, None, 1.4, 78.2),
    Row(
        "M3, global branch per block", "convneur_m3", {"global_placement": "block"}, None, 2.3, 80.4
    ),
    Row("M3, CBAM", "convneur_m3", {"global_operator": "cbam"}, None, 1.5, 78.4),
    Row("M3, non-local", "convneur_m3", {"global_operator": "non_local"}, None, 3.0, 79.1),
    Row(
        "M3, self-attention", "convneur_m3", {"global_operator": "self_attention"}, None, 1.8, 79.8
    ),
    Row("M3, fusion by addition", "convneur_m3", {"fusion": "add"}, None, 1.8, 79.6),
    # Published as .7 M more than M3.
    Row("M3, fusion by concatenation", "convneur_m3", {"fusion": "concat"}, 11.3, 1.9, 79.5),
    Row("M3, memory width 64", "convneur_m3", {"memory_dim": 64}, None, 1.5, 78.6),
    Row("M3, memory width 256", "convneur_m3", {"memory_dim": 256}, None, 2.7, 80.3),
)


class Size(NamedTuple):
    """Parameters and multiply-adds of one forward pass of one 224 px image.

    The plain counts are of everything. The paper's counting, as its figures imply, has the
    memory's initial weights twice, and leaves out the work inside the memory (reading it and
    writing it) and inside self-attention (queries times keys, times values), but not inside the
    non-local block. It has keys and values of every chunk, also of a last one that no token
    reads after, which this implementation does not compute.
    """

    params: int
    paper_params: int
    macs: int
    paper_macs: int


def size(variant: str, **ideas: Any) -> Size:
    """Count a ConvNeur in both ways.

    Args:
        variant: Name of a model of `models.convneur`.
        **ideas: Arguments of that model.

    Returns:
        The counts.

    Example:
        >>> found = size("convneur_m1")
        >>> f"{found.paper_params / 1e6:.2f} M, {found.paper_macs / 1e9:.2f} G"
        '4.31 M, 0.69 G'
    """
    with torch.device("meta"):  # counted, not computed
        model: nn.Module = getattr(convneur, variant)(**ideas)
        image = torch.zeros(1, 3, 224, 224)
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    params = sum(p.numel() for p in model.parameters())
    fast = sum(w.numel() for m in memories for w in (*m.memory, m.gamma))
    macs = sum(_macs(model, image).values())

    for memory in memories:
        memory.scan = "whole"  # has keys and values of every chunk
    paper = _macs(model, image)
    left_out = 0
    for path, module in model.named_modules():
        attention = isinstance(module, MapAttention) and module.heads > 1
        if attention or isinstance(module, NeuralMemory):
            left_out += paper[path]
    return Size(params, params + fast, macs, sum(paper.values()) - left_out)


def _macs(model: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Multiply-adds of every module by its path, without those of its children."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    root = type(model).__name__
    flops = {
        path: sum(counter.flop_counts.get(f"{root}.{path}" if path else root, {}).values())
        for path, _ in model.named_modules()
    }
    children = dict.fromkeys(flops, 0)
    for path, count in flops.items():
        if path:
            children[path.rpartition(".")[0]] += count
    return {path: (count - children[path]) // 2 for path, count in flops.items()}


def table() -> str:
    """Return ours beside the published sizes as Markdown, with the counting rule of each column.

    Example:
        >>> print(table().splitlines()[2])
        | M1 | 4.3 | 4.31 | 4.10 | 0.71 | 0.69 | 1.37 | 75.4 |
    """
    lines = [
        "| | params M, published | ours, paper's counting | ours, all | GMACs, published "
        "| ours, paper's counting | ours, all | top-1, published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        ours = size(row.variant, **row.ideas)
        params = "" if row.params_m is None else f"{row.params_m:.1f}"
        lines.append(
            f"| {row.name} | {params} | {ours.paper_params / 1e6:.2f} | {ours.params / 1e6:.2f} "
            f"| {row.flops_g:g} | {ours.paper_macs / 1e9:.2f} | {ours.macs / 1e9:.2f} "
            f"| {row.top1:.1f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "ConvNeur here is a re-implementation from the paper with reconstructed dimensions. "
            "Paper's counting, as its figures imply: the memory's initial weights twice; no work "
            "inside the memory and inside self-attention. All: each parameter once, every "
            "multiply-add at 224 px. Top-1 is the paper's; nothing here was trained on ImageNet.",
        ]
    )


if __name__ == "__main__":
    print(table())
