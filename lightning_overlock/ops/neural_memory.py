"""Chunked associative memory: a small MLP whose weights are written while it is read.

After Titans (arXiv 2501.00663) as used by ConvNeur (arXiv 2603.19567). Everything here is plain
tensor arithmetic: the gradient that writes the memory is in closed form, so there is no graph
inside the graph, PyTorch differentiates through the writing as through any other product, and
torch's FlopCounterMode counts all of it.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_overlock.ops.tracing import is_exporting, is_tracing

EPSILON = 1e-5  # of the layer norm inside the memory

RECOMPUTE: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}

# The fast weights: one matrix (d_in, d_out) per layer of the MLP, then gamma (D,). Leading
# dimensions are batches of memories.
Weights = tuple[Tensor, ...]


def read_memory(tokens: Tensor, weights: Weights) -> Tensor:
    """Return f_W(x) = LayerNorm(MLP_W(x)) * (gamma + 1) + x, the norm without affine.

    Args:
        tokens: (..., N, D).
        weights: The matrices of an MLP with exact GELU and no bias, from D to D, and gamma; their
            leading dimensions broadcast with those of `tokens`.

    Returns:
        (..., N, D).
    """
    *matrices, gamma = weights
    hidden = tokens @ matrices[0]
    for matrix in matrices[1:]:
        hidden = F.gelu(hidden) @ matrix
    normed = F.layer_norm(hidden, hidden.shape[-1:], eps=EPSILON)
    return normed * (gamma.unsqueeze(-2) + 1) + tokens


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    weights: Weights,
    *,
    chunk_size: int,
    momentum: Tensor | None = None,
    decay: Tensor | None = None,
    segment_chunks: int | Literal["all"] = 1,
    write_remainder: bool = False,
    read_final: bool = False,
) -> tuple[Tensor, Weights]:
    """Read and write the memory chunk by chunk.

    Chunk t is read from the memory that the chunks before it have left, y_t = f_{M_{t-1}}(q_t),
    and is then written (Titans, section 3.1):

        g_t = d/dW sum_i step_i * mean_d (f_W(k_i) - v_i)^2
        S_t = momentum_t S_{t-1} - g_t,    S_0 = 0
        M_t = (1 - decay_t) M_{t-1} + S_t,    M_0 = weights

    g_t is taken at the weights that stood at the start of the chunk's segment: with
    `segment_chunks=1` that is M_{t-1}, the formula of the papers; longer segments compute their
    gradients at once, and S and M follow by an associative scan. The outer gradient flows through
    all of it. Time is linear in the number of tokens. Only the state at the start of every run of
    about sqrt(T) chunks is kept for the backward pass, which recomputes the states in between, but
    for those of the last run.
    Half-precision inputs are computed in float32, under autocast too.

    Args:
        q: (B, N, D), N >= W.
        k: (B, W, D). The tokens of q after the last whole chunk of k are only read, so keys that
            no later token would read may be left out.
        v: (B, W, D).
        step: (B, W), the size of every token's step, theta.
        weights: The memory at the start: the matrices (d_in, d_out) of an MLP from D to D, and
            gamma (D,); or all of them with a leading B.
        chunk_size: Tokens in a chunk.
        momentum: (B, T), eta; T counts the chunks that are written, a remainder included if it
            is. None is no momentum.
        decay: (B, T), alpha. None is no decay.
        segment_chunks: Chunks in a segment, or "all".
        write_remainder: Whether the tokens of k after its last whole chunk are written, as a last
            and shorter chunk (q reads the memory before that).
        read_final: Whether all of q, then of any length, is read from the final memory instead.

    Returns:
        The read-outs, shaped like q and in its dtype, and the final weights with a leading B, in
        float32 (float64 for float64 inputs).

    Raises:
        ValueError: Shapes do not fit each other, or a chunk or a segment is below one.
    """
    _check(q, k, v, step, weights, chunk_size, segment_chunks, read_final)
    batch, tokens = _plain(k.shape[:2])
    chunks = tokens // chunk_size  # not `divmod`, which symbolic sizes do not have
    rest = tokens % chunk_size if write_remainder else 0
    updates = chunks + (rest > 0)
    for name, value in (("momentum", momentum), ("decay", decay)):
        if value is not None and value.shape != (batch, updates):
            raise ValueError(f"{name} must be {(batch, updates)}, found {tuple(value.shape)}")

    dtype = torch.promote_types(k.dtype, torch.float32)
    with _autocast_off(k.device.type):
        queries, k, v, step = (x.to(dtype) for x in (q, k, v, step))
        momentum, decay = (
            k.new_zeros(batch, updates) if x is None else x.to(dtype) for x in (momentum, decay)
        )
        *matrices, gamma = (w.to(dtype) for w in weights)
        memory = (
            *(m.expand(batch, *m.shape[-2:]) for m in matrices),
            gamma.expand(batch, gamma.shape[-1]),
        )
        state = _State(memory, tuple(torch.zeros_like(w) for w in memory), memory)

        segment = max(updates, 1) if segment_chunks == "all" else segment_chunks
        runs = _cuts(0, chunks, max(math.isqrt(chunks), 1))

        def split(x: Tensor, unit: int) -> list[Tensor]:
            # Once for all runs: the backward of a slice fills a whole map with zeros every time.
            sizes = [n * unit for n in runs]
            return list(torch.split(x, [*sizes, _plain(x.shape)[1] - sum(sizes)], 1))

        *parts, last = zip(
            split(queries, 0 if read_final else chunk_size),
            *(split(x, chunk_size) for x in (k, v, step)),
            *(split(x, 1) for x in (momentum, decay)),
            strict=True,
        )
        recompute = torch.is_grad_enabled() and not is_exporting()
        reads = []
        for i, part in enumerate(parts):
            # The backward pass starts with the last run: recomputing it would free nothing.
            keep = not recompute or i == len(runs) - 1
            advance = _run if keep else partial(checkpoint, _run, **RECOMPUTE)
            read, state = advance(state, part, sum(runs[:i]), segment)
            reads.append(read)
        memory = state.memory
        if rest:
            _, state = _run(state, (last[0][:, :0], *last[1:]), chunks, segment)
        reads.append(read_memory(last[0], state.memory if read_final else memory))
        return torch.cat(reads, 1).to(q.dtype), state.memory


def _plain(sizes: Sequence[int]) -> Sequence[int]:
    """Sizes as numbers under `torch.jit.trace` too, where they are tensors."""
    return [int(size) for size in sizes] if is_tracing() else sizes


def _cuts(first: int, last: int, length: int) -> list[int]:
    """Lengths of the pieces of [first, last) when it is cut at the multiples of `length`."""
    inner = range((first // length + 1) * length, last, length)
    cuts = [first, *inner, last] if last > first else []
    return [stop - start for start, stop in itertools.pairwise(cuts)]


class _State(NamedTuple):
    """What goes from chunk to chunk; every tensor has a leading B."""

    memory: Weights  # M
    velocity: Weights  # S
    anchor: Weights  # the weights at the start of the segment


def _run(
    state: _State, part: tuple[Tensor, ...], first: int, segment: int
) -> tuple[Tensor, _State]:
    """Read and write consecutive chunks of equal length.

    Args:
        state: The memory before the first of the chunks.
        part: Slices q, k, v, step, momentum and decay of these chunks.
        first: Index of the first of the chunks.
        segment: Chunks in a segment.

    Returns:
        The read-outs (B, N, D) and the state after the last of the chunks.
    """
    memory, velocity, anchor = state
    q, k, v, step, momentum, decay = part
    batch, count = momentum.shape
    q, k, v = (x.reshape(batch, count, x.shape[1] // count, x.shape[2]) for x in (q, k, v))
    step = step.reshape(k.shape[:3])
    pieces = _cuts(first, first + count, segment)
    reads = []
    for q_, k_, v_, step_, momentum_, decay_ in zip(
        *(torch.split(x, pieces, 1) for x in (q, k, v, step, momentum, decay)),
        strict=True,
    ):
        if first % segment == 0:
            anchor = memory
        descent = _descent(k_, v_, step_, anchor)
        chunk_memories, memory, velocity = _scan(memory, velocity, descent, momentum_, decay_)
        reads.append(read_memory(q_, chunk_memories))
        first += momentum_.shape[1]
    return torch.cat(reads, 1).flatten(1, 2), _State(memory, velocity, anchor)


def _descent(k: Tensor, v: Tensor, step: Tensor, weights: Weights) -> Weights:
    """The closed-form -g of every chunk, all taken at the same weights.

    Args:
        k: (B, G, L, D).
        v: (B, G, L, D).
        step: (B, G, L).
        weights: The memory's weights, with a leading B.

    Returns:
        A tensor (B, G, ...) for every weight.
    """
    chunks = k.shape[:3]
    *matrices, gamma = weights
    keys = k.flatten(1, 2)
    inputs, preactivations = [keys], [keys @ matrices[0]]
    for matrix in matrices[1:]:
        inputs.append(F.gelu(preactivations[-1]))
        preactivations.append(inputs[-1] @ matrix)
    hidden = preactivations.pop()
    centred = hidden - hidden.mean(-1, keepdim=True)
    inverse_deviation = torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPSILON)
    normed = centred * inverse_deviation
    scale = gamma.unsqueeze(-2) + 1
    error = normed * scale + keys - v.flatten(1, 2)

    # Backwards, from -d loss / d read-out to the weights.
    descent = error * (step.flatten(1, 2).unsqueeze(-1) * (-2 / k.shape[-1]))
    gamma_step = (descent * normed).reshape(*chunks, -1).sum(2)
    descent = descent * scale
    descent = inverse_deviation * (
        descent
        - descent.mean(-1, keepdim=True)
        - normed * (descent * normed).mean(-1, keepdim=True)
    )
    steps = [gamma_step]
    for i in reversed(range(len(matrices))):
        steps.append(inputs[i].reshape(*chunks, -1).mT @ descent.reshape(*chunks, -1))
        if i > 0:
            descent = torch.ops.aten.gelu_backward(descent @ matrices[i].mT, preactivations[i - 1])
    return tuple(reversed(steps))


def gradient_step(
    k: Tensor,
    v: Tensor,
    step: Tensor,
    momentum: Tensor,
    decay: Tensor,
    memory: Weights,
    velocity: Weights,
    anchor: Weights,
) -> tuple[Weights, Weights]:
    """Write one chunk: k and v (B, C, D), step (B, C), momentum and decay (B,).

    Returns:
        The memory and its velocity after the chunk; everything has a leading B.
    """
    descent = _descent(k.unsqueeze(1), v.unsqueeze(1), step.unsqueeze(1), anchor)
    _, after, velocity = _scan(memory, velocity, descent, momentum[:, None], decay[:, None])
    return after, velocity


def _scan(
    memory: Weights, velocity: Weights, descent: Weights, momentum: Tensor, decay: Tensor
) -> tuple[Weights, Weights, Weights]:
    """Associative scan of S_t = momentum_t S_{t-1} + descent_t, M_t = (1 - decay_t) M_{t-1} + S_t.

    The factors are one number per chunk, so what an associative scan composes is known before the
    weights are: lower triangular matrices of running products. The weights are touched once, by a
    product with those.

    Args:
        memory: M_0, tensors (B, ...).
        velocity: S_0, alike.
        descent: -g of G chunks, tensors (B, G, ...).
        momentum: (B, G).
        decay: (B, G).

    Returns:
        M_0 to M_{G-1}, tensors (B, G, ...), which the chunks read; M_G and S_G, tensors (B, ...).
    """
    batch, count = momentum.shape
    if count == 1:
        velocity = tuple(
            torch.addcmul(d[:, 0], s, momentum.reshape(-1, *[1] * (s.ndim - 1)))
            for s, d in zip(velocity, descent, strict=True)
        )
        after = tuple(
            torch.addcmul(s, m, 1 - decay.reshape(-1, *[1] * (m.ndim - 1)))
            for m, s in zip(memory, velocity, strict=True)
        )
        return tuple(m.unsqueeze(1) for m in memory), after, velocity

    kept = _running_products(1 - decay)
    # Rows: time. Columns: M_0, S_0, then the descent of chunks 1 to G.
    s_rows = F.pad(_running_products(momentum), (1, 0))
    m_rows = kept[..., 1:] @ s_rows + F.pad(kept[..., :1], (0, count + 1))
    m_start = F.pad(momentum.new_ones(batch, 1, 1), (0, count + 1))
    to_read = torch.cat((m_start, m_rows[:, :-1]), 1)
    to_keep = torch.cat((m_rows[:, -1:], s_rows[:, -1:]), 1)
    terms = [
        torch.cat((m.unsqueeze(1), s.unsqueeze(1), d), 1)
        for m, s, d in zip(memory, velocity, descent, strict=True)
    ]
    ends = [_combine(to_keep, term) for term in terms]
    return (
        tuple(_combine(to_read, term) for term in terms),
        tuple(end[:, 0] for end in ends),
        tuple(end[:, 1] for end in ends),
    )


def _running_products(factors: Tensor) -> Tensor:
    """(B, G) to (B, G, G + 1): [t - 1, s] is factor_{s+1} * ... * factor_t, and 0 where s > t."""
    count = factors.shape[1]
    grid = factors.unsqueeze(-1).expand(-1, -1, count + 1)
    ones = torch.ones_like(grid)
    return torch.where(ones.tril() > 0, grid, ones).cumprod(1).tril(1)


def _combine(coefficients: Tensor, terms: Tensor) -> Tensor:
    """(B, R, G) and (B, G, ...) to (B, R, ...)."""
    return (coefficients @ terms.flatten(2)).reshape(*coefficients.shape[:2], *terms.shape[2:])


def _autocast_off(device: str) -> AbstractContextManager[object]:
    # torch 2.11's compiler cannot follow `is_autocast_available`, which is false for "meta".
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    weights: Weights,
    chunk_size: int,
    segment_chunks: int | Literal["all"],
    read_final: bool,
) -> None:
    if not (q.ndim == k.ndim == 3 and k.shape == v.shape and step.shape == k.shape[:2]):
        raise ValueError(
            "expected q (B, N, D), k (B, W, D), v (B, W, D) and step (B, W), found "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} and {tuple(step.shape)}"
        )
    batch, tokens, dim = k.shape
    if q.shape[0] != batch or q.shape[2] != dim or (q.shape[1] < tokens and not read_final):
        raise ValueError(
            f"q {tuple(q.shape)} must have the batch, the width and at least the tokens of k "
            f"{tuple(k.shape)}"
        )
    shapes = [tuple(w.shape) for w in weights]
    sizes = [dim, *(s[-1] for s in shapes)]
    if len(shapes) < 2 or sizes[-2:] != [dim, dim] or sizes[:-2] != [s[-2] for s in shapes[:-1]]:
        raise ValueError(
            f"the weights must be matrices that lead from {dim} features to {dim}, and gamma "
            f"({dim},), found shapes {shapes}"
        )
    if chunk_size < 1 or (segment_chunks != "all" and segment_chunks < 1):
        raise ValueError(
            "chunk_size and segment_chunks must be at least 1, found "
            f"{chunk_size} and {segment_chunks}"
        )


def neural_memory_vmap(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    step: Tensor,
    weights: Weights,
    *,
    chunk_size: int,
    momentum: Tensor | None = None,
    decay: Tensor | None = None,
) -> tuple[Tensor, Weights]:
    """The straightforward way, which the benchmark compares with: `torch.func.vmap(grad)`.

    Takes whole chunks only, and one segment; arguments and results as in `neural_memory`.
    """
    batch, tokens, dim = k.shape
    chunks = tokens // chunk_size
    zeros = k.new_zeros(batch, chunks)
    momentum = zeros if momentum is None else momentum
    decay = zeros if decay is None else decay

    def loss(weights: Weights, k: Tensor, v: Tensor, step: Tensor) -> Tensor:
        return (step * (read_memory(k, weights) - v).square().mean(-1)).sum()

    def by_chunk(x: Tensor) -> Tensor:
        return x.reshape(batch, chunks, chunk_size, *x.shape[2:])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))
    gradients = torch.func.vmap(gradient, in_dims=(None, 0, 0, 0))(
        weights, by_chunk(k), by_chunk(v), by_chunk(step)
    )
    before, after = [], []
    for start, gradient in zip(weights, gradients, strict=True):
        memory = start.expand(batch, *start.shape)
        velocity = torch.zeros_like(memory)
        states = [memory]
        for t in range(chunks):
            per_sample = (batch, *[1] * start.ndim)
            velocity = momentum[:, t].reshape(per_sample) * velocity - gradient[:, t]
            memory = (1 - decay[:, t].reshape(per_sample)) * memory + velocity
            states.append(memory)
        before.append(torch.stack(states[:-1], 1))
        after.append(memory)
    read = torch.func.vmap(torch.func.vmap(read_memory))(by_chunk(q), tuple(before))
    return read.reshape(batch, tokens, dim), tuple(after)
