"""ContMix as one operation: every pixel sums its own window of a map with its own kernel.

Source: OverLoCK, arXiv 2502.20087, section 3.3. The docs have the definition as plain loops.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lightning_overlock.ops.contmix.blocks import backward, form_by_size, forward
from lightning_overlock.ops.contmix.logits import Logits, grouped, softmax
from lightning_overlock.ops.contmix.standard import standard
from lightning_overlock.ops.contmix.windows import bias_grad, side
from lightning_overlock.ops.dispatch import (
    TRITON_DTYPES,
    Backends,
    call_of,
    measures,
    triton_obstacle,
)
from lightning_overlock.ops.tracing import is_exporting

# What is measured on Triton: heads whose pixel has so many bytes; of more, the compiled kernels do
# not fit the registers. And as one dense product: maps of so many pixels, whose square it holds.
TRITON_HEAD_BYTES = 128
DENSE_MAX_PIXELS = 4096

contmix_backend = Backends("contmix", "dense", "strips", "triton")


def contmix(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None = None,
    *,
    small_kernel: int | None = None,
    large_bias: Tensor | None = None,
    small_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Aggregate windows of `value` with the kernels that queries make.

    A window of K x K taps starts at clamp(i - K // 2, 0, L - K) on each axis. The logits of a pixel
    are its query times the weights of each tap, plus `tap_bias` and the bias of the tap's relative
    position; softmax over the taps of a kernel makes the kernel. With a small kernel, the first
    half of the channels takes it and the second half the large one. Inside each half, channel c
    belongs to group c // (channels of the half / G).

    OverLoCK makes the logits as (query . key) . map. Here the caller multiplies keys and map first,
    which takes one small product per image and group; autograd carries the gradients to both.

    "dense" and "strips" hold the logits of a few images and groups at a time; "auto" chooses
    between them by the map's size. With "triton" logits and kernels exist on the chip only. It
    takes float32, bfloat16 and float16, adds in float32, and rounds kernels to the dtype of
    `value`. On a GPU "auto" measures them on the first call of each kind, Triton from the Ampere
    generation on and for heads of at most 64 channels, or 32 in float32; see the docs, "Backends".

    Args:
        value: (B, C, H, W), a floating type.
        query: (B, G * d, H, W); channel c belongs to group c // d.
        tap_weights: (B, G, d, k*k + K*K): the vector of each tap, row-major, the small kernel's
            first.
        tap_bias: (k*k + K*K,), added to the logits of all pixels and groups.
        small_kernel: Side k of the small kernel in pixels; None gives all channels the large one.
        large_bias: (G, 2K-1, 2K-1), added to the logits by relative position: tap (r, c) of pixel
            (i, j) takes large_bias[:, r - i + K - 1, c - j + K - 1].
        small_bias: (G, 2k-1, 2k-1), the same for the small kernel.
        backend: One of `contmix_backend.names`, or "auto". All give the same values.

    Returns:
        (B, C, H, W) in the dtype and memory format of `value`. Softmax runs in float32 or wider;
        the product in the dtype of `value`, under autocast too.

    Raises:
        ValueError: A shape does not fit; the backend is unknown, or cannot run here.
    """
    backend = contmix_backend.resolve(backend)
    _check(value, query, tap_weights, tap_bias, small_kernel)
    groups, taps = tap_weights.shape[1], tap_weights.shape[3]
    split = 0 if small_kernel is None else small_kernel**2
    _check_kernel(value, "large", groups, taps - split, large_bias)
    if small_kernel is not None:
        _check_kernel(value, "small", groups, split, small_bias)
    elif small_bias is not None:
        raise ValueError("small_bias is given without small_kernel")
    if backend in contmix_backend.outside:
        return contmix_backend.outside[backend](
            value, query, tap_weights, tap_bias, small_kernel, large_bias, small_bias
        )
    if backend == "triton" and not _takes_triton(value, query, tap_weights):
        backend = "auto"
    if small_kernel is None:
        return _mix(value, query, tap_weights, tap_bias, large_bias, backend)
    mixed = []
    for half, own, bias in zip(
        value.chunk(2, dim=1),
        (slice(split), slice(split, None)),
        (small_bias, large_bias),
        strict=True,
    ):
        half_bias = None if tap_bias is None else tap_bias[own]
        mixed.append(_mix(half, query, tap_weights[..., own], half_bias, bias, backend))
    return torch.cat(mixed, dim=1)


def contmix_kernels(
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    large_bias: Tensor | None,
    small_bias: Tensor | None = None,
    small_kernel: int | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Return the kernels that `contmix` aggregates with, for looking at them.

    Args:
        query: The argument of `contmix`.
        tap_weights: The argument of `contmix`.
        tap_bias: The argument of `contmix`.
        large_bias: The argument of `contmix`.
        small_bias: The argument of `contmix`.
        small_kernel: The argument of `contmix`.

    Returns:
        (B, G, H*W, k*k), or None without a small kernel, and (B, G, H*W, K*K), in float32 or wider;
        each kernel sums to one.
    """
    split = 0 if small_kernel is None else small_kernel**2
    whole, height = (slice(None), slice(None)), query.shape[2]

    def kernels(taps: slice, table: Tensor | None) -> Tensor:
        bias = None if tap_bias is None else tap_bias[taps]
        logits = Logits(query, tap_weights[..., taps], bias, table)
        return softmax(logits.rows(whole, slice(0, height))).flatten(2, 3)

    small = kernels(slice(split), small_bias) if split else None
    return small, kernels(slice(split, None), large_bias)


def _check(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    small_kernel: int | None,
) -> None:
    """Raise a ValueError that names which argument of `contmix` does not fit."""
    if value.ndim != 4 or not value.is_floating_point():
        raise ValueError(
            f"value is {value.dtype} of shape {tuple(value.shape)}, expected (B, C, H, W), floating"
        )
    if tap_weights.ndim != 4 or tap_weights.shape[0] != value.shape[0]:
        raise ValueError(
            f"tap_weights has shape {tuple(tap_weights.shape)}, expected (B, G, d, taps) "
            f"for value {tuple(value.shape)}"
        )
    batch, groups, width, taps = tap_weights.shape
    expected = (batch, groups * width, *value.shape[2:])
    if query.shape != expected:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, expected {expected} for tap_weights "
            f"{tuple(tap_weights.shape)} and value {tuple(value.shape)}"
        )
    if small_kernel is not None and not 0 < small_kernel**2 < taps:
        raise ValueError(f"small_kernel is {small_kernel}, tap_weights has {taps} taps in all")
    if tap_bias is not None and tap_bias.shape != (taps,):
        raise ValueError(f"tap_bias has shape {tuple(tap_bias.shape)}, expected ({taps},)")
    kernels = 1 if small_kernel is None else 2
    if value.shape[1] % (kernels * groups):
        raise ValueError(
            f"value has {value.shape[1]} channels, expected a multiple of {kernels * groups}: "
            f"{groups} groups, {kernels} kernel size{'s' * (kernels > 1)}"
        )


def _check_kernel(value: Tensor, which: str, groups: int, taps: int, bias: Tensor | None) -> None:
    """Raise a ValueError where a kernel, "large" or "small", fits neither map nor bias table."""
    size, (height, width) = side(taps), value.shape[2:]
    if size * size != taps or size % 2 == 0:
        raise ValueError(
            f"tap_weights gives the {which} kernel {taps} taps, expected an odd number squared"
        )
    if height < size or width < size:
        raise ValueError(
            f"value is a map of {height}x{width}, expected at least {size}x{size}, "
            f"the window of the {which} kernel"
        )
    span = 2 * size - 1
    if bias is not None and bias.shape != (groups, span, span):
        raise ValueError(
            f"{which}_bias has shape {tuple(bias.shape)}, expected ({groups}, {span}, {span})"
        )


def _takes_triton(value: Tensor, query: Tensor, tap_weights: Tensor) -> bool:
    """Whether Triton has the dtypes of these; a ValueError if it has and cannot run here."""
    if not {value.dtype, query.dtype, tap_weights.dtype}.issubset(TRITON_DTYPES):
        return False
    obstacle = triton_obstacle(value.device)
    if obstacle is not None:
        raise ValueError(f"backend 'triton' {obstacle}")
    return True


def _mix(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    backend: str,
) -> Tensor:
    """One kernel size of `contmix`."""
    inputs = (value, query, tap_weights, tap_bias, table)
    if backend == "auto" and is_exporting():
        return standard(*inputs)  # an exported network must run where this package is not
    if backend == "auto" and measures(value.device):
        backend = _choose(inputs) or backend
    return _fused(*inputs, backend)[0]


def _choose(inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]) -> str | None:
    """Return the backend that was or is now measured for one kernel size of `contmix`."""
    value, _, tap_weights, *biases = inputs
    batch, groups, width, taps = tap_weights.shape
    height, length = value.shape[2:]
    size, channels = side(taps), value.shape[1] // groups

    def candidates() -> list[str]:
        found = [form_by_size(height, length, size)]
        if found == ["strips"] and height * length <= DENSE_MAX_PIXELS:
            found.append("dense")
        elif found == ["dense"]:
            found.append("strips")
        dtypes = {x.dtype for x in inputs[:3]}
        fits = max(width, channels) * value.element_size() <= TRITON_HEAD_BYTES
        possible = value.is_cuda and triton_obstacle(value.device) is None
        return [*found, "triton"] if possible and fits and dtypes.issubset(TRITON_DTYPES) else found

    def run(backend: str, *inputs: Tensor | None) -> Tensor:
        return _fused(*inputs, backend)[0]

    bias = ["no bias" if x is None else "bias" for x in biases]
    call = f"{call_of(inputs)}, window {size}, heads of {width} and {channels}, taps {bias[0]}"
    call = f"{call}, positions {bias[1]}"
    sizes = {"maps": batch * groups, "pixels": height * length}
    return contmix_backend.choose(call, sizes, candidates, run, inputs)


@torch.library.custom_op("lightning_overlock::contmix_fused", mutates_args=())
def _fused(
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """One kernel size of `contmix`, and what Triton's backward needs to know of it."""
    if backend == "triton":
        from lightning_overlock.ops.contmix import triton

        return triton.forward(value, query, tap_weights, tap_bias, table)
    with torch.autocast(value.device.type, enabled=False):
        logits = Logits(query, tap_weights, tap_bias, table)
        return forward(value, logits, backend), value.new_empty(0, dtype=torch.float32)


@_fused.register_fake
def _(
    value: Tensor, _query: Tensor, tap_weights: Tensor, _bias: Any, _table: Any, backend: str
) -> tuple[Tensor, Tensor]:
    shape = (*tap_weights.shape[:2], *value.shape[2:]) if backend == "triton" else (0,)
    return torch.empty_like(value), value.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("lightning_overlock::contmix_fused_backward", mutates_args=())
def _fused_backward(
    grad: Tensor,
    value: Tensor,
    query: Tensor,
    tap_weights: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    output: Tensor | None,
    log_sums: Tensor | None,
    backend: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs; an empty tensor for those not wanted."""
    inputs = (value, query, tap_weights, tap_bias, table)
    grads = _fused_grads(inputs, wanted)
    targets = [x if want else None for x, want in zip(grads, wanted, strict=True)]
    if backend == "triton":
        from lightning_overlock.ops.contmix import triton

        assert output is not None
        assert log_sums is not None
        triton.backward(grad, *inputs, output, log_sums, targets)
        return grads
    with torch.autocast(value.device.type, enabled=False):
        logits = Logits(query, tap_weights, tap_bias, table)
        if wanted[1]:
            logits.query_grad = grouped(grads[1], logits.groups)
        if wanted[2]:
            wide = torch.promote_types(logits.tap_weights.dtype, torch.float32)
            logits.tap_weights_grad = torch.zeros_like(tap_weights, dtype=wide)
        bias_rows_grad = backward(
            grad, value, logits, backend, targets[0], wanted[1] or wanted[2], wanted[3] or wanted[4]
        )
    if logits.tap_weights_grad is not None:
        grads[2].copy_(logits.tap_weights_grad)
    if bias_rows_grad is not None and wanted[3]:
        grads[3].copy_(bias_rows_grad.sum((0, 1, 2)))
    if bias_rows_grad is not None and wanted[4]:
        grads[4].copy_(bias_grad(bias_rows_grad))
    return grads


@_fused_backward.register_fake
def _(_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _fused_grads(inputs[:5], inputs[8])


def _fused_grads(
    inputs: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = inputs[0].new_empty(0)
    value, query, tap_weights, tap_bias, table = (
        torch.empty_like(x) if want else torch.empty_like(nothing)
        for x, want in zip(inputs, wanted, strict=True)
    )
    return value, query, tap_weights, tap_bias, table


def _fused_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *(output if ctx.backend == "triton" else (None, None)))


def _fused_autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:5]
    grads = _fused_backward(grad, *ctx.saved_tensors, ctx.backend, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None


_fused.register_autograd(_fused_autograd, setup_context=_fused_context)


# Products of queries and tap_weights, and of kernels and values, as the other forms count them.
@register_flop_formula(torch.ops.lightning_overlock.contmix_fused)
def _(
    value: Sequence[int], query: Sequence[int], tap_weights: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * (math.prod(query) + math.prod(value)) * tap_weights[3]


@register_flop_formula(torch.ops.lightning_overlock.contmix_fused_backward)
def _(
    _grad: Sequence[int],
    value: Sequence[int],
    query: Sequence[int],
    tap_weights: Sequence[int],
    *others: Any,
    **_: Any,
) -> int:
    wanted = others[-1]
    with_values = wanted[0] + any(wanted[1:])
    with_queries = wanted[1] + wanted[2]
    return 2 * (math.prod(value) * with_values + math.prod(query) * with_queries) * tap_weights[3]
