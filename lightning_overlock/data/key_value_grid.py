"""Key-value grid: patches that pair a shape with a colour, and a query for one of the pairs."""

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.base import Split
from lightning_overlock.data.drawn import Draw, Drawn, DrawnDataModule
from lightning_overlock.ranges import Range, check_range

# The upper half of a patch shows the key, the lower half the value.
PATCH = 4
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}
VALUES = np.array(list(COLOURS.values()), np.uint8)


def _shapes() -> NDArray[np.uint8]:
    """Return the keys' shapes, (14, PATCH // 2, PATCH) of 0 and 255, four pixels of ink each.

    They are the rows of a Hadamard matrix and their negatives, so that any two differ in at least
    four of eight pixels. The row without and the one with all pixels are left out.
    """
    matrix = np.ones((1, 1), np.int64)
    for _ in range(3):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rows = np.concatenate([matrix[1:], -matrix[1:]])
    return np.where(rows > 0, 255, 0).astype(np.uint8).reshape(-1, PATCH // 2, PATCH)


SHAPES = _shapes()


def draw(
    random: np.random.Generator,
    count: int,
    grid: int,
    keys: int,
    pairs: int,
    colours: int,
    repeats: int,
    copies: int,
    query_first: bool,
) -> Drawn:
    """Draw a block of grids; the arguments are those of `KeyValueGridDataModule`.

    Facts: "distance", patches in raster order from the pair that is asked for, the
    nearest of its repeats, to the first query.
    """
    rows = np.arange(count)
    cells = random.permuted(np.tile(np.arange(grid * (grid - 1)), (count, 1)), axis=1)
    cells = cells[:, : pairs * repeats].reshape(count, pairs, repeats)
    shapes = random.permuted(np.tile(np.arange(keys), (count, 1)), axis=1)[:, :pairs]
    # Every colour as often as every other, so that counting colours gives nothing away.
    values = random.permuted(np.tile(np.arange(pairs) % colours, (count, 1)), axis=1)
    values = (values + random.integers(colours, size=(count, 1))) % colours
    patches = np.zeros((count, grid**2, PATCH, PATCH, 3), np.uint8)
    shown = np.zeros((count, pairs, PATCH, PATCH, 3), np.uint8)
    shown[:, :, : PATCH // 2] = SHAPES[shapes][..., None]
    shown[:, :, PATCH // 2 :] = VALUES[values][:, :, None, None]
    patches[rows[:, None, None], cells] = shown[:, :, None]
    asked = random.integers(pairs, size=count)
    columns = random.permuted(np.tile(np.arange(grid), (count, 1)), axis=1)[:, :copies]
    queries = grid * (grid - 1) + columns
    query = SHAPES[shapes[rows, asked]][..., None]
    patches[rows[:, None], queries, : PATCH // 2] = query[:, None]
    distance = queries.min(axis=1) - cells[rows, asked].max(axis=1)
    if query_first:
        patches = patches[:, ::-1]
    canvases = patches.reshape(count, grid, grid, PATCH, PATCH, 3).transpose(0, 5, 1, 3, 2, 4)
    side = grid * PATCH
    return Drawn(
        canvases.reshape(count, 3, side, side), values[rows, asked], {"distance": distance}
    )


class KeyValueGridDataModule(DrawnDataModule):
    """Pairs of a shape and a colour on a grid, and a white shape that asks for its pair's colour.

    The grid's patches are 4x4 pixels. Each pair is one patch: the white shape in its upper half is
    the key, one of up to 14 of equal ink, the colour of its lower half the value. The query, a
    shape without a colour, lies in the last row, the pairs above it; the label is the colour that
    stands with the query's shape. Whoever does not find it knows nothing: the colours occur
    equally often where `pairs` is a multiple of `colours`. The symbols are the same in all splits,
    the images are not. Validation and test images are the same whatever the seed.

    Args:
        batch_size: Images per process and step.
        grid: Patches per side; 8 gives images of 32 pixels, 12 of 48.
        keys: How many shapes occur.
        pairs: Number of pairs in an image, of as many shapes.
        colours: How many colours occur, which are the classes.
        repeats: How often each pair stands on the grid.
        copies: How often the query stands in the last row; more of them teach faster.
        query_first: Whether to turn the grid round, so that the query comes before all pairs in the
            raster.
        train_images: Training images per epoch.
        eval_images: Validation images, and as many test images.
        fresh: Whether to draw new training images in every epoch, without end; False repeats the
            same.
        num_workers: Processes that draw images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    title = "key-value grid"
    mean, std = 0.043, 0.204

    def __init__(
        self,
        batch_size: int = 64,
        grid: int = 12,
        keys: int = 12,
        pairs: int = 12,
        colours: int = 6,
        repeats: int = 1,
        copies: int = 1,
        query_first: bool = False,
        train_images: int = 6400,
        eval_images: int = 1000,
        fresh: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, train_images, eval_images, fresh, num_workers)
        check_range("data.colours", colours, Range(2, len(COLOURS)))
        self.colours = colours
        self.class_names = list(COLOURS)[:colours]
        check_range("data.grid", grid, Range(2, 64))
        check_range("data.keys", keys, Range(2, len(SHAPES)))
        check_range("data.pairs", pairs, Range(2, min(keys, grid * (grid - 1))))
        self.grid = grid
        self.keys = keys
        self.pairs = pairs
        check_range("data.repeats", repeats, Range(1, grid * (grid - 1) // pairs))
        check_range("data.copies", copies, Range(1, grid))
        self.repeats = repeats
        self.copies = copies
        self.query_first = query_first

    def draws(self, split: Split) -> Draw:  # noqa: ARG002 - the symbols are the same in all
        """Return what draws the images of a split."""

        def drawn(random: np.random.Generator, count: int, epoch: int) -> Drawn:  # noqa: ARG001
            return draw(
                random,
                count,
                self.grid,
                self.keys,
                self.pairs,
                self.colours,
                self.repeats,
                self.copies,
                self.query_first,
            )

        return drawn
