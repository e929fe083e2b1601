"""ContMix as matrix products, block by block: a small map as a whole, a large one in strips.

The backward pass recomputes softmax and windows; nothing of the size of a map of windows is kept.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from lightning_overlock.ops.contmix.logits import Logits, grouped, softmax, unflatten
from lightning_overlock.ops.contmix.windows import side, sum_offsets, window_index

# "auto" takes the dense product up to this many pixels, or times the window's own. Measured on a
# CPU in float32: both are equally fast at about 15x15 (K 5), 17x17 (K 7) and 21x21 (K 13).
DENSE_PIXELS = 256
DENSE_WINDOWS = 2.5
# Pixel rows of a strip: more of them make larger products with more zeros in them.
STRIP_ROWS = 4
# What a block of images and groups may take: near the cache on a CPU, and of a size that malloc
# has at hand; enough to fill a GPU.
BLOCK_BYTES = 4 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20


def forward(value: Tensor, logits: Logits, backend: str) -> Tensor:
    """Return the mixed values (B, C, H, W) of one kernel size, "dense" or in "strips"."""
    groups = logits.groups
    parts = parts_of(value, side(logits.taps), backend)
    output = torch.empty_like(value)
    for block in blocks_of(value, groups, parts[0].source_numbers(value.shape[1] // groups)):
        source = parts[0].source(grouped(value, groups)[block].flatten(0, 1))
        target = grouped(output, groups)[block]
        for part in parts:
            kernel = softmax(logits.rows(block, part.rows)).to(value.dtype)
            product = torch.bmm(part.matrix(kernel.flatten(0, 1)), part.windows(source))
            target[:, :, part.rows] = part.image(product).view_as(target[:, :, part.rows])
    return output


def backward(
    grad: Tensor,
    value: Tensor,
    logits: Logits,
    backend: str,
    value_grad: Tensor | None,
    want_logits: bool,
    want_bias: bool,
) -> Tensor | None:
    """Fill `value_grad`, hand the logits' gradient to `logits`, return that of the bias rows."""
    groups = logits.groups
    size = side(logits.taps)
    parts = parts_of(value, size, backend)
    bias_rows_grad = None
    if want_bias:
        assert logits.bias is not None
        bias = logits.bias.rows
        wide = torch.promote_types(bias.dtype, torch.float32)
        bias_rows_grad = torch.zeros(bias.shape, dtype=wide, device=bias.device)
    for block in blocks_of(value, groups, parts[0].source_numbers(value.shape[1] // groups)):
        source = parts[0].source(grouped(value, groups)[block].flatten(0, 1))
        block_grad = grouped(grad, groups)[block].flatten(0, 1)
        if value_grad is not None:
            # Windows overlap: their gradients are added in float32 or wider.
            wide = torch.promote_types(value.dtype, torch.float32)
            source_grad = torch.zeros_like(source, dtype=wide)
        for part in parts:
            kernel = softmax(logits.rows(block, part.rows))
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
            target = grouped(value_grad, groups)[block]
            target.copy_(parts[0].value(source_grad).view_as(target))
    return bias_rows_grad


def form_by_size(height: int, width: int, size: int) -> str:
    """Return what "auto" means for a map without a measurement, "dense" or "strips"."""
    limit = max(DENSE_PIXELS, DENSE_WINDOWS * size * size)
    return "dense" if height * width <= limit else "strips"


def parts_of(value: Tensor, size: int, backend: str) -> "list[WholeMap] | list[Strip]":
    """What a map is worked on in: as a whole, or in strips of a few rows."""
    height, width = value.shape[2:]
    if backend == "auto":
        backend = form_by_size(height, width, size)
    if backend == "dense":
        return [WholeMap(height, width, size)]
    return Strip.cover(height, width, size)


def blocks_of(value: Tensor, groups: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Images and groups to work on at a time, where each group of an image takes `numbers`."""
    limit = BLOCK_BYTES if value.device.type == "cpu" else DEVICE_BLOCK_BYTES
    count = max(1, limit // (numbers * value.element_size()))
    images, some = max(1, count // groups), min(groups, count)
    images = math.ceil(value.shape[0] / math.ceil(value.shape[0] / images))  # equal shares
    for b in range(0, value.shape[0], images):
        for g in range(0, groups, some):
            yield slice(b, b + images), slice(g, min(g + some, groups))


class Matrices:
    """Matrices of zeros that kernels are written into, again and again at the same places."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Tensor] = {}

    def __call__(self, kernel: Tensor, count: int, rows: int, columns: int) -> Tensor:
        """(count, rows, columns) of the kernel's dtype; what no kernel is written to stays zero."""
        kept = self.kept.get((rows, columns))
        if kept is None or kept.shape[0] < count:
            kept = self.kept[rows, columns] = kernel.new_zeros(count, rows, columns)
        return kept[:count]


class WholeMap:
    """The whole map: kernels are rows of an (H*W, H*W) matrix, mostly full on small maps."""

    def __init__(self, height: int, width: int, size: int) -> None:
        self.height, self.width, self.size = height, width, size
        self.pixel_count = height * width
        self.rows = slice(0, height)
        self._matrices = Matrices()

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
        index = window_index(self.height, self.width, self.size, kernel.device)
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


class Strip:
    """A few rows of pixels, for maps of which a window is a small part.

    The source holds, for each column of pixels, the K columns of their windows as one block:
    (n, W, H, K, C/G). A window is then K*K neighbouring rows of an (H*K, C/G) matrix, and so is
    what the windows of the strip's pixels in this column cover together. Their kernels, each
    shifted by K taps from the one above, are the rows of a small banded matrix, and the strip is
    one batched product over groups and columns. Nothing is gathered.
    """

    def __init__(self, rows: slice, height: int, width: int, size: int, matrices: Matrices) -> None:
        self.rows, self.height, self.width, self.size = rows, height, width, size
        self._matrices = matrices
        self.start = min(max(rows.start - size // 2, 0), height - size)
        self.stop = min(max(rows.stop - 1 - size // 2, 0), height - size) + size
        self.covered = (self.stop - self.start) * size

    @classmethod
    def cover(cls, height: int, width: int, size: int) -> "list[Strip]":
        """Strips whose windows all start at the same row, or each a row below the one before."""
        first, last = size // 2 + 1, height - size // 2 - 1
        cuts = [0, *range(first, last, STRIP_ROWS), last, height] if first <= last else [0, height]
        matrices = Matrices()
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
        return unflatten(pixels, 0, -1, self.width).transpose(1, 2)

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
