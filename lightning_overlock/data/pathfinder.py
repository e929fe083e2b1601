"""Mini-pathfinder: are the two dots on one dashed path or on two?"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.base import Split
from lightning_overlock.data.combinations import Need, Options, warn_of_unused
from lightning_overlock.data.drawn import Draw, Drawn, DrawnDataModule
from lightning_overlock.errors import InputError
from lightning_overlock.ranges import Range, check_range

# Pixels from the centre of a dash to that of the next one, and the length of a dash.
STEP = 4.6
DASH = 3.2
# No point of a path lies nearer to the edge than this, nor to another path than GAP.
MARGIN = 3.0
GAP = 5.0
TRIES = 12
# Two dashes are shorter than GAP: no second path could keep apart.
SHORTEST = 3
DASH_INK, DOT_INK = 200, 255


def _paths(
    random: np.random.Generator, count: int, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw smooth paths of `length` dashes that start at the origin.

    Returns:
        Centres (count, length, 2) as (row, column) and directions (count, length) in radians.
    """
    direction = random.uniform(0, 2 * np.pi, size=(count, 1))
    turns = random.uniform(-0.35, 0.35, size=(count, 1)) + random.uniform(
        -0.15, 0.15, size=(count, length - 1)
    )
    directions = np.cumsum(np.concatenate([direction, turns], axis=1), axis=1)
    steps = STEP * np.stack([np.sin(directions), np.cos(directions)], axis=-1)[:, 1:]
    return np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0), (0, 0))), directions


def _place(
    random: np.random.Generator, points: NDArray[np.float64], side: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Move points (N, P, 2) to anywhere they fit on the canvas; returns also which of N fit."""
    least, most = points.min(axis=1), points.max(axis=1)
    room = side - 1 - 2 * MARGIN - (most - least)
    corner = MARGIN + random.uniform(size=room.shape) * room
    return points + (corner - least)[:, None], (room >= 0).all(axis=1)


def _apart(
    first: NDArray[np.float64], second: NDArray[np.float64], gap: float
) -> NDArray[np.bool_]:
    """Return whether no dash of the one lies within `gap` pixels of one of the other, (N,)."""
    between = first[:, :, None] - second[:, None]
    return ((between**2).sum(-1) >= gap**2).all(axis=(1, 2))


def _pairs(
    random: np.random.Generator, count: int, side: int, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw pairs of paths that keep apart.

    The second path starts where a path like the first one, from the same start, might have ended.
    So the distance between the ends of the first is distributed as that from its start to the
    second's: how far the dots are apart says next to nothing about the label.

    Returns:
        Centres (count, 2, length, 2) and directions (count, 2, length).
    """
    centres = np.zeros((0, 2 * length, 2))
    directions = np.zeros((0, 2, length))
    while len(centres) < count:
        first, elsewhere, second = (_paths(random, TRIES * count, length) for _ in range(3))
        second_centres = second[0] + elsewhere[0][:, -1:]
        keep = _apart(first[0], second_centres, GAP)
        both = np.concatenate([first[0], second_centres], axis=1)[keep]
        turned = np.stack([first[1], second[1]], axis=1)[keep]
        both, fits = _place(random, both, side)
        centres = np.concatenate([centres, both[fits]])
        directions = np.concatenate([directions, turned[fits]])
    return centres[:count].reshape(count, 2, length, 2), directions[:count]


def _distractors(
    random: np.random.Generator, paths: NDArray[np.float64], side: int, length: int, wanted: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Draw short paths that keep away from the two that count.

    Returns:
        Centres (N, wanted, length, 2), directions (N, wanted, length), and which of them are there
        (N, wanted): where there is no room there are fewer.
    """
    count = len(paths)
    centres, directions = _paths(random, count * wanted * 3, length)
    centres, fits = _place(random, centres, side)
    long = np.repeat(paths.reshape(count, -1, 2), wanted * 3, axis=0)
    good = (fits & _apart(centres, long, GAP - 1)).reshape(count, wanted, 3)
    # The first of three tries that is good
    chosen = good.argmax(axis=2)[:, :, None, None]
    centres = centres.reshape(count, wanted, 3, length, 2)
    directions = directions.reshape(count, wanted, 3, length)
    return (
        np.take_along_axis(centres, chosen[..., None], axis=2)[:, :, 0],
        np.take_along_axis(directions, chosen, axis=2)[:, :, 0],
        np.asarray(good.any(axis=2)),
    )


def _ink(
    canvases: NDArray[np.uint8],
    number: NDArray[np.int64],
    centres: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> None:
    """Draw dashes, all at once: (M,) numbers of canvases, (M, 2) centres, (M,) directions."""
    along = np.linspace(-DASH / 2, DASH / 2, 7)[:, None]
    slope = np.stack([np.sin(directions), np.cos(directions)], axis=-1)
    points = np.rint(centres[:, None] + along * slope[:, None]).astype(np.int64)
    points = points.clip(0, canvases.shape[1] - 1)
    canvases[number[:, None], points[..., 0], points[..., 1]] = DASH_INK


def draw(
    random: np.random.Generator, count: int, side: int, length: int, distractors: int
) -> Drawn:
    """Draw a block of canvases; the arguments are those of `PathfinderDataModule`.

    Facts: "length", the dashes of a path.
    """
    canvases = np.zeros((count, side, side), np.uint8)
    centres, directions = _pairs(random, count, side, length)
    numbers = np.arange(count)
    _ink(
        canvases,
        np.repeat(numbers, 2 * length),
        centres.reshape(-1, 2),
        directions.reshape(-1),
    )
    if distractors:
        short = max(1, length // 2)
        others, turned, there = _distractors(random, centres, side, short, distractors)
        number = np.broadcast_to(numbers[:, None, None], turned.shape)[there].reshape(-1)
        _ink(canvases, number, others[there].reshape(-1, 2), turned[there].reshape(-1))
    labels = random.integers(2, size=count)
    # On one path: both ends of the first. On two: the first's start and the second's.
    ends = np.where(labels[:, None], centres[:, 0, -1], centres[:, 1, 0])
    for dot in (centres[:, 0, 0], ends):
        corner = np.rint(dot).astype(np.int64)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                canvases[numbers, corner[:, 0] + down, corner[:, 1] + right] = DOT_INK
    return Drawn(canvases[:, None], labels, {"length": np.full(count, length)})


def _differs(options: Options) -> bool:
    return set(options["curriculum"] or ()) != {options["length"]}


class PathfinderDataModule(DrawnDataModule):
    """Two dashed paths among shorter ones and two dots: on the same path (1) or on two (0).

    After Linsley et al. 2018 (arXiv 1805.08315), small. A path is a smooth chain of `length`
    dashes; one dot lies on the first path's start, the other on its other end or on the start of
    the second, which is about as far away. The dots' neighbourhoods and their distance say nothing
    about the label: only following the path does. Validation and test images are the same whatever
    the seed.

    Args:
        batch_size: Images per process and step.
        image_size: Side of the canvas in pixels.
        length: Number of dashes of a path.
        distractors: Number of shorter paths, half as long; where there is no room there are fewer.
        curriculum: `length` in the first training epochs, one number each, for example [3, 4].
        train_images: Training images per epoch.
        eval_images: Validation images, and as many test images.
        fresh: Whether to draw new training images in every epoch, without end; False repeats the
            same.
        num_workers: Processes that draw images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    needs: ClassVar[dict[str, Need]] = {"curriculum": ("another number than length", _differs)}
    training_options = DrawnDataModule.training_options | {"curriculum"}
    title = "pathfinder"
    mean, std = 0.031, 0.158

    def __init__(
        self,
        batch_size: int = 64,
        image_size: int = 48,
        length: int = 6,
        distractors: int = 2,
        curriculum: list[int] | None = None,
        train_images: int = 6400,
        eval_images: int = 1000,
        fresh: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, train_images, eval_images, fresh, num_workers)
        self.class_names = ["two paths", "one path"]
        check_range("data.image_size", image_size, Range(32, 512))
        # A path that turns as much as it can fits in any case.
        longest = image_size // 4
        check_range("data.length", length, Range(SHORTEST, longest))
        check_range("data.distractors", distractors, Range(0, 32))
        for number, value in enumerate(curriculum or []):
            check_range(f"data.curriculum[{number}]", value, Range(SHORTEST, longest))
        if curriculum and not fresh:
            raise InputError(
                "data.curriculum needs new images in every epoch, found data.fresh false\n"
                "expected data.fresh true, or no curriculum"
            )
        options = {"length": length, "curriculum": curriculum}
        warn_of_unused("data", type(self), options, self.needs)
        self.image_size = image_size
        self.length = length
        self.distractors = distractors
        self.curriculum = curriculum or []

    def draws(self, split: Split) -> Draw:
        """Return what draws the images of a split."""
        lengths = self.curriculum if split == "train" else []

        def drawn(random: np.random.Generator, count: int, epoch: int) -> Drawn:
            length = lengths[epoch] if epoch < len(lengths) else self.length
            return draw(random, count, self.image_size, length, self.distractors)

        return drawn
