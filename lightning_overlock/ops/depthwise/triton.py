"""Triton kernels of `ops.depthwise`: all branches of a large depthwise convolution at once.

Imported by `ops.depthwise` when they are asked for, since Triton is not installed everywhere. Maps
are dense NCHW or channels_last, sums are float32. Nothing is added atomically, so that the same
inputs give the same bits.
"""

# ruff: noqa: ANN001, ANN202  Triton reads a kernel's annotations: constexpr or none.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program of `_correlate` makes so many neighbouring rows of outputs. With dilation 1, each input
# that it loads serves all of them.
ROWS = 4
# A program of `_weight_gradient` sums so many taps at a time, in so many parts of all pixels; the
# parts are then added.
TAPS = 8
PARTS = 32


def correlate(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None
) -> list[Tensor]:
    """Forward of `ops.depthwise`: one launch for all kernels.

    Args:
        x: (B, C, H, W), dense in NCHW or channels_last.
        weights: (C, 1, k, k) each.
        dilations: Pixels between the taps, one number per kernel.
        bias: (C,), added to the first output.

    Returns:
        (B, C, H, W) for each kernel, in the dtype and memory format of x.
    """
    outputs = [torch.empty_like(x) for _ in weights]
    _launch([x] * len(weights), outputs, weights, dilations, bias)
    return outputs


def input_gradient(
    grads: Sequence[Tensor], weights: Sequence[Tensor], dilations: Sequence[int]
) -> Tensor:
    """Gradient of `correlate`'s x, summed over the kernels on chip.

    Args:
        grads: (B, C, H, W) of each output, dense in one memory format.
        weights: (C, 1, k, k) each.
        dilations: Pixels between the taps, one number per kernel.
    """
    total = torch.empty_like(grads[0])
    _launch(grads, [total], [weight.flip(2, 3) for weight in weights], dilations, None)
    return total


def weight_gradients(
    x: Tensor, grads: Sequence[Tensor], weights: Sequence[Tensor], dilations: Sequence[int]
) -> list[Tensor]:
    """Gradient of each of `correlate`'s weights, in their shapes and dtypes.

    Args:
        x: (B, C, H, W), dense in NCHW or channels_last.
        grads: (B, C, H, W) of each output, in the memory format of x.
        weights: (C, 1, k, k) each.
        dilations: Pixels between the taps, one number per kernel.
    """
    batch, channels, height, width = x.shape
    sizes = [weight.shape[-1] for weight in weights]
    channels_last, block, warps = _channel_block(x)
    pixels = 8 if channels_last else 64
    tiles = batch * triton.cdiv(height * width, pixels)
    tiles_of_part = triton.cdiv(tiles, PARTS)
    parts = triton.cdiv(tiles, tiles_of_part)
    sums = x.new_empty((parts, sum(k * k for k in sizes), channels), dtype=torch.float32)
    groups = sum(triton.cdiv(k * k, TAPS) for k in sizes)
    with torch.cuda.device_of(x):
        _weight_gradient[(groups, triton.cdiv(channels, block), parts)](
            x,
            tuple(grads),
            sums,
            channels,
            height,
            width,
            tiles,
            tiles_of_part,
            SIZES=tuple(sizes),
            DILATIONS=tuple(dilations),
            ALL_TAPS=sums.shape[1],
            CHANNELS_LAST=channels_last,
            TAPS=TAPS,
            PIXELS=pixels,
            CHANNELS=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    by_kernel = sums.sum(0).split([k * k for k in sizes])
    return [
        torch.empty_like(weight).copy_(taps.T.view(weight.shape))
        for taps, weight in zip(by_kernel, weights, strict=True)
    ]


def _launch(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor],
    dilations: Sequence[int],
    bias: Tensor | None,
) -> None:
    x = sources[0]
    batch, channels, height, width = x.shape
    channels_last, block, warps = _channel_block(x)
    columns = 8 if channels_last else min(64, triton.next_power_of_2(width))
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, columns)
    # Neighbouring channels of a tap lie side by side, as they do in a channels_last map.
    packed = torch.cat([weight.flatten(1).T for weight in weights])
    with torch.cuda.device_of(x):
        _correlate[(batch * tiles, triton.cdiv(channels, block))](
            tuple(sources),
            tuple(targets),
            packed,
            bias,
            channels,
            height,
            width,
            SIZES=tuple(weight.shape[-1] for weight in weights),
            DILATIONS=tuple(dilations),
            SUM=len(targets) < len(sources),
            CHANNELS_LAST=channels_last,
            ROWS=ROWS,
            COLUMNS=columns,
            CHANNELS=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )


def _channel_block(x: Tensor) -> tuple[bool, int, int]:
    """Whether x is channels_last, channels and warps of a program.

    A lane has a channel (of NCHW: a column), so that a thread keeps its sums in registers and
    nothing passes through shared memory.
    """
    if x.is_contiguous():
        return False, 1, 1
    block = 64 if x.shape[1] > 32 else 32
    return True, block, block // 32


@triton.jit
def _correlate(
    sources,
    targets,
    weights,
    bias,
    channels,
    height,
    width,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    SUM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Correlate one tile of each source with its kernel.

    There is one source (B, C, H, W) per kernel, and one target, or a single one with SUM. The
    weights are (taps of all kernels, C), the bias is (C,), for the first target, or None.
    """
    columns = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * columns
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64) * channels * height * width
    top = tile // columns * ROWS
    column = tile % columns * COLUMNS + tl.arange(0, COLUMNS)[None, :, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    step_channel = 1 if CHANNELS_LAST else height * width
    step = channels if CHANNELS_LAST else 1
    here = image + channel * step_channel
    row = top + tl.arange(0, ROWS)[:, None, None]
    inside = (row < height) & (column < width) & (channel < channels)
    start = 0
    total = tl.zeros((ROWS, COLUMNS, CHANNELS), tl.float32)
    for index in tl.static_range(len(SIZES)):
        source = sources[index] + here
        taps = weights + start * channels + channel
        total += _kernel_sum(
            source,
            taps,
            top,
            column,
            channel < channels,
            channels,
            height,
            width,
            step,
            SIZES[index],
            DILATIONS[index],
            ROWS,
        )
        start += SIZES[index] * SIZES[index]
        if not SUM or index == len(SIZES) - 1:
            if bias is not None and index == 0:
                total += tl.load(bias + channel, channel < channels, 0).to(tl.float32)
            target = targets[0 if SUM else index] + here + (row * width + column) * step
            tl.store(target, total.to(target.dtype.element_ty), inside)
            total = tl.zeros((ROWS, COLUMNS, CHANNELS), tl.float32)


@triton.jit
def _kernel_sum(
    source,
    taps,
    top,
    column,
    on_channel,
    channels,
    height,
    width,
    step,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One kernel over ROWS rows from `top` on: float32, (ROWS, columns, channels) or broadcast."""
    # With dilation 1 one input row is loaded at a time and belongs to a different kernel row for
    # each output row; otherwise each output row loads the input row of one kernel row.
    LOADED: tl.constexpr = 1 if DILATION == 1 else ROWS
    SHARED: tl.constexpr = ROWS if DILATION == 1 else 1
    total = tl.zeros((ROWS, column.shape[1], on_channel.shape[2]), tl.float32)
    for r in range(SIZE + SHARED - 1):
        y = top + tl.arange(0, LOADED)[:, None, None] + (r - SIZE // 2) * DILATION
        tap_row = r - tl.arange(0, SHARED)[:, None, None]
        on_map = (y >= 0) & (y < height) & on_channel
        on_kernel = (tap_row >= 0) & (tap_row < SIZE) & on_channel
        for c in range(SIZE):
            x = column + (c - SIZE // 2) * DILATION
            inside = on_map & (x >= 0) & (x < width)
            value = tl.load(source + (y * width + x) * step, inside, 0)
            weight = tl.load(taps + (tap_row * SIZE + c) * channels, on_kernel, 0)
            total += value.to(tl.float32) * weight.to(tl.float32)
    return total


@triton.jit
def _weight_gradient(
    x,
    grads,
    parts,
    channels,
    height,
    width,
    tiles,
    tiles_of_part,
    SIZES: tl.constexpr,
    DILATIONS: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Gradient of some taps of one kernel over a part of the pixels of all images.

    x and the gradient of each kernel's output are (B, C, H, W). Written are the parts, (parts,
    ALL_TAPS, C). All images have `tiles` tiles of PIXELS pixels, a part `tiles_of_part` of them.
    """
    group = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    part = tl.program_id(2)
    step_channel = 1 if CHANNELS_LAST else height * width
    step = channels if CHANNELS_LAST else 1
    tiles_of_image = tl.cdiv(height * width, PIXELS)
    start = 0
    first = 0
    for index in tl.static_range(len(SIZES)):
        last = first + tl.cdiv(SIZES[index] * SIZES[index], TAPS)
        if (group >= first) & (group < last):
            tap = (group - first) * TAPS + tl.arange(0, TAPS)[:, None, None]
            down = (tap // SIZES[index] - SIZES[index] // 2) * DILATIONS[index]
            right = (tap % SIZES[index] - SIZES[index] // 2) * DILATIONS[index]
            total = tl.zeros((TAPS, PIXELS, CHANNELS), tl.float32)
            for tile in range(part * tiles_of_part, min((part + 1) * tiles_of_part, tiles)):
                pixel = tile % tiles_of_image * PIXELS + tl.arange(0, PIXELS)[None, :, None]
                row = pixel // width
                column = pixel % width
                image = (tile // tiles_of_image).to(tl.int64) * channels * height * width
                here = image + channel * step_channel + pixel * step
                inside = (row < height) & (channel < channels)
                grad = tl.load(grads[index] + here, inside, 0).to(tl.float32)
                on_map = (row + down >= 0) & (row + down < height)
                on_map &= (column + right >= 0) & (column + right < width)
                value = tl.load(x + here + (down * width + right) * step, inside & on_map, 0)
                total += grad * value.to(tl.float32)
            target = parts + (part * ALL_TAPS + start + tap) * channels + channel
            on_kernel = (tap < SIZES[index] * SIZES[index]) & (channel < channels)
            tl.store(target, tl.sum(total, 1, keep_dims=True), on_kernel)
        start += SIZES[index] * SIZES[index]
        first = last
