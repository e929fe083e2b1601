"""Depthwise convolution by several kernels at once: a large one and its dilated branches.

In training every branch of UniRepLKNet's convolution has a BatchNorm of its own, so that all
outputs are needed, but the input need be read only once and its gradient written only once.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lightning_overlock.ops.depthwise import aten, few_pixels, onednn
from lightning_overlock.ops.dispatch import (
    TRITON_DTYPES,
    Backends,
    call_of,
    measures,
    triton_obstacle,
)
from lightning_overlock.ops.tracing import is_exporting

# Before this version, cuDNN has given wrong results when different sizes ran one after another.
SAFE_CUDNN = 92400

depthwise_backend = Backends("depthwise", "conv", "onednn", "aten", "triton")


def depthwise(
    x: Tensor,
    weights: Sequence[Tensor],
    dilations: Sequence[int] = (1,),
    bias: Tensor | None = None,
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """Convolve every channel with its own kernel, once per entry of `weights`; same padding.

    The backend "conv" is one of torch's convolutions per kernel. "onednn", for CPUs, is the same
    with gradients that are forward convolutions too, up to ten times as fast. "aten" is torch's
    own kernels without cuDNN. "triton" runs all kernels as one with float32 sums, on a GPU, for
    float32, bfloat16 and float16. "auto" is "onednn" on a CPU. On a GPU it measures the others on
    the first call of each kind; see the docs, "Backends".

    Args:
        x: (B, C, H, W).
        weights: (C, 1, k, k) each, k odd. Under autocast they are rounded to autocast's dtype, but
            for "triton", which takes them as they are.
        dilations: Pixels between the taps, one number per kernel.
        bias: (C,) added to the first output.
        backend: One of `depthwise_backend.names`, or "auto".

    Returns:
        (B, C, H, W) for each kernel.

    Raises:
        ValueError: A shape does not fit; the backend is unknown, or cannot run here.
    """
    backend = depthwise_backend.resolve(backend)
    _check(x, weights, dilations)
    # The meta device, which costs are counted on, has no autocast to ask for.
    autocast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if autocast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if backend == "auto" and measures(x.device):
        backend = _choose(x, weights, dilations, bias) or backend
    if backend == "auto":
        backend = _safe(x)
    if backend in ("onednn", "aten") and autocast:
        weights, bias = [w.to(x.dtype) for w in weights], None if bias is None else bias.to(x.dtype)
    if backend == "triton":
        _check_triton(x)
    if backend in ("triton", "aten"):
        return _depthwise(x, list(weights), list(dilations), bias, backend)
    if backend == "onednn":
        if x.device.type != "cpu":
            raise ValueError(f"backend 'onednn' is for CPUs, x is on {x.device.type}")
        if torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights)):
            return _depthwise(x, list(weights), list(dilations), bias, backend)
        if not torch.compiler.is_compiling():  # whose graphs keep torch's convolutions
            passes = _passes(backend, x, weights)
            found: list[Tensor] = passes.correlate(x, weights, dilations, bias)
            return found
    outputs = []
    for weight, dilation in zip(weights, dilations, strict=True):
        padding = weight.shape[-1] // 2 * dilation
        outputs.append(F.conv2d(x, weight, bias, 1, padding, dilation, x.shape[1]))
        bias = None
    return outputs


def _check(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> None:
    """Raise a ValueError that names what does not fit."""
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, C, H, W)")
    channels = x.shape[1]
    if not weights or len(weights) != len(dilations):
        raise ValueError(f"{len(weights)} weights and {len(dilations)} dilations")
    for weight in weights:
        size = weight.shape[-1]
        if weight.shape != (channels, 1, size, size) or size % 2 == 0:
            raise ValueError(
                f"a weight has shape {tuple(weight.shape)}, expected ({channels}, 1, k, k), k odd"
            )


def _safe(x: Tensor) -> str:
    """Return the backend that needs no comparison."""
    if is_exporting():
        return "conv"  # an exported network must run where this package is not
    if x.device.type == "cpu":
        return "onednn"
    if x.device.type == "cuda" and _cudnn() < SAFE_CUDNN:
        return "aten"
    return "conv"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cudnn() -> int:
    """Return cuDNN's version; a safe one where there is none to go wrong."""
    return torch.backends.cudnn.version() or SAFE_CUDNN  # type: ignore[no-untyped-call]


def _choose(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None
) -> str | None:
    """Return the backend that was or is now measured for a convolution; None for an export."""
    if is_exporting():
        return None

    def candidates() -> list[str]:
        found = [_safe(x)]
        if found != ["conv"]:
            found.append("conv")
        possible = x.is_cuda and triton_obstacle(x.device) is None and x.dtype in TRITON_DTYPES
        return [*found, "triton"] if possible else found

    def run(backend: str, x: Tensor, bias: Tensor | None, *weights: Tensor) -> list[Tensor]:
        if backend != "triton":  # as under autocast
            weights = tuple(weight.to(x.dtype) for weight in weights)
            bias = None if bias is None else bias.to(x.dtype)
        return depthwise(x, weights, dilations, bias, backend=backend)

    kernels = "+".join(f"{w.shape[-1]}/{d}" for w, d in zip(weights, dilations, strict=True))
    inputs = (x, bias, *weights)
    call = f"{call_of(inputs)}, kernels {kernels}, {'no ' if bias is None else ''}bias"
    sizes = {"maps": x.shape[0] * x.shape[1], "pixels": x.shape[2] * x.shape[3]}
    return depthwise_backend.choose(call, sizes, candidates, run, inputs)


def _check_triton(x: Tensor) -> None:
    """Raise a ValueError that says why the Triton backend cannot take x."""
    obstacle = triton_obstacle(x.device)
    if obstacle is not None:
        raise ValueError(f"backend 'triton' {obstacle}")
    if x.dtype not in TRITON_DTYPES:
        raise ValueError(f"backend 'triton' takes no {x.dtype}")


# The operator ------------------------------------------------------------------------------------


def _dense(x: Tensor, like: Tensor) -> Tensor:
    """Return x without gaps, in the memory format of `like`."""
    return x.contiguous(memory_format=_memory_format(like))


def _memory_format(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _passes(backend: str, x: Tensor, weights: Sequence[Tensor]) -> ModuleType:
    """Return the module with the three passes of a backend; Triton is imported when it is used."""
    if backend == "onednn":
        return few_pixels if few_pixels.is_faster(x, weights) else onednn
    if backend == "aten":
        return aten
    from lightning_overlock.ops.depthwise import triton

    return triton


@torch.library.custom_op("lightning_overlock::depthwise", mutates_args=())
def _depthwise(
    x: Tensor, weights: list[Tensor], dilations: list[int], bias: Tensor | None, backend: str
) -> list[Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        outputs = _passes(backend, x, weights).correlate(_dense(x, x), weights, dilations, bias)
        return [_dense(y, x) for y in outputs]


@_depthwise.register_fake
def _(x: Tensor, weights: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=_memory_format(x)) for _ in weights]


@torch.library.custom_op("lightning_overlock::depthwise_backward", mutates_args=())
def _depthwise_backward(
    grads: list[Tensor],
    x: Tensor,
    weights: list[Tensor],
    dilations: list[int],
    backend: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x and of the weights, those that are wanted."""
    passes = _passes(backend, x, weights)
    with torch.autocast(x.device.type, enabled=False):
        grads = [_dense(grad, x) for grad in grads]
        found = [_dense(passes.input_gradient(grads, weights, dilations), x)] if wanted[0] else []
        if wanted[1]:
            found += passes.weight_gradients(_dense(x, x), grads, weights, dilations)
        return found


@_depthwise_backward.register_fake
def _(
    grads: list[Tensor],  # noqa: ARG001
    x: Tensor,
    weights: list[Tensor],
    dilations: list[int],  # noqa: ARG001
    backend: str,  # noqa: ARG001
    wanted: Sequence[bool],
) -> list[Tensor]:
    found = [torch.empty_like(x, memory_format=_memory_format(x))] if wanted[0] else []
    return found + ([torch.empty_like(weight) for weight in weights] if wanted[1] else [])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ARG001
    x, weights, ctx.dilations, bias, ctx.backend = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, *weights)


def _autograd(ctx: Any, given: list[Tensor | None]) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    grads = [torch.zeros_like(x) if grad is None else grad for grad in given]
    of_x, of_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1])
    found = _depthwise_backward(grads, x, weights, ctx.dilations, ctx.backend, [of_x, of_weights])
    of_bias = ctx.bias_dtype is not None and ctx.needs_input_grad[3]
    return (
        found[0] if of_x else None,
        found[-len(weights) :] if of_weights else [None] * len(weights),
        None,
        _sum(grads[0]).to(ctx.bias_dtype) if of_bias else None,
        None,
    )


def _sum(grad: Tensor) -> Tensor:
    """Sum (B, C, H, W) to (C,), in float32 or wider."""
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32))


_depthwise.register_autograd(_autograd, setup_context=_setup_context)


@register_flop_formula(torch.ops.lightning_overlock.depthwise)
def _(x: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * sum(weight[-1] ** 2 for weight in weights)


@register_flop_formula(torch.ops.lightning_overlock.depthwise_backward)
def _(
    _grads: Any,
    x: Sequence[int],
    weights: Sequence[Sequence[int]],
    _dilations: Any,
    _backend: str,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    return sum(wanted) * 2 * math.prod(x) * sum(weight[-1] ** 2 for weight in weights)
