"""The neural memory's pass over a map whose size is left open in an exported network."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_overlock.ops.neural_memory import read_memory
from lightning_overlock.ops.neural_memory_scan import ChunkTable, chunk_table, scan_memory


def scanned(layer: Any, tokens: Tensor, queries: Tensor) -> Tensor:
    """Return the read-outs of all tokens, as the layer's `forward` has them for a known size.

    Args:
        layer: A `NeuralMemory`.
        tokens: (B, N, D) in the order of writing; N is a symbol.
        queries: (B, N, D).
    """
    weights = (*layer.memory, layer.gamma)
    if layer.write == "none":
        return read_memory(queries, weights)
    count = tokens.shape[1]
    size = layer.largest_chunk
    table, place = chunk_table(count, size, layer.min_chunks, tokens.device)
    keys = None if layer.query is not None else queries
    writing = layer.writing(tokens, table, keys)
    wide = torch.promote_types(queries.dtype, torch.float32)
    step = table.of(writing["step"]).to(wide).masked_fill(~table.inside, 0)
    nothing = step.new_zeros(step.shape[:2])
    momentum, decay = (
        nothing if writing[name] is None else writing[name].to(wide)
        for name in ("momentum", "decay")
    )
    q, k, v = (table.of(x).to(wide) for x in (queries, writing["k"], writing["v"]))
    weights = tuple(w.to(wide) for w in weights)
    read, memory = scan_memory(q, k, v, step, momentum, decay, weights, layer.segment_chunks)
    if layer.scan == "whole" or count < layer.min_chunks:
        return read_memory(queries.to(wide), memory).to(queries.dtype)
    return read.flatten(1, 2).index_select(1, place).to(queries.dtype)


def masked_summary(tokens: Tensor, table: ChunkTable, pool: nn.Module | None) -> Tensor:
    """(B, N, D) to (B, T, D): one vector per chunk, its tokens' mean or pooled by attention."""
    parts, inside = table.of(tokens), table.inside.unsqueeze(-1)
    if pool is None:
        return (parts * inside).sum(2) / inside.sum(1)
    return (pool(parts).masked_fill(~inside, -torch.inf).softmax(2) * parts).sum(2)
