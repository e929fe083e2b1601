"""The neural memory for maps whose size is left open in an exported network.

`ops.neural_memory` cuts a map of known size into chunks and unrolls them. Where the number of
tokens is a symbol, the chunks are one `scan` of torch, each padded to the same length: a token of
the padding has a step of zero and writes nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_overlock.ops.neural_memory import Weights, gradient_step, read_memory


@dataclass(frozen=True)
class ChunkTable:
    """Which tokens lie in which chunk."""

    index: Tensor  # (T, C) int64, the place of each token; that of the last one in the padding
    inside: Tensor  # (T, C) bool, whether it is a token of the chunk

    def of(self, x: Tensor) -> Tensor:
        """(B, N, ...) to (B, T, C, ...)."""
        chunks, length = self.index.shape
        taken = x.index_select(1, self.index.flatten())
        return taken.reshape(x.shape[0], chunks, length, *x.shape[2:])


def chunk_table(
    tokens: int, chunk_size: int, min_chunks: int, device: torch.device
) -> tuple[ChunkTable, Tensor]:
    """Cut tokens into chunks as the layer does, all padded to `chunk_size`.

    Args:
        tokens: N, a number or a symbol.
        chunk_size: C, the largest length of a chunk.
        min_chunks: The least number of whole chunks, see `layers.neural_memory`.
        device: Where the tables go.

    Returns:
        The table, and the place of each token in its flattened chunks, (N,) int64.
    """
    length: Any = torch.sym_min(chunk_size, torch.sym_max(1, tokens // min_chunks))
    chunks = (tokens + length - 1) // length
    # As tensors: not all operations with a symbol for a number have a form outside of torch.
    size, last = (
        torch.full((), value, dtype=torch.int64, device=device) for value in (length, tokens - 1)
    )
    offset = torch.arange(chunk_size, device=device)
    index = torch.arange(chunks, device=device)[:, None] * size + offset
    inside = (offset < size) & (index <= last)
    position = torch.arange(tokens, device=device)
    chunk = position // size
    place = chunk * chunk_size + position - chunk * size
    return ChunkTable(torch.minimum(index, last), inside), place


def scan_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    momentum: Tensor,
    decay: Tensor,
    weights: Weights,
    segment_chunks: int | Literal["all"],
) -> tuple[Tensor, Weights]:
    """Read and write chunk by chunk, as `ops.neural_memory.neural_memory` does.

    Args:
        q: (B, T, C, D), of chunks of one length.
        k: (B, T, C, D).
        v: (B, T, C, D).
        step: (B, T, C); zero for a token that writes nothing.
        momentum: (B, T).
        decay: (B, T).
        weights: The memory at the start: matrices and gamma without a batch.
        segment_chunks: Chunks whose gradients are taken at the same weights, or "all".

    Returns:
        The read-outs (B, T, C, D), each chunk's from the memory before it, and the memory after
        the last chunk, with a leading B.
    """
    from torch._higher_order_ops.scan import scan  # slow to import, and only exports need it

    batch, chunks = momentum.shape
    start = tuple(w.expand(batch, *w.shape).clone() for w in weights)
    still = tuple(torch.zeros_like(w) for w in start)
    numbers = torch.arange(chunks, device=q.device)
    begins = numbers == 0 if segment_chunks == "all" else numbers % segment_chunks == 0

    def advance(
        state: tuple[Weights, Weights, Weights], chunk: tuple[Tensor, ...]
    ) -> tuple[tuple[Weights, Weights, Weights], Tensor]:
        memory, velocity, anchor = state
        q, k, v, step, momentum, decay, begin = chunk
        read = read_memory(q, memory)
        anchor = tuple(torch.where(begin, m, a) for m, a in zip(memory, anchor, strict=True))
        memory, velocity = gradient_step(k, v, step, momentum, decay, memory, velocity, anchor)
        return (memory, velocity, anchor), read

    by_time = (x.transpose(0, 1) for x in (q, k, v, step, momentum, decay))
    state = (start, still, tuple(w.clone() for w in start))
    (memory, _, _), reads = scan(advance, state, (*by_time, begins))
    return reads.transpose(0, 1), memory
