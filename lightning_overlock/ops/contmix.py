"""ContMix's aggregation: every pixel sums its own window of a map with its own kernel.

Windows are clamped inside the map instead of padded (OverLoCK, arXiv 2502.20087, section 3.3). The
gradient recomputes softmax and windows; nothing of the size of a map of windows is kept.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

FORMS = ("dense", "strips", "unfold")

DENSE_LIMIT = 3
STRIP_ROWS = 4
BAND_BYTES = 8 * 2**20

_forced_form: str | None = None


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
        form: one of `FORMS`, or "auto": chosen by size. All forms give the same values.

    Returns:
        (B, C, H, W) in the dtype and memory format of `value`. Softmax runs in float32 or wider;
        the product in the dtype of `value`, under autocast too.

    Raises:
        ValueError: a shape does not fit, or the form is unknown.
    """
    if form != "auto" and form not in FORMS:
        raise ValueError(f"form is '{form}', expected 'auto' or one of {FORMS}")
    if form == "auto" and _forced_form is not None:
        form = _forced_form
    if value.ndim != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, expected (B, C, H, W)")
    kernels = 1 if small_logits is None else 2
    _check(value, "large", large_logits, large_bias, kernels)
    if small_logits is None:
        if small_bias is not None:
            raise ValueError("small_bias is given without small_logits")
        return _aggregate(value, large_logits, large_bias, form)
    _check(value, "small", small_logits, small_bias, kernels)
    if small_logits.shape[1] != large_logits.shape[1]:
        raise ValueError(
            f"small_logits has {small_logits.shape[1]} groups, large_logits has "
            f"{large_logits.shape[1]}"
        )
    small_value, large_value = value.chunk(2, dim=1)
    small = _aggregate(small_value, small_logits, small_bias, form)
    large = _aggregate(large_value, large_logits, large_bias, form)
    return torch.cat((small, large), dim=1)


@contextmanager
def contmix_form(form: str) -> Iterator[None]:
    """Make `form="auto"` mean `form` inside the block, to compare whole models.

    Raises:
        ValueError: the form is unknown.
    """
    global _forced_form
    if form not in FORMS:
        raise ValueError(f"form is '{form}', expected one of {FORMS}")
    before, _forced_form = _forced_form, form
    try:
        yield
    finally:
        _forced_form = before


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


def _check(value: Tensor, which: str, logits: Tensor, bias: Tensor | None, kernels: int) -> None:
    """Raise a ValueError that names the argument which does not fit `value`."""
    batch, channels, height, width = value.shape
    name = f"{which}_logits"
    if logits.ndim != 4 or logits.shape[0] != batch or logits.shape[2] != height * width:
        raise ValueError(
            f"{name} has shape {tuple(logits.shape)}, expected "
            f"({batch}, groups, {height * width}, taps) for value {tuple(value.shape)}"
        )
    groups, taps = logits.shape[1], logits.shape[3]
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


def _size(taps: int) -> int:
    return round(taps**0.5)


def _aggregate(value: Tensor, logits: Tensor, bias: Tensor | None, form: str) -> Tensor:
    if form == "unfold":
        return _unfold(value, logits, bias)
    return torch.ops.lightning_overlock.contmix(value, logits, bias, form)


# Windows and bias --------------------------------------------------------------------------------


def _starts(length: int, size: int, device: torch.device) -> Tensor:
    """First row (or column) of every pixel's window: (length,) int64."""
    return (torch.arange(length, device=device) - size // 2).clamp(0, length - size)


def _window_index(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """Position in the map of each pixel's taps: (H*W, K*K) int64."""
    tap = torch.arange(size, device=device)
    rows = _starts(height, size, device)[:, None, None, None] + tap[:, None]
    columns = _starts(width, size, device)[:, None, None] + tap
    return (rows * width + columns).reshape(height * width, size * size)


@lru_cache(maxsize=256)
def _cached_window_index(height: int, width: int, size: int, device: torch.device) -> Tensor:
    # Outside inference mode: the tensor outlives it and serves training steps too.
    with torch.inference_mode(False):
        return _window_index(height, width, size, device)


def _spread(x: Tensor, dim: int, length: int) -> Tensor:
    """From the K window offsets of a bias to the pixels of an axis; `_gathered` is its adjoint.

    Windows of the first K // 2 pixels start at 0, so each sees other relative positions; those in
    the middle all see the same.
    """
    half = x.shape[dim] // 2
    x = x.flip(dim)
    sizes = list(x.shape)
    sizes[dim] = length - 2 * half
    middle = x.narrow(dim, half, 1).expand(sizes)
    return torch.cat((x.narrow(dim, 0, half), middle, x.narrow(dim, half + 1, half)), dim)


def _gathered(x: Tensor, dim: int, size: int) -> Tensor:
    half, length = size // 2, x.shape[dim]
    middle = x.narrow(dim, half, length - 2 * half).sum(dim, keepdim=True)
    parts = (x.narrow(dim, 0, half), middle, x.narrow(dim, length - half, half))
    return torch.cat(parts, dim).flip(dim)


def _bias_windows(bias: Tensor, size: int) -> Tensor:
    """Every window of the (G, 2K-1, 2K-1) tables: (G, K row offsets, K column offsets, K*K)."""
    return bias.unfold(1, size, 1).unfold(2, size, 1).flatten(3)


def _bias_from_windows(grad: Tensor) -> Tensor:
    """Adjoint of `_bias_windows`: (G, K, K, K*K) to (G, 2K-1, 2K-1)."""
    groups, size = grad.shape[:2]
    columns = grad.reshape(groups, size * size, -1).mT
    return F.fold(columns, (2 * size - 1, 2 * size - 1), size).squeeze(1)


def _softmax(logits: Tensor, bias: Tensor | None, height: int, width: int) -> Tensor:
    """(B, G, H*W, K*K) kernels in float32 or wider."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if bias is None:
        return logits.softmax(-1, dtype=dtype)
    windows = _bias_windows(bias.to(dtype), _size(logits.shape[3]))
    bias_map = _spread(_spread(windows, 1, height), 2, width)
    return (logits + bias_map.flatten(1, 2)).softmax(-1, dtype=dtype)


# The benchmark's baseline ------------------------------------------------------------------------


def _unfold(value: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
    """Gather the window of every pixel, (B, C, H, W, K, K), and multiply; plain autograd."""
    batch, channels, height, width = value.shape
    groups, taps = logits.shape[1], logits.shape[3]
    size = _size(taps)
    kernel = _softmax(logits, bias, height, width).to(value.dtype)
    rows = _starts(height, size, value.device)[:, None]
    columns = _starts(width, size, value.device)
    windows = value.unfold(2, size, 1).unfold(3, size, 1)[:, :, rows, columns]
    windows = windows.reshape(batch, groups, channels // groups, height * width, taps)
    return torch.einsum("bgcnk,bgnk->bgcn", windows, kernel).reshape(value.shape)


# The operator ------------------------------------------------------------------------------------


@torch.library.custom_op("lightning_overlock::contmix", mutates_args=())
def _contmix(value: Tensor, logits: Tensor, bias: Tensor | None, form: str) -> Tensor:
    # Autocast would otherwise narrow the products inside an operator whose dtypes are fixed.
    forward = _dense_forward if _is_dense(value, logits, form) else _strips_forward
    with torch.autocast(value.device.type, enabled=False):
        return forward(value, logits, bias)


@_contmix.register_fake
def _(value: Tensor, logits: Tensor, bias: Tensor | None, form: str) -> Tensor:
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
    """Gradients of value, logits and bias; an empty tensor where none is wanted."""
    backward = _dense_backward if _is_dense(value, logits, form) else _strips_backward
    with torch.autocast(value.device.type, enabled=False):
        return backward(grad, value, logits, bias, wanted)


@_contmix_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    form: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (value, logits, logits if bias is None else bias)
    value_grad, logits_grad, bias_grad = (
        torch.empty(x.shape if want else (0,), dtype=x.dtype, device=x.device)
        for x, want in zip(tensors, wanted, strict=True)
    )
    return value_grad, logits_grad, bias_grad


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor | None, str],
    output: Tensor,
) -> None:
    value, logits, bias, form = inputs
    ctx.save_for_backward(value, logits, bias)
    ctx.form = form  # type: ignore[attr-defined]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.lightning_overlock.contmix_backward(
        grad, *ctx.saved_tensors, ctx.form, wanted
    )
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None


_contmix.register_autograd(_backward, setup_context=_setup_context)


def _is_dense(value: Tensor, logits: Tensor, form: str) -> bool:
    if form != "auto":
        return form == "dense"
    return value.shape[2] * value.shape[3] <= DENSE_LIMIT * logits.shape[3]


def _product_flops(value_shape: Sequence[int], logits_shape: Sequence[int]) -> int:
    batch, channels, height, width = value_shape
    return 2 * batch * channels * height * width * logits_shape[3]


@register_flop_formula(torch.ops.lightning_overlock.contmix)
def _(value_shape, logits_shape, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003
    return _product_flops(value_shape, logits_shape)


@register_flop_formula(torch.ops.lightning_overlock.contmix_backward)
def _(grad_shape, value_shape, logits_shape, bias_shape, form, wanted, **_kwargs) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003
    products = wanted[0] + (wanted[1] or wanted[2])
    return products * _product_flops(value_shape, logits_shape)


def _pixels(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to (B*G, H*W, C/G)."""
    batch, channels, height, width = x.shape
    x = x.unflatten(1, (groups, channels // groups)).permute(0, 1, 3, 4, 2)
    return x.reshape(batch * groups, height * width, channels // groups)


def _image(x: Tensor, like: Tensor) -> Tensor:
    """(B*G, H*W, C/G) to the shape and memory format of `like`, (B, C, H, W)."""
    batch, channels, height, width = like.shape
    groups = x.shape[0] // batch
    image = torch.empty_like(like)
    x = x.reshape(batch, groups, height, width, channels // groups)
    image.unflatten(1, (groups, channels // groups)).copy_(x.permute(0, 1, 4, 2, 3))
    return image


# Dense product: kernels as rows of an (H*W, H*W) matrix ------------------------------------------


def _scatter(kernel: Tensor, height: int, width: int) -> Tensor:
    """(B, G, H*W, K*K) kernels to (B*G, H*W, H*W) matrices."""
    batch, groups, pixels, taps = kernel.shape
    if taps == pixels:  # the window is the map
        return kernel.reshape(batch * groups, pixels, pixels)
    index = _cached_window_index(height, width, _size(taps), kernel.device)
    matrix = kernel.new_zeros(batch * groups, pixels, pixels)
    return matrix.scatter_(
        2, index.expand(batch * groups, -1, -1), kernel.view(matrix.shape[0], pixels, taps)
    )


def _dense_forward(value: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
    height, width = value.shape[2:]
    kernel = _softmax(logits, bias, height, width).to(value.dtype)
    product = torch.bmm(_scatter(kernel, height, width), _pixels(value, logits.shape[1]))
    return _image(product, value)


def _dense_backward(
    grad: Tensor, value: Tensor, logits: Tensor, bias: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = value.shape[2:]
    groups, taps = logits.shape[1], logits.shape[3]
    kernel = _softmax(logits, bias, height, width)
    grad = _pixels(grad, groups)
    value_grad = value.new_empty(0)
    if wanted[0]:
        matrix = _scatter(kernel.to(value.dtype), height, width)
        value_grad = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        value_grad.copy_(_image(torch.bmm(matrix.mT, grad), value_grad))
        del matrix
    if not (wanted[1] or wanted[2]):
        return value_grad, logits.new_empty(0), logits.new_empty(0)
    matrix_grad = torch.bmm(grad, _pixels(value, groups).mT)
    if taps != height * width:
        index = _cached_window_index(height, width, _size(taps), value.device)
        matrix_grad = matrix_grad.gather(2, index.expand(matrix_grad.shape[0], -1, -1))
    kernel_grad = matrix_grad.view(kernel.shape).to(kernel.dtype)
    logits_grad = torch.ops.aten._softmax_backward_data(kernel_grad, kernel, -1, kernel.dtype)
    bias_grad = logits.new_empty(0)
    if wanted[2] and bias is not None:
        pixels = logits_grad.sum(0).unflatten(1, (height, width))
        size = _size(taps)
        bias_grad = _bias_from_windows(_gathered(_gathered(pixels, 1, size), 2, size))
        bias_grad = bias_grad.to(bias.dtype)
    return value_grad, logits_grad.to(logits.dtype) if wanted[1] else logits.new_empty(0), bias_grad


# Strips: large maps with bounded memory -----------------------------------------------------------
#
# `bands` holds, for each pixel column j, the K columns of its windows as one contiguous block per
# row: (groups, W, H, K, C/G). A window is then K*K consecutive rows of a matrix with C/G columns,
# and the windows of STRIP_ROWS pixels one below the other overlap in it. Their kernels, each shifted
# by K taps per row, form a small banded matrix, so a strip of the map is one batched product over
# its columns, without any gathering of windows.


def _bands(value: Tensor, size: int) -> Tensor:
    """(groups, H, W, C/G) to (groups, W, H, K, C/G)."""
    groups, height, width, channels = value.shape
    half = size // 2
    windows = value.unfold(2, size, 1).permute(0, 2, 1, 4, 3)  # (groups, W-K+1, H, K, C/G)
    bands = value.new_empty(groups, width, height, size, channels)
    bands[:, half : width - half] = windows
    bands[:, :half] = windows[:, :1]
    bands[:, width - half :] = windows[:, -1:]
    return bands


def _value_from_bands(bands: Tensor) -> Tensor:
    """Adjoint of `_bands`; overwrites its input."""
    groups, width, height, size, channels = bands.shape
    half, starts = size // 2, width - size + 1
    bands[:, half] += bands[:, :half].sum(1)
    bands[:, width - half - 1] += bands[:, width - half :].sum(1)
    value = bands.new_zeros(groups, height, width, channels)
    for column in range(size):
        value[:, :, column : column + starts] += bands[
            :, half : width - half, :, column
        ].transpose(1, 2)
    return value


class _Strip:
    """Pixel rows `top` to `bottom`, whose windows cover `rows` map rows from `start` on."""

    def __init__(self, top: int, height: int, size: int) -> None:
        self.top, self.bottom = top, min(top + STRIP_ROWS, height)
        starts = [min(max(i - size // 2, 0), height - size) for i in range(top, self.bottom)]
        self.start, self.rows = starts[0], starts[-1] - starts[0] + size
        self.taps = size * size
        self.shifts = [(start - starts[0]) * size for start in starts]

    def banded(self, kernel: Tensor, size: int) -> Tensor:
        """(groups, rows, W, K*K) kernels to (groups * W, rows, self.rows * K)."""
        groups, height, width, taps = kernel.shape
        banded = kernel.new_zeros(groups, width, height, self.rows * size)
        for t, shift in enumerate(self.shifts):
            banded[:, :, t, shift : shift + taps] = kernel[:, t]
        return banded.flatten(0, 1)

    def kernels(self, banded: Tensor, width: int) -> Tensor:
        """Adjoint of `banded`."""
        banded = banded.unflatten(0, (-1, width))
        parts = [banded[:, :, t, s : s + self.taps] for t, s in enumerate(self.shifts)]
        return torch.stack(parts, 1)

    def windows(self, bands: Tensor) -> Tensor:
        """The part of `bands` that the strip sees: a view, (groups * W, self.rows * K, C/G)."""
        return bands[:, :, self.start : self.start + self.rows].flatten(2, 3).flatten(0, 1)


def _chunks(value: Tensor, logits: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Images, groups and their channels to work on at a time: (b, groups, channels)."""
    groups, size = logits.shape[1], _size(logits.shape[3])
    channels = value.shape[1] // groups
    band_bytes = value[0, :channels].numel() * size * value.element_size()
    step = max(1, BAND_BYTES // band_bytes)
    for b in range(value.shape[0]):
        for first in range(0, groups, step):
            last = min(first + step, groups)
            yield b, slice(first, last), slice(first * channels, last * channels)


def _strips_forward(value: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
    height, width = value.shape[2:]
    groups, size = logits.shape[1], _size(logits.shape[3])
    output = torch.empty_like(value)
    for b, g, c in _chunks(value, logits):
        n = g.stop - g.start
        bands = _bands(value[b, c].unflatten(0, (n, -1)).permute(0, 2, 3, 1).contiguous(), size)
        target = output[b, c].unflatten(0, (n, -1)).permute(0, 3, 2, 1)  # (n, W, H, C/G)
        rows = logits[b, g].unflatten(1, (height, width))
        row_bias = None if bias is None else _row_bias(bias[g], size, height)
        for top in range(0, height, STRIP_ROWS):
            strip = _Strip(top, height, size)
            kernel = _strip_softmax(rows, row_bias, strip).to(value.dtype)
            product = torch.bmm(strip.banded(kernel, size), strip.windows(bands))
            target[:, :, strip.top : strip.bottom] = product.unflatten(0, (n, width))
    return output


def _row_bias(bias: Tensor, size: int, height: int) -> Tensor:
    bias = bias.to(torch.promote_types(bias.dtype, torch.float32))
    return _spread(_bias_windows(bias, size), 1, height)


def _strip_softmax(rows: Tensor, row_bias: Tensor | None, strip: _Strip) -> Tensor:
    logits = rows[:, strip.top : strip.bottom]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if row_bias is not None:
        logits = logits + _spread(row_bias[:, strip.top : strip.bottom], 2, rows.shape[2])
    return logits.softmax(-1, dtype=dtype)


def _strips_backward(
    grad: Tensor, value: Tensor, logits: Tensor, bias: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = value.shape[2:]
    groups, size = logits.shape[1], _size(logits.shape[3])
    want_value, want_kernel = wanted[0], wanted[1] or wanted[2]
    value_grad = torch.empty(value.shape if wanted[0] else (0,), dtype=value.dtype, device=value.device)
    logits_grad = torch.empty(logits.shape if wanted[1] else (0,), dtype=logits.dtype, device=logits.device)
    bias_grad = None
    if wanted[2]:
        bias_grad = logits.new_zeros(groups, height, size, size * size, dtype=torch.promote_types(logits.dtype, torch.float32))
    for b, g, c in _chunks(value, logits):
        n = g.stop - g.start
        bands = _bands(value[b, c].unflatten(0, (n, -1)).permute(0, 2, 3, 1).contiguous(), size)
        bands_grad = torch.zeros_like(bands) if want_value else None
        source = grad[b, c].unflatten(0, (n, -1)).permute(0, 3, 2, 1)
        rows = logits[b, g].unflatten(1, (height, width))
        row_bias = None if bias is None else _row_bias(bias[g], size, height)
        for top in range(0, height, STRIP_ROWS):
            strip = _Strip(top, height, size)
            kernel = _strip_softmax(rows, row_bias, strip)
            pixels = source[:, :, strip.top : strip.bottom].reshape(n * width, -1, source.shape[3])
            if bands_grad is not None:
                banded = strip.banded(kernel.to(value.dtype), size)
                strip.windows(bands_grad).baddbmm_(banded.mT, pixels)
            if want_kernel:
                banded = torch.bmm(pixels, strip.windows(bands).mT)
                kernel_grad = strip.kernels(banded, width).to(kernel.dtype)
                part = torch.ops.aten._softmax_backward_data(kernel_grad, kernel, -1, kernel.dtype)
                if wanted[1]:
                    logits_grad[b, g].unflatten(1, (height, width))[:, strip.top : strip.bottom] = part
                if bias_grad is not None:
                    bias_grad[g, strip.top : strip.bottom] += _gathered(part, 2, size)
        if bands_grad is not None:
            value_grad[b, c].unflatten(0, (n, -1)).copy_(_value_from_bands(bands_grad).permute(0, 3, 1, 2))
    if bias_grad is not None and bias is not None:
        bias_grad = _bias_from_windows(_gathered(bias_grad, 1, size)).to(bias.dtype)
    return value_grad, logits_grad, logits.new_empty(0) if bias_grad is None else bias_grad
