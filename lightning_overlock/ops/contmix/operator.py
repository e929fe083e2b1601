"""ContMix's aggregation: every pixel sums its own window of a map with its own kernel.

Windows are clamped inside the map instead of padded (OverLoCK, arXiv 2502.20087, section 3.3). The
gradient recomputes softmax and windows; nothing of the size of a map of windows is kept.

`contmix` starts from logits, `contmix_from_queries` from what they are products of: of these only
a block exists at a time, and on a GPU, where Triton's kernels (`contmix_triton`) do it in one pass,
none in memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from lightning_overlock.ops.dispatch import TRITON_DTYPES, ForcedForm, triton_obstacle

LOGIT_FORMS = ("dense", "strips", "unfold")
FORMS = (*LOGIT_FORMS, "triton")

# "auto" takes the dense product up to this many pixels, or times the window's own. Measured on a
# CPU in float32: both forms are equally fast at about 15x15 (K 5), 17x17 (K 7) and 21x21 (K 13).
DENSE_PIXELS = 256
DENSE_WINDOWS = 2.5
# Pixel rows of a strip: more of them make larger products with more zeros in them.
STRIP_ROWS = 4
# What a block of images and groups may take: near the cache on a CPU, and of a size that malloc
# has at hand; enough to fill a GPU.
BLOCK_BYTES = 4 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20
# What "auto" gives to Triton on a GPU: heads whose pixel has so many bytes; of more, the kernels do
# not fit the registers. From the compiled kernels' needs; no GPU has timed them yet.
TRITON_HEAD_BYTES = 128

# "triton" is for `contmix_from_queries`; `contmix` goes on choosing by size.
contmix_form = ForcedForm(FORMS)


def contmix(
    value: Tensor,
    large_logits: Tensor,
    small_logits: Tensor | None = None,
    *,
    large_bias: Tensor | None = None,
    small_bias: Tensor | None = None,
    form: str = "auto",
) -> Tensor:
    """Aggregate windows of `value` with a kernel per pixel and group.

    A window of K x K taps starts at clamp(i - K // 2, 0, L - K) on each axis. Softmax runs over
    the taps of each kernel. With `small_logits`, the first half of the channels takes the small
    kernel and the second half the large one. Inside each half, channel c belongs to group
    c // (channels of the half / G).

    Args:
        value: (B, C, H, W), a floating type.
        large_logits: (B, G, H*W, K*K), K odd, taps row-major.
        small_logits: (B, G, H*W, k*k), k odd, or None: all channels take the large kernel.
        large_bias: (G, 2K-1, 2K-1), added to the logits by relative position: tap (r, c) of pixel
            (i, j) takes large_bias[:, r - i + K - 1, c - j + K - 1].
        small_bias: (G, 2k-1, 2k-1), the same for the small kernel.
        form: one of `LOGIT_FORMS`, or "auto": chosen by size. All give the same values.

    Returns:
        (B, C, H, W) in the dtype and memory format of `value`. Softmax runs in float32 or wider;
        the product in the dtype of `value`, under autocast too.

    Raises:
        ValueError: a shape does not fit, or the form is unknown.
    """
    if form != "auto" and form not in LOGIT_FORMS:
        raise ValueError(f"form is '{form}', expected 'auto' or one of {LOGIT_FORMS}")
    if form == "auto" and contmix_form.form in LOGIT_FORMS:
        form = contmix_form.form
    kernels = 1 if small_logits is None else 2
    _check(value, "large", large_logits.shape, large_bias, kernels)
    if small_logits is None:
        if small_bias is not None:
            raise ValueError("small_bias is given without small_logits")
        return _aggregate(value, large_logits, large_bias, form)
    _check(value, "small", small_logits.shape, small_bias, kernels)
    if small_logits.shape[1] != large_logits.shape[1]:
        raise ValueError(
            f"small_logits has {small_logits.shape[1]} groups, large_logits has "
            f"{large_logits.shape[1]}"
        )
    small_value, large_value = value.chunk(2, dim=1)
    small = _aggregate(small_value, small_logits, small_bias, form)
    large = _aggregate(large_value, large_logits, large_bias, form)
    return torch.cat((small, large), dim=1)


def contmix_from_queries(
    value: Tensor,
    query: Tensor,
    prototypes: Tensor,
    tap_bias: Tensor | None = None,
    *,
    small_kernel: int | None = None,
    large_bias: Tensor | None = None,
    small_bias: Tensor | None = None,
    form: str = "auto",
) -> Tensor:
    """Aggregate windows of `value` with the kernels that queries make.

    The logits of a pixel are its query times the prototypes, plus `tap_bias`. OverLoCK makes them
    as (query . key) . map; here the caller multiplies keys and map first, which takes one small
    product per image and group, and autograd carries the gradients from prototypes to both.

    With the form "triton" logits and kernels exist on the chip only. It takes float32, bfloat16
    and float16, adds in float32, and rounds kernels to the dtype of `value`. "auto" takes it on
    GPUs of the Ampere generation and later for heads of at most 64 channels, or 32 in float32;
    elsewhere, and for float64, it takes "dense" or "strips" by size, where the logits of a few
    images and groups exist at a time. That choice rests on what is read and written, not on a
    timing: the kernels have not run on a GPU yet.

    Args:
        value: (B, C, H, W), a floating type.
        query: (B, G * d, H, W); channel c belongs to group c // d.
        prototypes: (B, G, d, k*k + K*K): the vector of each tap, the small kernel's first.
        tap_bias: (k*k + K*K,), added to the logits of all pixels and groups.
        small_kernel: k, or None: all channels take the large kernel.
        large_bias: (G, 2K-1, 2K-1), by relative position as in `contmix`.
        small_bias: (G, 2k-1, 2k-1), the same for the small kernel.
        form: one of `FORMS`, or "auto".

    Returns:
        (B, C, H, W) in the dtype and memory format of `value`.

    Raises:
        ValueError: a shape does not fit; the form is unknown, or cannot run here.
    """
    if form != "auto" and form not in FORMS:
        raise ValueError(f"form is '{form}', expected 'auto' or one of {FORMS}")
    if form == "auto":
        form = contmix_form.form or form
    _check_queries(value, query, prototypes, tap_bias, small_kernel)
    if form == "unfold":
        small, large = contmix_logits(query, prototypes, tap_bias, small_kernel)
        return contmix(value, large, small, large_bias=large_bias, small_bias=small_bias, form=form)
    if _takes_triton(value, query, prototypes, form):
        form = "triton"
    elif form == "triton":
        form = "auto"
    split = 0 if small_kernel is None else small_kernel**2
    pixels = (*prototypes.shape[:2], math.prod(query.shape[2:]))
    kernels = 1 if small_kernel is None else 2
    _check(value, "large", (*pixels, prototypes.shape[3] - split), large_bias, kernels)
    if small_kernel is None:
        return _fused(value, query, prototypes, tap_bias, large_bias, form)[0]
    _check(value, "small", (*pixels, split), small_bias, kernels)
    mixed = []
    for half, taps, bias in zip(
        value.chunk(2, dim=1),
        (slice(split), slice(split, None)),
        (small_bias, large_bias),
        strict=True,
    ):
        half_bias = None if tap_bias is None else tap_bias[taps]
        mixed.append(_fused(half, query, prototypes[..., taps], half_bias, bias, form)[0])
    return torch.cat(mixed, dim=1)


def contmix_logits(
    query: Tensor, prototypes: Tensor, tap_bias: Tensor | None, small_kernel: int | None
) -> tuple[Tensor | None, Tensor]:
    """Return the logits that the arguments of `contmix_from_queries` stand for.

    Returns:
        (B, G, H*W, k*k), or None without a small kernel, and (B, G, H*W, K*K).
    """
    rows = query.reshape(*prototypes.shape[:3], -1).transpose(2, 3)

    def product(taps: slice) -> Tensor:
        logits = rows @ prototypes[..., taps]
        return logits if tap_bias is None else logits + tap_bias[taps]

    if small_kernel is None:
        return None, product(slice(None))
    split = small_kernel**2
    return product(slice(split)), product(slice(split, None))


def contmix_reference(
    value: Tensor,
    large_logits: Tensor,
    small_logits: Tensor | None = None,
    *,
    large_bias: Tensor | None = None,
    small_bias: Tensor | None = None,
) -> Tensor:
    """The definition of `contmix` as plain loops over pixels and taps: slow, for tests."""
    if small_logits is not None:
        first, second = value.chunk(2, dim=1)
        return torch.cat(
            (
                contmix_reference(first, small_logits, large_bias=small_bias),
                contmix_reference(second, large_logits, large_bias=large_bias),
            ),
            dim=1,
        )
    batch, channels, height, width = value.shape
    groups = large_logits.shape[1]
    size = round(large_logits.shape[3] ** 0.5)
    rows = []
    for i in range(height):
        top = min(max(i - size // 2, 0), height - size)
        for j in range(width):
            left = min(max(j - size // 2, 0), width - size)
            logits = large_logits[:, :, i * width + j].clone()
            if large_bias is not None:
                for tap in range(size * size):
                    r, c = top + tap // size, left + tap % size
                    logits[:, :, tap] += large_bias[:, r - i + size - 1, c - j + size - 1]
            kernel = logits.softmax(-1)
            total = torch.zeros(batch, channels, dtype=value.dtype, device=value.device)
            for tap in range(size * size):
                weight = kernel[:, :, tap].repeat_interleave(channels // groups, dim=1)
                total = total + weight * value[:, :, top + tap // size, left + tap % size]
            rows.append(total)
    return torch.stack(rows, dim=-1).reshape(value.shape)


def contmix_kernels(logits: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    """Return the kernels that `contmix` aggregates with, for looking at them.

    Args:
        logits: (B, G, H*W, K*K).
        bias: (G, 2K-1, 2K-1) or None.
        height: H.
        width: W.

    Returns:
        (B, G, H*W, K*K) in float32 or wider, each kernel summing to one.
    """
    given = _Given(logits, bias, (height, width))
    return _softmax(given.rows((slice(None), slice(None)), slice(0, height))).flatten(2, 3)


def _check(
    value: Tensor, which: str, logits: Sequence[int], bias: Tensor | None, kernels: int
) -> None:
    """Raise a ValueError that names what does not fit `value`; `logits` is a shape."""
    if value.ndim != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, expected (B, C, H, W)")
    batch, channels, height, width = value.shape
    name = f"{which}_logits"
    if len(logits) != 4 or logits[0] != batch or logits[2] != height * width:
        raise ValueError(
            f"{name} has shape {tuple(logits)}, expected "
            f"({batch}, groups, {height * width}, taps) for value {tuple(value.shape)}"
        )
    groups, taps = logits[1], logits[3]
    size = _size(taps)
    if size * size != taps or size % 2 == 0:
        raise ValueError(f"{name} has {taps} taps, expected the square of an odd number")
    if channels % (kernels * groups):
        raise ValueError(
            f"value has {channels} channels, expected a multiple of {kernels * groups}: "
            f"{groups} groups of {name}, {kernels} kernel size{'s' * (kernels > 1)}"
        )
    if height < size or width < size:
        raise ValueError(
            f"value is a map of {height}x{width}, expected at least {size}x{size}, "
            f"the window of {name}"
        )
    span = 2 * size - 1
    if bias is not None and bias.shape != (groups, span, span):
        raise ValueError(
            f"{which}_bias has shape {tuple(bias.shape)}, expected ({groups}, {span}, {span})"
        )
    if not value.is_floating_point():
        raise ValueError(f"value is {value.dtype}, expected a floating type")


def _check_queries(
    value: Tensor,
    query: Tensor,
    prototypes: Tensor,
    tap_bias: Tensor | None,
    small_kernel: int | None,
) -> None:
    """Raise a ValueError that names which argument of `contmix_from_queries` does not fit."""
    if prototypes.ndim != 4:
        raise ValueError(
            f"prototypes has shape {tuple(prototypes.shape)}, expected (B, G, d, taps)"
        )
    batch, groups, width, taps = prototypes.shape
    expected = (batch, groups * width, *value.shape[2:])
    if query.shape != expected:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, expected {expected} for prototypes "
            f"{tuple(prototypes.shape)} and value {tuple(value.shape)}"
        )
    if small_kernel is not None and not 0 < small_kernel**2 < taps:
        raise ValueError(f"small_kernel is {small_kernel}, prototypes has {taps} taps in all")
    if tap_bias is not None and tap_bias.shape != (taps,):
        raise ValueError(f"tap_bias has shape {tuple(tap_bias.shape)}, expected ({taps},)")


def _takes_triton(value: Tensor, query: Tensor, prototypes: Tensor, form: str) -> bool:
    """Whether these go to Triton; a ValueError if they are asked to and cannot."""
    dtypes = {value.dtype, query.dtype, prototypes.dtype}
    if form not in ("auto", "triton") or not dtypes.issubset(TRITON_DTYPES):
        return False
    obstacle = triton_obstacle(value.device)
    if form == "triton":
        if obstacle is not None:
            raise ValueError(f"form 'triton' {obstacle}")
        return True
    width = max(prototypes.shape[2], value.shape[1] // prototypes.shape[1])
    fits = width * value.element_size() <= TRITON_HEAD_BYTES
    return value.is_cuda and obstacle is None and fits


def _size(taps: int) -> int:
    return round(taps**0.5)


def _aggregate(value: Tensor, logits: Tensor, bias: Tensor | None, form: str) -> Tensor:
    if form == "unfold":
        return _unfold(value, logits, bias)
    return torch.ops.lightning_overlock.contmix(value, logits, bias, form)


# Windows and bias --------------------------------------------------------------------------------


def _kept(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep index tensors per shape and device, so that no forward builds them anew."""
    keep = lru_cache(maxsize=128)(build)

    @wraps(build)
    def index(*key: Any) -> Tensor:
        if torch.compiler.is_compiling():  # traced: becomes a part of the graph
            return build(*key)
        # A normal tensor even if inference mode is the first to ask: training may use it later.
        with torch.inference_mode(False):
            tensor = keep(*key)
        if type(tensor) is not Tensor:  # a fake one, of a fake mode
            keep.cache_clear()
        return tensor

    index.cache_clear = keep.cache_clear  # type: ignore[attr-defined]
    return index


@_kept
def _starts(length: int, size: int, device: torch.device) -> Tensor:
    """First row (or column) of every pixel's window: (length,) int64."""
    return (torch.arange(length, device=device) - size // 2).clamp(0, length - size)


@_kept
def _window_index(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Position in the map of each pixel's taps: (H*W, K*K) int64."""
    tap = torch.arange(size, device=device)
    rows = _starts(height, size, device)[:, None, None, None] + tap[:, None]
    columns = _starts(width, size, device)[:, None, None] + tap
    return (rows * width + columns).reshape(height * width, size * size)


@_kept
def _offsets(length: int, size: int, device: torch.device) -> Tensor:
    """Which of the K windows of a bias table a pixel sees: start - pixel + K - 1, (length,)."""
    return _starts(length, size, device) - torch.arange(length, device=device) + size - 1


def _bias_rows(bias: Tensor, height: int) -> Tensor:
    """Windows of (G, 2K-1, 2K-1) tables for each pixel row: (G, H, K column offsets, K*K)."""
    size = (bias.shape[1] + 1) // 2
    windows = bias.unfold(1, size, 1).unfold(2, size, 1).flatten(3)
    return windows.index_select(1, _offsets(height, size, bias.device))


def sum_offsets(x: Tensor, dim: int, size: int) -> Tensor:
    """Sum the pixels of an axis that see the same window of a bias table: length to K = size.

    Offsets fall from K - 1 to 0; all pixels but K // 2 at either end share the middle one.
    """
    half, length = size // 2, x.shape[dim]
    middle = x.narrow(dim, half, length - 2 * half).sum(dim, keepdim=True)
    parts = (x.narrow(dim, 0, half), middle, x.narrow(dim, length - half, half))
    return torch.cat(parts, dim).flip(dim)


def _bias_grad(rows: Tensor) -> Tensor:
    """Adjoint of `_bias_rows`: (G, H, K, K*K) to (G, 2K-1, 2K-1)."""
    groups, _, size, _ = rows.shape
    windows = sum_offsets(rows, 1, size).reshape(groups, size * size, size * size)
    return F.fold(windows.mT, (2 * size - 1, 2 * size - 1), size).squeeze(1)


def _softmax(logits: Tensor) -> Tensor:
    """Kernels in float32 or wider."""
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


# The benchmark's baseline ------------------------------------------------------------------------


def _unfold(value: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
    """Gather the window of every pixel, (B, C, H, W, K, K), and multiply; plain autograd."""
    batch, channels, height, width = value.shape
    groups, taps = logits.shape[1], logits.shape[3]
    size = _size(taps)
    kernel = contmix_kernels(logits, bias, height, width)
    rows = _starts(height, size, value.device)[:, None]
    columns = _starts(width, size, value.device)
    windows = value.unfold(2, size, 1).unfold(3, size, 1)[:, :, rows, columns]
    windows = windows.reshape(batch, groups, channels // groups, height * width, taps)
    product = torch.einsum("bgcnk,bgnk->bgcn", windows, kernel.to(value.dtype))
    return product.reshape(value.shape)


# The operator: dense product and strips ----------------------------------------------------------


@torch.library.custom_op("lightning_overlock::contmix", mutates_args=())
def _contmix(value: Tensor, logits: Tensor, bias: Tensor | None, form: str) -> Tensor:
    # Autocast would narrow the products inside, whose dtypes are the operator's own affair.
    with torch.autocast(value.device.type, enabled=False):
        return _forward(value, _Given(logits, bias, value.shape[2:]), form)


@_contmix.register_fake
def _(value: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(value)


@torch.library.custom_op("lightning_overlock::contmix_backward", mutates_args=())
def _contmix_backward(
    grad: Tensor,
    value: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    form: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, logits and bias; an empty tensor for those not wanted."""
    grads = _empty_grads(value, logits, bias, wanted)
    given = _Given(logits, bias, value.shape[2:])
    given.grad = _unflatten(grads[1], 2, *value.shape[2:]) if wanted[1] else None
    with torch.autocast(value.device.type, enabled=False):
        value_grad = grads[0] if wanted[0] else None
        bias_rows_grad = _backward(grad, value, given, form, value_grad, wanted[1], wanted[2])
    if bias_rows_grad is not None:
        grads[2].copy_(_bias_grad(bias_rows_grad))
    return grads


@_contmix_backward.register_fake
def _(
    _grad: Tensor,
    value: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    _form: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(value, logits, bias, wanted)


def _empty_grads(
    value: Tensor, logits: Tensor, bias: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(value) if wanted[0] else value.new_empty(0),
        logits.new_empty(logits.shape) if wanted[1] else logits.new_empty(0),
        bias.new_empty(bias.shape) if bias is not None and wanted[2] else logits.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.form = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    grads = _contmix_backward(grad, *ctx.saved_tensors, ctx.form, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None


_contmix.register_autograd(_autograd, setup_context=_setup_context)


# One count for all forms: the products that the definition asks for.
@register_flop_formula(torch.ops.lightning_overlock.contmix)
def _(value: Sequence[int], logits: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(value) * logits[3]


@register_flop_formula(torch.ops.lightning_overlock.contmix_backward)
def _(
    _grad: Any,
    value: Sequence[int],
    logits: Sequence[int],
    _bias: Any,
    _form: Any,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    return (wanted[0] + (wanted[1] or wanted[2])) * 2 * math.prod(value) * logits[3]


def _parts(value: Tensor, size: int, form: str) -> "list[_Map] | list[_Strip]":
    """What a map is worked on in: as a whole, or in strips of a few rows."""
    height, width = value.shape[2:]
    if form == "auto":
        limit = max(DENSE_PIXELS, DENSE_WINDOWS * size * size)
        form = "dense" if height * width <= limit else "strips"
    if form == "dense":
        return [_Map(height, width, size)]
    return _Strip.cover(height, width, size)


def _blocks(value: Tensor, groups: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Images and groups to work on at a time, where each group of an image takes `numbers`."""
    limit = BLOCK_BYTES if value.device.type == "cpu" else DEVICE_BLOCK_BYTES
    count = max(1, limit // (numbers * value.element_size()))
    images, some = max(1, count // groups), min(groups, count)
    images = math.ceil(value.shape[0] / math.ceil(value.shape[0] / images))  # equal shares
    for b in range(0, value.shape[0], images):
        for g in range(0, groups, some):
            yield slice(b, b + images), slice(g, min(g + some, groups))


def _unflatten(x: Tensor, dim: int, first: int, second: int) -> Tensor:
    return x.view(*x.shape[:dim], first, second, *x.shape[dim + 1 :])


def _grouped(x: Tensor, groups: int) -> Tensor:
    """View (B, C, H, W) as (B, G, H, W, C/G)."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).permute(0, 1, 3, 4, 2)


class _Bias:
    """The bias of logits: (G, H, K column offsets, K*K) as of `_bias_rows`."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.last: tuple[tuple[slice, slice], Tensor] | None = None

    def of_pixels(self, groups: slice, rows: slice, width: int) -> Tensor:
        """Bias of some groups and rows of pixels: (groups, rows, W, K*K)."""
        if self.last is None or self.last[0] != (groups, rows):  # the next images ask again
            columns = _offsets(width, self.rows.shape[2], self.rows.device)
            self.last = (groups, rows), self.rows[groups, rows].index_select(2, columns)
        return self.last[1]


class _Given:
    """Logits that are given, with a bias table or None."""

    def __init__(self, logits: Tensor, bias: Tensor | None, size: Sequence[int]) -> None:
        self.groups, self.taps = logits.shape[1], logits.shape[3]
        self.logits = _unflatten(logits, 2, *size)
        self.bias = None if bias is None else _Bias(_bias_rows(bias, size[0]))
        self.grad: Tensor | None = None

    def rows(self, block: tuple[slice, slice], rows: slice) -> Tensor:
        """Biased logits of some images, groups and rows of pixels: (b, g, rows, W, K*K)."""
        logits = self.logits[block][:, :, rows]
        if self.bias is None:
            return logits
        return logits + self.bias.of_pixels(block[1], rows, logits.shape[3])

    def add_grad(self, grad: Tensor, block: tuple[slice, slice], rows: slice) -> None:
        """Keep the gradient of what `rows` gave."""
        assert self.grad is not None
        self.grad[block][:, :, rows] = grad


class _Products:
    """Logits that are products of queries and prototypes, made anew wherever they are needed."""

    def __init__(
        self, query: Tensor, prototypes: Tensor, tap_bias: Tensor | None, table: Tensor | None
    ) -> None:
        self.groups, self.taps = prototypes.shape[1], prototypes.shape[3]
        dtype = torch.promote_types(query.dtype, prototypes.dtype)
        self.query = _grouped(query, self.groups).to(dtype)
        self.prototypes = prototypes.to(dtype)
        bias_rows = None if table is None else _bias_rows(table, query.shape[2])
        if tap_bias is not None:
            shape = (self.groups, query.shape[2], _size(self.taps), self.taps)
            bias_rows = tap_bias.expand(shape) if bias_rows is None else bias_rows + tap_bias
        self.bias = None if bias_rows is None else _Bias(bias_rows)
        self.query_grad: Tensor | None = None
        self.prototypes_grad: Tensor | None = None

    def rows(self, block: tuple[slice, slice], rows: slice) -> Tensor:
        """As of `_Given`."""
        query = self.query[block][:, :, rows]
        logits = _unflatten(query.flatten(2, 3) @ self.prototypes[block], 2, *query.shape[2:4])
        if self.bias is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits += self.bias.of_pixels(block[1], rows, query.shape[3])
        return logits

    def add_grad(self, grad: Tensor, block: tuple[slice, slice], rows: slice) -> None:
        """As of `_Given`."""
        query = self.query[block][:, :, rows]
        flat = grad.flatten(2, 3).to(query.dtype)
        if self.query_grad is not None:
            product = flat @ self.prototypes[block].mT
            self.query_grad[block][:, :, rows] = product.view_as(query)
        if self.prototypes_grad is not None:  # in float32 or wider, over the rows
            self.prototypes_grad[block] += query.flatten(2, 3).mT @ flat


def _forward(value: Tensor, logits: "_Given | _Products", form: str) -> Tensor:
    groups = logits.groups
    parts = _parts(value, _size(logits.taps), form)
    output = torch.empty_like(value)
    for block in _blocks(value, groups, parts[0].source_numbers(value.shape[1] // groups)):
        source = parts[0].source(_grouped(value, groups)[block].flatten(0, 1))
        target = _grouped(output, groups)[block]
        for part in parts:
            kernel = _softmax(logits.rows(block, part.rows)).to(value.dtype)
            product = torch.bmm(part.matrix(kernel.flatten(0, 1)), part.windows(source))
            target[:, :, part.rows] = part.image(product).view_as(target[:, :, part.rows])
    return output


def _backward(
    grad: Tensor,
    value: Tensor,
    logits: "_Given | _Products",
    form: str,
    value_grad: Tensor | None,
    want_logits: bool,
    want_bias: bool,
) -> Tensor | None:
    """Fill `value_grad`, hand the logits' gradient to `logits`, return that of the bias rows."""
    groups = logits.groups
    size = _size(logits.taps)
    parts = _parts(value, size, form)
    bias_rows_grad = None
    if want_bias:
        assert logits.bias is not None
        bias = logits.bias.rows
        wide = torch.promote_types(bias.dtype, torch.float32)
        bias_rows_grad = torch.zeros(bias.shape, dtype=wide, device=bias.device)
    for block in _blocks(value, groups, parts[0].source_numbers(value.shape[1] // groups)):
        source = parts[0].source(_grouped(value, groups)[block].flatten(0, 1))
        block_grad = _grouped(grad, groups)[block].flatten(0, 1)
        if value_grad is not None:
            # Windows overlap: their gradients are added in float32 or wider.
            wide = torch.promote_types(value.dtype, torch.float32)
            source_grad = torch.zeros_like(source, dtype=wide)
        for part in parts:
            kernel = _softmax(logits.rows(block, part.rows))
            pixels = part.pixels(block_grad[:, part.rows])
            if value_grad is not None:
                matrix = part.matrix(kernel.to(value.dtype).flatten(0, 1))
                part.windows(source_grad).add_(torch.bmm(matrix.mT, pixels))
            if want_logits or want_bias:
                matrix = torch.bmm(pixels, part.windows(source).mT)
                kernel_grad = part.kernel(matrix).to(kernel.dtype).reshape(kernel.shape)
                part_grad = torch.ops.aten._softmax_backward_data(
                    kernel_grad, kernel, -1, kernel.dtype
                )
                if want_logits:
                    logits.add_grad(part_grad, block, part.rows)
                if bias_rows_grad is not None:
                    bias_rows_grad[block[1], part.rows] += sum_offsets(part_grad.sum(0), 2, size)
        if value_grad is not None:
            target = _grouped(value_grad, groups)[block]
            target.copy_(parts[0].value(source_grad).view_as(target))
    return bias_rows_grad


class _Matrices:
    """Matrices of zeros that kernels are written into, again and again at the same places."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, kernel: Tensor, count: int, rows: int, columns: int) -> Tensor:
        """(count, rows, columns) of the kernel's dtype; what no kernel is written to stays zero."""
        kept = self.kept.get((rows, columns))
        if kept is None or kept.shape[0] < count:
            kept = self.kept[rows, columns] = kernel.new_zeros(count, rows, columns)
        return kept[:count]


class _Map:
    """The whole map: kernels are rows of an (H*W, H*W) matrix, mostly full on small maps."""

    def __init__(self, height: int, width: int, size: int) -> None:
        self.height, self.width, self.size = height, width, size
        self.pixel_count = height * width
        self.rows = slice(0, height)
        self._matrices = _Matrices()

    def source_numbers(self, channels: int) -> int:  # noqa: ARG002
        """Numbers that a group of an image takes while it is worked on: its matrix."""
        return self.pixel_count**2

    def source(self, value: Tensor) -> Tensor:
        """(n, H, W, C/G) to (n, H*W, C/G)."""
        return value.flatten(1, 2)

    def value(self, source: Tensor) -> Tensor:
        """Adjoint of `source`."""
        return source

    def windows(self, source: Tensor) -> Tensor:
        """The rows that the columns of the matrix belong to."""
        return source

    def pixels(self, x: Tensor) -> Tensor:
        """(n, H, W, C/G) in the order of the rows of the matrix."""
        return x.flatten(1, 2)

    def image(self, pixels: Tensor) -> Tensor:
        """Inverse of `pixels`."""
        return pixels

    def _index(self, kernel: Tensor) -> Tensor:
        index = _window_index(self.height, self.width, self.size, kernel.device)
        return index.expand(kernel.shape[0], -1, -1)

    def matrix(self, kernel: Tensor) -> Tensor:
        """(n, H, W, K*K) to (n, H*W, H*W)."""
        kernel = kernel.flatten(1, 2)
        if kernel.shape[2] == self.pixel_count:  # the window is the map
            return kernel
        matrix = self._matrices(kernel, kernel.shape[0], self.pixel_count, self.pixel_count)
        return matrix.scatter_(2, self._index(kernel), kernel)

    def kernel(self, matrix: Tensor) -> Tensor:
        """Adjoint of `matrix`."""
        if self.size**2 == self.pixel_count:
            return matrix
        return matrix.gather(2, self._index(matrix))


class _Strip:
    """A few rows of pixels, for maps of which a window is a small part.

    The source holds, for each column of pixels, the K columns of their windows as one block:
    (n, W, H, K, C/G). A window is then K*K neighbouring rows of an (H*K, C/G) matrix, and so is
    what the windows of the strip's pixels in this column cover together. Their kernels, each
    shifted by K taps from the one above, are the rows of a small banded matrix, and the strip is
    one batched product over groups and columns. Nothing is gathered.
    """

    def __init__(
        self, rows: slice, height: int, width: int, size: int, matrices: _Matrices
    ) -> None:
        self.rows, self.height, self.width, self.size = rows, height, width, size
        self._matrices = matrices
        self.start = min(max(rows.start - size // 2, 0), height - size)
        self.stop = min(max(rows.stop - 1 - size // 2, 0), height - size) + size
        self.covered = (self.stop - self.start) * size

    @classmethod
    def cover(cls, height: int, width: int, size: int) -> "list[_Strip]":
        """Strips whose windows all start at the same row, or each a row below the one before."""
        first, last = size // 2 + 1, height - size // 2 - 1
        cuts = [0, *range(first, last, STRIP_ROWS), last, height] if first <= last else [0, height]
        matrices = _Matrices()
        return [cls(slice(a, b), height, width, size, matrices) for a, b in pairwise(cuts)]

    def source_numbers(self, channels: int) -> int:
        """Numbers that a group of an image takes while it is worked on: its source."""
        return self.width * self.height * self.size * channels

    def source(self, value: Tensor) -> Tensor:
        """(n, H, W, C/G) to (n, W, H, K, C/G)."""
        half, inner = self.size // 2, self.width - self.size + 1
        windows = value.contiguous().unfold(2, self.size, 1).permute(0, 2, 1, 4, 3)
        source = value.new_empty(windows.shape[0], self.width, *windows.shape[2:])
        source[:, :half] = windows[:, :1]
        source[:, half : half + inner] = windows
        source[:, half + inner :] = windows[:, -1:]
        return source

    def value(self, source: Tensor) -> Tensor:
        """Adjoint of `source`, which is overwritten."""
        half, inner = self.size // 2, self.width - self.size + 1
        windows = source[:, half : half + inner]
        windows[:, 0] += source[:, :half].sum(1)
        windows[:, -1] += source[:, half + inner :].sum(1)
        value = source.new_zeros(source.shape[0], self.width, self.height, source.shape[4])
        for column in range(self.size):
            value[:, column : column + inner] += windows[:, :, :, column]
        return value.transpose(1, 2)

    def windows(self, source: Tensor) -> Tensor:
        """The rows that the columns of the matrix belong to: a view, (n * W, covered, C/G)."""
        return source[:, :, self.start : self.stop].flatten(2, 3).flatten(0, 1)

    def pixels(self, x: Tensor) -> Tensor:
        """(n, rows, W, C/G) to (n * W, rows, C/G)."""
        return x.transpose(1, 2).flatten(0, 1).contiguous()

    def image(self, pixels: Tensor) -> Tensor:
        """Inverse of `pixels`."""
        return _unflatten(pixels, 0, -1, self.width).transpose(1, 2)

    def _taps(self, matrix: Tensor) -> Tensor:
        """The part of a matrix that holds the kernels: a view, (n, rows, W, K*K)."""
        count, rows, covered = matrix.shape
        step = covered + self.size * (self.stop - self.start > self.size)
        shape = (count // self.width, rows, self.width, self.size**2)
        stride = (self.width * rows * covered, step, rows * covered, 1)
        return matrix.as_strided(shape, stride)

    def matrix(self, kernel: Tensor) -> Tensor:
        """(n, rows, W, K*K) to (n * W, rows, covered)."""
        n, rows, width, _ = kernel.shape
        matrix = self._matrices(kernel, n * width, rows, self.covered)
        self._taps(matrix).copy_(kernel)
        return matrix

    def kernel(self, matrix: Tensor) -> Tensor:
        """Adjoint of `matrix`."""
        return self._taps(matrix)


# The operator from queries: logits exist block by block, with Triton on the chip only -------------


@torch.library.custom_op("lightning_overlock::contmix_fused", mutates_args=())
def _fused(
    value: Tensor,
    query: Tensor,
    prototypes: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    form: str,
) -> tuple[Tensor, Tensor]:
    """One kernel size of `contmix_from_queries`, and what Triton's backward needs to know of it."""
    if form == "triton":
        from lightning_overlock.ops.contmix import triton as contmix_triton

        return contmix_triton.forward(value, query, prototypes, tap_bias, table)
    with torch.autocast(value.device.type, enabled=False):
        products = _Products(query, prototypes, tap_bias, table)
        return _forward(value, products, form), value.new_empty(0, dtype=torch.float32)


@_fused.register_fake
def _(
    value: Tensor, _query: Tensor, prototypes: Tensor, _bias: Any, _table: Any, form: str
) -> tuple[Tensor, Tensor]:
    shape = (*prototypes.shape[:2], *value.shape[2:]) if form == "triton" else (0,)
    return torch.empty_like(value), value.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("lightning_overlock::contmix_fused_backward", mutates_args=())
def _fused_backward(
    grad: Tensor,
    value: Tensor,
    query: Tensor,
    prototypes: Tensor,
    tap_bias: Tensor | None,
    table: Tensor | None,
    output: Tensor | None,
    log_sums: Tensor | None,
    form: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs; an empty tensor for those not wanted."""
    inputs = (value, query, prototypes, tap_bias, table)
    grads = _fused_grads(inputs, wanted)
    targets = [x if want else None for x, want in zip(grads, wanted, strict=True)]
    if form == "triton":
        from lightning_overlock.ops.contmix import triton as contmix_triton

        assert output is not None
        assert log_sums is not None
        contmix_triton.backward(grad, *inputs, output, log_sums, targets)
        return grads
    with torch.autocast(value.device.type, enabled=False):
        products = _Products(query, prototypes, tap_bias, table)
        if wanted[1]:
            products.query_grad = _grouped(grads[1], products.groups)
        if wanted[2]:
            wide = torch.promote_types(products.prototypes.dtype, torch.float32)
            products.prototypes_grad = torch.zeros_like(prototypes, dtype=wide)
        bias_rows_grad = _backward(
            grad, value, products, form, targets[0], wanted[1] or wanted[2], wanted[3] or wanted[4]
        )
    if products.prototypes_grad is not None:
        grads[2].copy_(products.prototypes_grad)
    if bias_rows_grad is not None and wanted[3]:
        grads[3].copy_(bias_rows_grad.sum((0, 1, 2)))
    if bias_rows_grad is not None and wanted[4]:
        grads[4].copy_(_bias_grad(bias_rows_grad))
    return grads


@_fused_backward.register_fake
def _(_grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _fused_grads(inputs[:5], inputs[8])


def _fused_grads(
    inputs: Sequence[Any], wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = inputs[0].new_empty(0)
    value, query, prototypes, tap_bias, table = (
        torch.empty_like(x) if want else torch.empty_like(nothing)
        for x, want in zip(inputs, wanted, strict=True)
    )
    return value, query, prototypes, tap_bias, table


def _fused_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.form = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *(output if ctx.form == "triton" else (None, None)))


def _fused_autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:5]
    grads = _fused_backward(grad, *ctx.saved_tensors, ctx.form, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None


_fused.register_autograd(_fused_autograd, setup_context=_fused_context)


# Products of queries and prototypes, and of kernels and values, as the other forms count them.
@register_flop_formula(torch.ops.lightning_overlock.contmix_fused)
def _(
    value: Sequence[int], query: Sequence[int], prototypes: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * (math.prod(query) + math.prod(value)) * prototypes[3]


@register_flop_formula(torch.ops.lightning_overlock.contmix_fused_backward)
def _(
    _grad: Sequence[int],
    value: Sequence[int],
    query: Sequence[int],
    prototypes: Sequence[int],
    *others: Any,
    **_: Any,
) -> int:
    wanted = others[-1]
    with_values = wanted[0] + any(wanted[1:])
    with_queries = wanted[1] + wanted[2]
    return 2 * (math.prod(value) * with_values + math.prod(query) * with_queries) * prototypes[3]
