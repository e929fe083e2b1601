"""The backends of the package's operations side by side, over sizes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import lightning_overlock.bench.unfold  # noqa: F401  brings its backend of ContMix
from lightning_overlock.bench.measure import Step, in_mib, peak_memory, time_interleaved
from lightning_overlock.bench.models import DTYPES
from lightning_overlock.bench.options import (
    CONTMIX_SIZES,
    DEPTHWISE_SIZES,
    MEMORY_SIZES,
    contmix_size,
    depthwise_size,
    memory_size,
)
from lightning_overlock.bench.report import Row
from lightning_overlock.layers.dilated_reparam import BRANCHES
from lightning_overlock.ops.contmix.operator import contmix
from lightning_overlock.ops.depthwise.operator import depthwise
from lightning_overlock.ops.dispatch import triton_obstacle
from lightning_overlock.ops.neural_memory import neural_memory, neural_memory_vmap

Call = Callable[..., Tensor | Sequence[Tensor]]
Candidate = tuple[Call, Sequence[Tensor]]


def _backend_rows(
    size: str, candidates: dict[str, Candidate], seconds: float, device: str
) -> list[Row]:
    """Measure backends of one operation, forward and with the gradient of all their inputs."""

    def forward(call: Call, inputs: Sequence[Tensor]) -> object:
        with torch.no_grad():
            return call(*inputs)

    def both(call: Call, inputs: Sequence[Tensor]) -> object:
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = call(*leaves)
        outputs = [found] if isinstance(found, Tensor) else found
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])

    rows: list[Row] = [{"size": size, "backend": name} for name in candidates]
    kinds: dict[str, Callable[..., object]] = {"forward": forward, "forward + backward": both}
    for kind, run in kinds.items():
        steps: dict[str, Step] = {
            name: partial(run, *backend) for name, backend in candidates.items()
        }
        times = time_interleaved(steps, seconds, device)
        for row, (name, step) in zip(rows, steps.items(), strict=True):
            row[f"{kind} ms"] = times[name] * 1e3
            row[f"{kind} peak MiB"] = in_mib(peak_memory(step, device))
    return rows


def bench_contmix(
    sizes: Sequence[str] = CONTMIX_SIZES,
    *,
    groups: int = 8,
    channels: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: float = 2.0,
) -> list[Row]:
    """Measure the backends of ContMix with one kernel size, from queries to mixed values.

    Queries have as many channels as values; there are no bias tables.

    Args:
        sizes: "BxHxWxK": images, height, width, window.
        groups: G.
        channels: Channels of a group.
        device: Device to run on; "triton" is measured where it can run.
        dtype: A key of `DTYPES`, the type of values, queries and tap_weights.
        seconds: Seconds that each backend is measured for.

    Returns:
        One row per size and backend, unfold first: milliseconds and extra peak memory in MiB.
    """
    names = ["unfold", "dense", "strips", "auto"]
    if triton_obstacle(torch.device(device)) is None:
        names.insert(3, "triton")
    rows = []
    for size in sizes:
        batch, height, width, window = contmix_size(size)
        draw = partial(torch.randn, device=device, dtype=DTYPES[dtype])
        value, query = (draw(batch, groups * channels, height, width) for _ in range(2))
        tap_weights = draw(batch, groups, channels, window**2) * channels**-0.5
        candidates: dict[str, Candidate] = {
            backend: (partial(contmix, backend=backend), (value, query, tap_weights))
            for backend in names
        }
        rows += _backend_rows(size, candidates, seconds, device)
    return rows


def bench_depthwise(
    sizes: Sequence[str] = DEPTHWISE_SIZES,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    seconds: float = 2.0,
) -> list[Row]:
    """Measure large depthwise convolutions: with their branches as in training, and merged.

    Args:
        sizes: "BxCxHxWxK": images, channels, height, width, and kernel, a key of `BRANCHES`.
        device: Device to run on; "onednn" is measured on a CPU, "aten", "triton" and "auto" on a
            GPU only.
        dtype: A key of `DTYPES`, the type of maps and kernels.
        compiled: Whether to measure torch.compile of "conv" too.
        seconds: Seconds that each backend is measured for.

    Returns:
        Rows per size, once with branches and once merged, and for each memory format and backend,
        torch's convolution in NCHW first: milliseconds and extra peak memory in MiB.
    """
    names = ["conv", "onednn"]
    if torch.device(device).type != "cpu":
        obstacle = triton_obstacle(torch.device(device))
        names = ["conv", "aten", *(["triton"] if obstacle is None else []), "auto"]
    rows = []
    for size in sizes:
        batch, channels, height, width, kernel = depthwise_size(size)
        x = torch.randn(batch, channels, height, width, device=device, dtype=DTYPES[dtype])
        maps = {"NCHW": x, "channels-last": x.contiguous(memory_format=torch.channels_last)}
        for kind, branches in {"branches": BRANCHES[kernel], "merged": ()}.items():
            weights = [
                torch.randn(channels, 1, k, k, device=device, dtype=x.dtype)
                for k, _ in ((kernel, 1), *branches)
            ]
            dilations = [1, *(dilation for _, dilation in branches)]

            def run(
                x: Tensor, *weights: Tensor, backend: str, dilations: Sequence[int] = dilations
            ) -> list[Tensor]:
                return depthwise(x, weights, dilations, backend=backend)

            calls: dict[str, Call] = {backend: partial(run, backend=backend) for backend in names}
            if compiled:
                calls["conv compiled"] = torch.compile(partial(run, backend="conv"))
            candidates: dict[str, Candidate] = {
                f"{backend}, {layout}": (call, (found, *weights))
                for layout, found in maps.items()
                for backend, call in calls.items()
            }
            rows += _backend_rows(f"{size} {kind}", candidates, seconds, device)
    return rows


def bench_memory(
    sizes: Sequence[str] = MEMORY_SIZES, *, device: str = "cpu", seconds: float = 2.0
) -> list[Row]:
    """Measure the neural memory against `torch.func.vmap(grad)`, float32, expansion 4.

    "one segment" takes all gradients at the initial memory, as the baseline does; "sequential" is
    the papers' formula, for which the baseline has no backend.

    Args:
        sizes: "BxNxDxC": sequences, tokens, channels, tokens of a chunk.
        device: Device to run on.
        seconds: Seconds that each backend is measured for.

    Returns:
        One row per size and backend, vmap first: milliseconds and extra peak memory in MiB.
    """
    rows = []
    for size in sizes:
        batch, tokens, dim, chunk = memory_size(size)
        q, k, v = (torch.randn(batch, tokens, dim, device=device) for _ in range(3))
        step = torch.rand(batch, tokens, device=device) / dim
        momentum, decay = (torch.rand(batch, tokens // chunk, device=device) / 2 for _ in range(2))
        weights = (
            torch.randn(dim, 4 * dim, device=device) * dim**-0.5,
            torch.randn(4 * dim, dim, device=device) * (4 * dim) ** -0.5,
            torch.zeros(dim, device=device),
        )

        def run(
            operation: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
            *x: Tensor,
            chunk: int = chunk,
        ) -> Tensor:
            q, k, v, step, momentum, decay, *weights = x
            output, _ = operation(
                q, k, v, step, tuple(weights), chunk_size=chunk, momentum=momentum, decay=decay
            )
            return output

        inputs = (q, k, v, step, momentum, decay, *weights)
        candidates: dict[str, Candidate] = {
            "vmap": (partial(run, neural_memory_vmap), inputs),
            "one segment": (partial(run, partial(neural_memory, segment_chunks="all")), inputs),
            "sequential": (partial(run, partial(neural_memory, segment_chunks=1)), inputs),
        }
        rows += _backend_rows(size, candidates, seconds, device)
    return rows
