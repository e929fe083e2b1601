"""Kernels of the fused ContMix: logits and softmaxes stay on the chip.

A program works on a tile of pixels, (Y, X), of one image and group, and on one row of taps at a
time. For a row of pixels these taps lie in one row of the map. Their logits are a small product of
queries and tap_weights; the map's row enters by a second product. Between the two, the taps of each
pixel are shifted to the columns of the map that they weigh. So both are matrix products, and
nothing of the size of the kernels reaches memory.

The backward makes the softmax again from the one number per pixel that the forward keeps. The
gradient of the values is gathered by the positions of the map. Sums over pixels are kept per tile
and added up afterwards. No atomics: the same bits in every run.

Products take the types of their inputs and add in float32; those of float32 are exact, not TF32.
Axes in shapes: Y and X are the rows and columns of a tile, N a row of taps or of the map.
"""

# ruff: noqa: ANN001, ANN201, ANN202, D103  Triton reads a kernel's annotations: constexpr or none.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

COLUMNS = tl.constexpr(16)


@triton.jit
def _start(pixel, length, SIZE: tl.constexpr):
    """First row (or column) of a pixel's window."""
    return tl.minimum(tl.maximum(pixel - SIZE // 2, 0), length - SIZE)


@triton.jit
def _tile(height, width, ROWS: tl.constexpr):
    """The program's head (group of an image), tile, rows (Y,) and columns (X,)."""
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    tile = tl.program_id(0) % tiles
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % across * COLUMNS + tl.arange(0, COLUMNS)
    return tl.program_id(0) // tiles, tile, row, column


@triton.jit
def _channels(
    tensor, stride, head, groups, row, column, there, WIDTH: tl.constexpr, N: tl.constexpr
):
    """Addresses of a head's channels, (Y, X, N), and which of them are real."""
    n = tl.arange(0, N)
    # Inside an image 32 bits are enough.
    base = tensor + (head // groups).to(tl.int64) * stride[0]
    channel = (head % groups * WIDTH + n) * stride[1]
    place = (row * stride[2])[:, None] + (column * stride[3])[None, :]
    address = base + (place[:, :, None] + channel[None, None, :])
    return address, there[:, :, None] & (n < WIDTH)[None, None, :]


@triton.jit
def _load(
    tensor,
    stride,
    head,
    groups,
    row,
    column,
    there,
    WIDTH: tl.constexpr,
    N: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Load a head's channels, (Y, X, N); zero where `there`, (1 or Y, X), is not."""
    address, mask = _channels(tensor, stride, head, groups, row, column, there, WIDTH, N)
    return tl.load(address, mask=mask, other=0).to(DTYPE)


@triton.jit
def _store(tensor, stride, head, groups, row, column, there, WIDTH: tl.constexpr, numbers):
    """Store (Y, X, N) to a head's channels where `there`, (Y, X)."""
    address, mask = _channels(
        tensor, stride, head, groups, row, column, there, WIDTH, numbers.shape[2]
    )
    tl.store(address, numbers, mask=mask)


@triton.jit
def _tap_weights(
    tensor,
    stride,
    head,
    groups,
    tap_row,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Load rows of taps, (R, D, TAPS), for `tap_row` (R,)."""
    d = tl.arange(0, D)
    tap = tl.arange(0, TAPS)
    base = tensor + (head // groups).to(tl.int64) * stride[0] + head % groups * stride[1]
    number = (tap_row * SIZE)[:, None, None] + tap[None, None, :]
    mask = ((d < WIDTH)[:, None] & (tap < SIZE)[None, :])[None, :, :]
    return tl.load(base + number * stride[3] + (d * stride[2])[None, :, None], mask=mask, other=0)


@triton.jit
def _logits(
    products,
    tap_bias,
    table,
    group,
    tap_row,
    row,
    column,
    there,
    height,
    width,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Add the biases to a row of taps, (Y, X, TAPS); minus infinity where there is no tap.

    `tap_row` is one for all rows of pixels, (1,), or one for each, (Y,).
    """
    tap = tl.arange(0, TAPS)
    if tap_bias is not None:
        number = (tap_row * SIZE)[:, None] + tap[None, :]
        bias = tl.load(tap_bias + number, mask=(tap < SIZE)[None, :], other=0)
        products += bias.to(tl.float32)[:, None, :]
    if table is not None:
        LENGTH: tl.constexpr = 2 * SIZE - 1
        table_row = _start(row, height, SIZE) - row + SIZE - 1 + tap_row
        table_column = (_start(column, width, SIZE) - column + SIZE - 1)[:, None] + tap[None, :]
        place = ((group * LENGTH + table_row) * LENGTH)[:, None, None] + table_column[None, :, :]
        mask = there[:, :, None] & (tap < SIZE)[None, None, :]
        products += tl.load(table + place, mask=mask, other=0).to(tl.float32)
    return tl.where((tap < SIZE)[None, None, :], products, -float("inf"))


@triton.jit
def _shift(source, shift, limit, LENGTH: tl.constexpr):
    """Read (A, B, N) at j + shift[a, b] for j < LENGTH; zero outside [0, limit)."""
    pixels: tl.constexpr = source.shape[0] * source.shape[1]
    place = tl.arange(0, LENGTH)[None, :] + tl.reshape(shift, (pixels,))[:, None]
    inside = (place >= 0) & (place < limit)
    source = tl.reshape(source, (pixels, source.shape[2]))
    read = tl.where(inside, tl.gather(source, tl.where(inside, place, 0), 1), 0.0)
    return tl.reshape(read, (shift.shape[0], shift.shape[1], LENGTH))


@triton.jit
def forward_kernel(
    value,
    value_stride,
    query,
    query_stride,
    tap_weights,
    tap_weights_stride,
    tap_bias,
    table,
    output,
    output_stride,
    log_sums,
    groups,
    height,
    width,
    SIZE: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERY_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    SPAN: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
):
    head, _, row, column = _tile(height, width, ROWS)
    there = (row < height)[:, None] & (column < width)[None, :]
    top = _start(row, height, SIZE)
    left = _start(column, width, SIZE)
    first = tl.min(left)
    source_column = first + tl.arange(0, SPAN)
    in_map = (source_column < width)[None, :]
    q = _load(query, query_stride, head, groups, row, column, there, QUERY_WIDTH, D, QUERY_DTYPE)
    q = tl.reshape(q, (ROWS * COLUMNS, D))
    to_map = tl.broadcast_to((first - left)[None, :], (ROWS, COLUMNS))
    largest = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    mixed = tl.zeros((ROWS, COLUMNS, C), tl.float32)
    for step in range(SIZE):
        tap_row = tl.full((1,), step, tl.int32)
        p = _tap_weights(
            tap_weights, tap_weights_stride, head, groups, tap_row, SIZE, QUERY_WIDTH, D, TAPS
        )
        p = tl.reshape(p.to(QUERY_DTYPE), (D, TAPS))
        products = tl.reshape(tl.dot(q, p, input_precision="ieee"), (ROWS, COLUMNS, TAPS))
        logits = _logits(
            products, tap_bias, table, head % groups, tap_row, row, column, there, height, width,
            SIZE, TAPS,
        )  # fmt: skip
        before = largest
        largest = tl.maximum(before, tl.max(logits, 2))
        weights = tl.exp(logits - largest[:, :, None])
        rescale = tl.exp(before - largest)
        total = total * rescale + tl.sum(weights, 2)
        weights = _shift(weights, to_map, SIZE, SPAN).to(VALUE_DTYPE)
        v = _load(
            value, value_stride, head, groups, top + step, source_column, in_map, VALUE_WIDTH, C,
            VALUE_DTYPE,
        )  # fmt: skip
        mixed = tl.dot(weights, v, mixed * rescale[:, :, None], input_precision="ieee")
    mixed = mixed / total[:, :, None]
    _store(output, output_stride, head, groups, row, column, there, VALUE_WIDTH, mixed)
    pixel = head.to(tl.int64) * height * width + ((row * width)[:, None] + column[None, :])
    tl.store(log_sums + pixel, largest + tl.log(total), mask=there)


@triton.jit
def backward_query_kernel(
    value,
    value_stride,
    query,
    query_stride,
    tap_weights,
    tap_weights_stride,
    tap_bias,
    table,
    output,
    output_stride,
    log_sums,
    grad,
    grad_stride,
    query_grad,
    query_grad_stride,
    tap_weights_parts,
    tap_bias_parts,
    table_parts,
    groups,
    height,
    width,
    SIZE: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERY_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    SPAN: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
):
    head, tile, row, column = _tile(height, width, ROWS)
    there = (row < height)[:, None] & (column < width)[None, :]
    top = _start(row, height, SIZE)
    left = _start(column, width, SIZE)
    first = tl.min(left)
    source_column = first + tl.arange(0, SPAN)
    in_map = (source_column < width)[None, :]
    tap = tl.arange(0, TAPS)
    d = tl.arange(0, D)
    across = tl.cdiv(width, COLUMNS)
    # Sums over pixels go to the program's own part.
    part = tl.program_id(0).to(tl.int64)
    q = _load(query, query_stride, head, groups, row, column, there, QUERY_WIDTH, D, QUERY_DTYPE)
    q = tl.reshape(q, (ROWS * COLUMNS, D))
    g = _load(grad, grad_stride, head, groups, row, column, there, VALUE_WIDTH, C, VALUE_DTYPE)
    mixed = _load(
        output, output_stride, head, groups, row, column, there, VALUE_WIDTH, C, tl.float32
    )
    # Over all taps: each weight times its gradient.
    mean = tl.sum(g.to(tl.float32) * mixed, 2)
    pixel = head.to(tl.int64) * height * width + ((row * width)[:, None] + column[None, :])
    log_sum = tl.load(log_sums + pixel, mask=there, other=float("inf"))
    from_map = tl.broadcast_to((left - first)[None, :], (ROWS, COLUMNS))
    to_table = tl.broadcast_to((column - left - SIZE + 1)[:, None], (COLUMNS, ROWS))
    q_grad = tl.zeros((ROWS * COLUMNS, D), tl.float32)
    for step in range(SIZE):
        tap_row = tl.full((1,), step, tl.int32)
        p = _tap_weights(
            tap_weights, tap_weights_stride, head, groups, tap_row, SIZE, QUERY_WIDTH, D, TAPS
        )
        p = tl.reshape(p.to(QUERY_DTYPE), (D, TAPS))
        products = tl.reshape(tl.dot(q, p, input_precision="ieee"), (ROWS, COLUMNS, TAPS))
        logits = _logits(
            products, tap_bias, table, head % groups, tap_row, row, column, there, height, width,
            SIZE, TAPS,
        )  # fmt: skip
        weights = tl.exp(logits - log_sum[:, :, None])
        v = _load(
            value, value_stride, head, groups, top + step, source_column, in_map, VALUE_WIDTH, C,
            VALUE_DTYPE,
        )  # fmt: skip
        weights_grad = tl.dot(g, tl.permute(v, (0, 2, 1)), input_precision="ieee")
        weights_grad = _shift(weights_grad, from_map, SPAN, TAPS)
        logits_grad = weights * (weights_grad - mean[:, :, None])
        if table is not None:
            # By relative column: shifted rows of taps fill 2K-1. Rows of pixels stay apart, they
            # belong to different rows of the table.
            LENGTH: tl.constexpr = 2 * SIZE - 1
            WIDE: tl.constexpr = TAPS if LENGTH <= TAPS else 2 * TAPS
            by_column = tl.permute(logits_grad, (1, 0, 2))
            sums = tl.sum(_shift(by_column, to_table, SIZE, WIDE), 0)
            place = (head * across + tile % across).to(tl.int64) * height + row
            place = (place * SIZE + step) * LENGTH
            j = tl.arange(0, WIDE)
            mask = (row < height)[:, None] & (j < LENGTH)[None, :]
            tl.store(table_parts + place[:, None] + j[None, :], sums, mask=mask)
        logits_grad = tl.reshape(logits_grad, (ROWS * COLUMNS, TAPS))
        number = step * SIZE + tap
        if tap_bias is not None:
            sums = tl.sum(logits_grad, 0)
            tl.store(tap_bias_parts + part * SIZE * SIZE + number, sums, mask=tap < SIZE)
        logits_grad = logits_grad.to(QUERY_DTYPE)
        q_grad = tl.dot(logits_grad, tl.trans(p), q_grad, input_precision="ieee")
        p_grad = tl.dot(tl.trans(q), logits_grad, input_precision="ieee")
        place = (part * QUERY_WIDTH + d)[:, None] * (SIZE * SIZE) + number[None, :]
        mask = (d < QUERY_WIDTH)[:, None] & (tap < SIZE)[None, :]
        tl.store(tap_weights_parts + place, p_grad, mask=mask)
    q_grad = tl.reshape(q_grad, (ROWS, COLUMNS, D))
    _store(query_grad, query_grad_stride, head, groups, row, column, there, QUERY_WIDTH, q_grad)


@triton.jit
def backward_value_kernel(
    query,
    query_stride,
    tap_weights,
    tap_weights_stride,
    tap_bias,
    table,
    log_sums,
    grad,
    grad_stride,
    value_grad,
    value_grad_stride,
    groups,
    height,
    width,
    SIZE: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERY_DTYPE: tl.constexpr,
    VALUE_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
    D: tl.constexpr,
    C: tl.constexpr,
):
    # The tile's rows and columns are positions of the map here; the loops go over the pixels
    # whose windows hold them.
    head, _, map_row, map_column = _tile(height, width, ROWS)
    known = tl.minimum(map_row, height - 1)
    first_row = tl.where(known < SIZE, 0, known - SIZE // 2)
    last_row = tl.where(known >= height - SIZE, height - 1, known + SIZE // 2)
    low = tl.min(map_column)
    high = tl.minimum(tl.max(map_column), width - 1)
    first_column = tl.where(low < SIZE, 0, low - SIZE // 2)
    last_column = tl.where(high >= width - SIZE, width - 1, high + SIZE // 2)
    v_grad = tl.zeros((ROWS, COLUMNS, C), tl.float32)
    for step in range(tl.max(last_row - first_row) + 1):
        row = tl.minimum(first_row + step, last_row)
        fresh = (first_row + step <= last_row)[:, None]
        tap_row = known - _start(row, height, SIZE)
        p = _tap_weights(
            tap_weights, tap_weights_stride, head, groups, tap_row, SIZE, QUERY_WIDTH, D, TAPS
        ).to(QUERY_DTYPE)
        for start in range(first_column, last_column + 1, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            there = fresh & (column < width)[None, :]
            q = _load(
                query, query_stride, head, groups, row, column, there, QUERY_WIDTH, D, QUERY_DTYPE
            )
            logits = _logits(
                tl.dot(q, p, input_precision="ieee"), tap_bias, table, head % groups, tap_row,
                row, column, there, height, width, SIZE, TAPS,
            )  # fmt: skip
            pixel = head.to(tl.int64) * height * width + ((row * width)[:, None] + column[None, :])
            log_sum = tl.load(log_sums + pixel, mask=there, other=float("inf"))
            weights = tl.exp(logits - log_sum[:, :, None])
            to_map = tl.broadcast_to((low - _start(column, width, SIZE))[None, :], (ROWS, COLUMNS))
            weights = _shift(weights, to_map, SIZE, COLUMNS)
            g = _load(
                grad, grad_stride, head, groups, row, column, there, VALUE_WIDTH, C, VALUE_DTYPE
            )
            weights = tl.permute(weights.to(VALUE_DTYPE), (0, 2, 1))
            v_grad = tl.dot(weights, g, v_grad, input_precision="ieee")
    in_map = (map_row < height)[:, None] & (map_column < width)[None, :]
    _store(
        value_grad,
        value_grad_stride,
        head,
        groups,
        map_row,
        map_column,
        in_map,
        VALUE_WIDTH,
        v_grad,
    )
