"""The neural memory as a layer: projections, learned step, momentum and decay, order of reading."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.neural_memory_scan import masked_summary, scanned
from lightning_overlock.layers.shapes import map_size
from lightning_overlock.layers.tap import Tap
from lightning_overlock.ops.neural_memory import Weights, neural_memory
from lightning_overlock.ops.neural_memory_scan import ChunkTable
from lightning_overlock.ops.shuffled_order import shuffled_order
from lightning_overlock.ops.tracing import is_open, is_tracing

Scan = Literal["raster", "bidirectional", "whole", "shuffled"]
Write = Literal["descent", "none", "ascent"]
ReadoutSource = Literal["query", "key"]
Summary = Literal["attention", "mean"]

# Measured on random input, 100 chunks: with steps this far open, momentum .95 and depth 3 the
# memory and its outer gradient stay finite; a few times more and they do not.
STABILITY = 0.1


def largest_step(dim: int, chunk_size: int, segment_chunks: int | Literal["all"]) -> float:
    """Upper end of the range of a token's step, for which the memory stays finite.

    The losses of a chunk's tokens are summed and each is a mean over `dim` features, so gradient
    descent on them diverges where step * chunk_size / dim grows to about one, and sooner by as
    many chunks as share one gradient. (In a single segment for the whole map no gradient ever
    sees what it did; it counts as one chunk.) For 128 features this is .065 with chunks of 196
    tokens and .003 with 4096, where Titans' code has .1 to 1 and ConvNeur's detector .001.

    Args:
        dim: Features of a token.
        chunk_size: Tokens in a chunk.
        segment_chunks: Chunks in a segment, or "all".

    Returns:
        The largest step.
    """
    return STABILITY * dim / (chunk_size * (1 if segment_chunks == "all" else segment_chunks))


@register_notrace_module
class NeuralMemory(nn.Module):
    """Reads a map from a small MLP that is written with the same map, chunk by chunk.

    The map's tokens in raster order are cut into chunks; each chunk is read from the memory that
    the chunks before it have written (`lightning_overlock.ops.neural_memory`, after Titans,
    arXiv 2501.00663). Tokens are RMS-normed before the queries and, apart from that, before keys
    and values. The initial memory is learned.

    Chunks have `chunk_size` tokens, or N // min_chunks where the N tokens of a map would give
    fewer than `min_chunks` chunks: what only one chunk writes is never read, and keys, values,
    step and decay would get no gradient. `min_chunks=1` is the paper to the letter. Momentum
    first matters in the read of a third chunk: before that its gradient is zero. A map of fewer
    than `min_chunks` tokens (one pixel) is written before it is read.

    Taps: "surprise", (B, T), the mean of (M_{t-1}(k_t) - v_t)^2 over each chunk in the order of
    writing (the raster order but for "shuffled" scans), a last shorter one included; one more
    memory pass when asked for. A memory that is never written has none.

    Args:
        dim: Features of a token, D.
        depth: Layers of the memory's MLP, 1 to 3. Four gave NaN in its authors' hands.
        expansion: Hidden features of the MLP per feature of a token.
        chunk_size: Tokens in a chunk.
        min_chunks: Least number of chunks a map is cut into.
        segment_chunks: Chunks whose gradients are taken at the same weights; 1 is the papers'
            sequential formula, "all" takes all gradients at the initial memory.
        max_step: Upper end of the range (0, max_step) of a token's learned step, at most
            `largest_step(dim, chunk_size, segment_chunks)`, which is the default: beyond it the
            memory diverges and training meets NaN.
        step: Whether every token's step is learned; else it is max_step / 2.
        momentum: Whether the memory has (learned) momentum.
        decay: Whether the memory has (learned) decay.
        summary: How a chunk is summed up for its momentum and decay: attention pool or mean.
        scan: "raster"; "bidirectional", the mean of the read-outs of both directions, with
            shared weights; "whole", which writes the whole map and then reads it; or "shuffled",
            the control of the order: a permutation that is the same for all maps of a size.
        write: "descent" on the error, as in the papers; or a control: "ascent", which takes the
            same steps uphill, and "none", a memory that is read and never written. The latter has
            no keys, values, steps, momentum and decay, and knows no order. Uphill every gradient
            that sees the steps before it is larger than they were: with sequential chunks the
            memory grows exponentially (from 16 chunks on the outer gradient is past use), and
            `segment_chunks="all"`, for both directions, is the fair comparison.
        readout_from: What reads the memory: the tokens' queries or, as a control, the keys that
            they are written under. Then there are no queries.
        eval_chunk_size: Tokens in a chunk in evaluation mode; None takes `chunk_size`. Steps keep
            their range, or take the largest that is stable with chunks of this size.
        label: What error messages call this memory.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Raises:
        ConfigError: An argument is outside its range, or one that a memory without writing ignores.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int = 2,
        expansion: int = 4,
        chunk_size: int = 196,
        min_chunks: int = 2,
        segment_chunks: int | Literal["all"] = 1,
        max_step: float | None = None,
        step: bool = True,
        momentum: bool = True,
        decay: bool = True,
        summary: Summary = "attention",
        scan: Scan = "raster",
        write: Write = "descent",
        readout_from: ReadoutSource = "query",
        eval_chunk_size: int | None = None,
        label: str = "neural memory",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if depth not in (1, 2, 3):
            raise ConfigError(f"depth of the memory must be 1, 2 or 3, found {depth}")
        for name, value in (
            ("dim", dim),
            ("expansion", expansion),
            ("chunk_size", chunk_size),
            ("min_chunks", min_chunks),
            ("segment_chunks", 1 if segment_chunks == "all" else segment_chunks),
            ("eval_chunk_size", 1 if eval_chunk_size is None else eval_chunk_size),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        largest = largest_step(dim, chunk_size, segment_chunks)
        max_step = largest if max_step is None else max_step
        if not 0 < max_step <= largest:
            raise ConfigError(
                f"max_step must be in (0, {largest:.3g}] for {dim} features, chunks of "
                f"{chunk_size} tokens and segments of {segment_chunks} chunks, found {max_step}"
            )
        for name, choice, known in (
            ("scan", scan, get_args(Scan)),
            ("summary", summary, get_args(Summary)),
            ("write", write, get_args(Write)),
            ("readout_from", readout_from, get_args(ReadoutSource)),
        ):
            if choice not in known:
                raise ConfigError(f"{name} must be one of {known}, found {choice!r}")
        if write == "none":
            for name, option, default in (
                ("scan", scan, "raster"),
                ("readout_from", readout_from, "query"),
                ("eval_chunk_size", eval_chunk_size, None),
            ):
                if option != default:
                    raise ConfigError(
                        f"{name}={option!r} needs a memory that is written, found write='none'"
                    )
        written = write != "none"
        self.dim = dim
        self.chunk_size = chunk_size
        self.min_chunks = min_chunks
        self.segment_chunks = segment_chunks
        self.max_step = max_step
        self.scan = scan
        self.write = write
        self.eval_chunk_size = eval_chunk_size
        self.label = label

        by_query = readout_from == "query"
        self.read_norm = nn.RMSNorm(dim, **dd) if by_query else None
        self.write_norm = nn.RMSNorm(dim, **dd) if written else None
        self.query = nn.Linear(dim, dim, bias=False, **dd) if by_query else None
        self.key_value = nn.Linear(dim, 2 * dim, bias=False, **dd) if written else None
        self.step = nn.Linear(dim, 1, **dd) if written and step else None
        self.momentum = nn.Linear(dim, 1, **dd) if written and momentum else None
        self.decay = nn.Linear(dim, 1, **dd) if written and decay else None
        pooled = written and summary == "attention" and (momentum or decay)
        self.pool = nn.Linear(dim, dim, **dd) if pooled else None
        widths = [dim, *[dim * expansion] * (depth - 1), dim]
        self.memory = nn.ParameterList(
            nn.Parameter(torch.empty(sizes, **dd)) for sizes in itertools.pairwise(widths)
        )
        self.gamma = nn.Parameter(torch.empty(dim, **dd))
        if written:
            self.surprise_tap = Tap()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights: variance 1 / fan-in; step and momentum half open, decay nearly shut.

        The norm inside makes the gradient grow as the weights shrink, so a strong decay from the
        start (.5 per chunk) makes the outer gradient of a hundred chunks explode; this is .02.
        """
        for linear in (self.query, self.key_value):
            if linear is not None:
                nn.init.normal_(linear.weight, std=self.dim**-0.5)
        for gate in (self.step, self.momentum, self.decay, self.pool):
            if gate is not None:
                nn.init.trunc_normal_(gate.weight, std=0.02)
                nn.init.zeros_(gate.bias)
        if self.decay is not None:
            nn.init.constant_(self.decay.bias, -4.0)
        for matrix in self.memory:
            nn.init.normal_(matrix, std=matrix.shape[0] ** -0.5)
        nn.init.zeros_(self.gamma)

    def extra_repr(self) -> str:
        """What the children do not show."""
        return (
            f"write={self.write}, scan={self.scan}, chunk_size={self.chunk_size}, "
            f"min_chunks={self.min_chunks}, segment_chunks={self.segment_chunks}, "
            f"max_step={self.max_step}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Read the map from the memory that it writes.

        Args:
            x: (B, D, H, W).

        Returns:
            (B, D, H, W).

        Raises:
            FloatingPointError: The memory is not finite; says after which chunk. Not checked in
                compiled and exported code.
        """
        tokens = self._tokens(x)
        if self.scan == "bidirectional":
            tokens = torch.cat((tokens, tokens.flip(1)))
        queries = self._queries(tokens)
        count = math.prod(map_size(x))
        if is_open(count):
            read = scanned(self, tokens, queries)
        else:
            read = self._chunked(tokens, queries, count)
        if self.write != "none" and self.surprise_tap.wanted:
            self.surprise_tap(self._surprise(x))
        if self.scan == "bidirectional":
            there, back = read.reshape(2, *x.flatten(2).mT.shape).unbind()
            read = (there + back.flip(1)) / 2
        if self.scan == "shuffled":
            read = read[:, shuffled_order(count, x.device).argsort()]
        return read.mT.reshape(x.shape)

    def _chunked(self, tokens: Tensor, queries: Tensor, count: int) -> Tensor:
        """Return the read-outs (B, N, D) of N = `count` tokens, chunk by chunk."""
        length = self.chunk_length(count)
        options: dict[str, Any] = {
            "weights": (*self.memory, self.gamma),
            "chunk_size": length,
            "segment_chunks": self.segment_chunks,
        }
        if self.scan == "whole" or count < self.min_chunks:
            options |= {"write_remainder": True, "read_final": True}
            written = count
        else:
            # The last chunk is read and, as nobody reads after it, not written.
            written = (count - 1) // length * length
        if self.write == "none":
            nothing = queries[:, :0]
            options |= {"k": nothing, "v": nothing, "step": nothing[..., 0]}
        else:
            keys = None if self.query is not None else queries[:, :written]
            options |= self.writing(tokens[:, :written], length, keys)
        read, memory = neural_memory(queries, **options)
        # A sum over the final memory, as what is not finite stays so from chunk to chunk, and over
        # the read-outs; on a GPU it waits for them.
        traced = torch.compiler.is_compiling() or is_tracing() or read.is_meta
        if not traced and not _finite((*memory, read)):
            raise FloatingPointError(self._diagnosis(queries, options))
        return read

    @property
    def largest_chunk(self) -> int:
        """Tokens of a chunk of a large map."""
        return self.chunk_size if self.training else self.eval_chunk_size or self.chunk_size

    def chunk_length(self, tokens: int) -> int:
        """Tokens of the chunks that a map of so many tokens is cut into."""
        return min(self.largest_chunk, max(1, tokens // self.min_chunks))

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to (B, N, D) in the order of writing; under autocast norms take float32."""
        tokens = x.flatten(2).mT.to(self.gamma.dtype)
        if self.scan == "shuffled":
            tokens = tokens[:, shuffled_order(tokens.shape[1], x.device)]
        return tokens

    def _queries(self, tokens: Tensor) -> Tensor:
        """(B, N, D), what the memory is read with."""
        if self.query is not None and self.read_norm is not None:
            return self.query(self.read_norm(tokens))
        assert self.write_norm is not None
        assert self.key_value is not None
        return F.linear(self.write_norm(tokens), self.key_value.weight[: self.dim])

    @torch.no_grad()
    def states(self, x: Tensor) -> Iterator[Weights]:
        """Yield the memory before it is written and after each chunk in the order of writing.

        That is the raster order but for "shuffled" scans. A last shorter chunk is included. For
        looking at them: the time grows with the square of the number of chunks.

        Args:
            x: (B, D, H, W).

        Yields:
            The matrices and gamma, each with a leading B.

        Raises:
            ValueError: This memory is never written.
        """
        if self.write == "none":
            raise ValueError(f"{self.label} is never written (write='none')")
        tokens = self._tokens(x)
        length = self.chunk_length(tokens.shape[1])
        options: dict[str, Any] = {
            "weights": (*self.memory, self.gamma),
            "chunk_size": length,
            "segment_chunks": self.segment_chunks,
            "write_remainder": True,
            "read_final": True,
        }
        writing = self.writing(tokens, length)
        for t in range(-(-tokens.shape[1] // length) + 1):
            yield neural_memory(tokens[:, :0], **options, **_first_chunks(writing, t, length))[1]

    def writing(
        self, tokens: Tensor, chunks: int | ChunkTable, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """What is written with: k, v and step of (B, W, D), momentum and decay of its chunks.

        Chunks are given by their length or as a table; keys, (B, W, D), if they are known already.
        """
        assert self.write_norm is not None
        assert self.key_value is not None
        tokens = self.write_norm(tokens)
        if keys is None:
            k, v = self.key_value(tokens).chunk(2, dim=-1)
        else:
            k, v = keys, F.linear(tokens, self.key_value.weight[self.dim :])
        max_step = self.max_step
        if self.eval_chunk_size is not None and not self.training:
            largest = largest_step(self.dim, self.eval_chunk_size, self.segment_chunks)
            max_step = min(max_step, largest)
        if self.step is None:
            step = torch.full_like(k[..., 0], max_step / 2)
        else:
            step = _wide(self.step(tokens).squeeze(-1)).sigmoid() * max_step
        if self.write == "ascent":
            step = -step
        momentum = decay = None
        if self.momentum is not None or self.decay is not None:
            if isinstance(chunks, ChunkTable):
                summary = masked_summary(tokens, chunks, self.pool)
            else:
                summary = self._summary(tokens, chunks)
            momentum = _gate(self.momentum, summary)
            decay = _gate(self.decay, summary)
        return {"k": k, "v": v, "step": step, "momentum": momentum, "decay": decay}

    def _summary(self, tokens: Tensor, length: int) -> Tensor:
        """(B, W, D) to (B, T, D): one vector per chunk, the last of which may be shorter."""
        batch, count, dim = tokens.shape
        if is_tracing():
            count = int(count)
        whole = count // length
        pieces = [tokens[:, : whole * length].reshape(batch, whole, length, dim)]
        if whole * length < count:
            pieces.append(tokens[:, whole * length :].unsqueeze(1))
        if self.pool is None:
            return torch.cat([p.mean(2) for p in pieces], 1)
        return torch.cat([(self.pool(p).softmax(2) * p).sum(2) for p in pieces], 1)

    @torch.no_grad()
    def _surprise(self, x: Tensor) -> Tensor:
        tokens = self._tokens(x)
        length = self.chunk_length(tokens.shape[1])
        writing = self.writing(tokens, length)
        predicted, _ = neural_memory(
            writing["k"],
            **writing,
            weights=(*self.memory, self.gamma),
            chunk_size=length,
            segment_chunks=self.segment_chunks,
            write_remainder=True,
        )
        error = _wide(predicted - writing["v"]).square().mean(-1)
        return torch.stack([chunk.mean(1) for chunk in torch.split(error, length, 1)], 1)

    @torch.no_grad()
    def _diagnosis(self, queries: Tensor, options: dict[str, Any]) -> str:
        """Find the chunk that broke the memory, by writing one more at a time."""
        length = options["chunk_size"]
        chunks = -(-options["k"].shape[1] // length)
        if not _finite(options["weights"]):
            return f"{self.label}: the learned initial memory is not finite"
        if not _finite((queries,)):
            return f"{self.label}: the tokens that read it are not finite"
        t = 0
        for t in range(1, chunks + 1):
            part = _first_chunks(options, t, length)
            part |= {"write_remainder": True, "read_final": True}
            read, memory = neural_memory(queries, **(options | part))
            if not _finite((*memory, read)):
                break
        return (
            f"{self.label}: the memory is not finite after chunk {t} of {chunks} "
            f"({length} tokens each, max_step {self.max_step:.3g})"
        )


def _first_chunks(options: dict[str, Any], count: int, length: int) -> dict[str, Any]:
    """What the first chunks are written with, of what all are written with."""
    units = {"k": length, "v": length, "step": length, "momentum": 1, "decay": 1}
    return {n: x if (x := options[n]) is None else x[:, : count * units[n]] for n in units}


def _gate(linear: nn.Module | None, summary: Tensor) -> Tensor | None:
    """(B, T, D) to (B, T) between 0 and 1; None stays None."""
    return None if linear is None else _wide(linear(summary).squeeze(-1)).sigmoid()


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(tensors: tuple[Tensor, ...]) -> bool:
    return bool(torch.stack([x.sum() for x in tensors]).isfinite().all())
