"""Cued clutter: digits amid debris; most of the strokes between them say which one counts."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_overlock.data.base import Split
from lightning_overlock.data.digits import CLASS_NAMES, DigitSplit, digits_of, resize_digits
from lightning_overlock.data.drawn import Draw, Drawn, DrawnDataModule, stamp
from lightning_overlock.ranges import Range, check_range

CANVAS = 48
DIGIT = 14
# A digit lies in the square of this side in its quadrant's corner; the cross between the quadrants
# is as wide as what is left.
CORNER = 19
STROKE = 7
# Centres of the nine strokes on the cross: five on its upright arm, four more on the level one.
SITES = np.array(
    [(4, 24), (14, 24), (24, 24), (34, 24), (43, 24), (24, 4), (24, 14), (24, 34), (24, 43)]
)


def _strokes() -> NDArray[np.uint8]:
    """Return a stroke per quadrant, (4, STROKE, STROKE): level, upright, falling, rising."""
    down, right = np.indices((STROKE, STROKE)) - STROKE // 2
    lines = np.stack([down, right, down - right, down + right])
    return ((lines == 0) | (lines == 1)).astype(np.uint8) * 255


STROKES = _strokes()


class Glyphs(NamedTuple):
    """The digits of one split.

    Attributes:
        images: (N, DIGIT, DIGIT) uint8, ink is 255, sorted by class.
        starts: (11,) where each class starts; the last is N.
    """

    images: NDArray[np.uint8]
    starts: NDArray[np.int64]


@lru_cache
def glyphs_of(split: DigitSplit) -> Glyphs:
    """Return the digits of a split."""
    digits = digits_of(split)
    labels = digits.labels.numpy()
    order = np.argsort(labels, kind="stable")
    return Glyphs(
        resize_digits(digits.images, DIGIT)[order],
        np.searchsorted(labels[order], np.arange(11)),
    )


def draw(
    random: np.random.Generator,
    count: int,
    split: DigitSplit,
    digits: int,
    classes: int,
    votes: int,
    debris: int,
) -> Drawn:
    """Draw a block of canvases; the arguments are those of `CuedClutterDataModule`.

    Facts: "quadrant", the one that counts.
    """
    glyphs = glyphs_of(split)
    canvases = np.zeros((count, CANVAS, CANVAS), np.uint8)
    shown = random.permuted(np.tile(np.arange(classes), (count, 1)), axis=1)[:, :4]
    # The first in this order counts, the last stay empty.
    order = random.permuted(np.tile(np.arange(4), (count, 1)), axis=1)
    filled = order.argsort(axis=1) < digits
    for quadrant in range(4):
        starts, ends = glyphs.starts[shown[:, quadrant]], glyphs.starts[shown[:, quadrant] + 1]
        glyphs_here = glyphs.images[random.integers(starts, ends)]
        _place(random, canvases, quadrant, glyphs_here * filled[:, quadrant, None, None])
        for _ in range(debris):
            _place(random, canvases, quadrant, STROKES[random.integers(4, size=count)])
    meant = order[:, 0]
    # The other sites show any of the three other strokes.
    others = (meant[:, None] + random.integers(1, 4, size=(count, len(SITES)))) % 4
    others[:, :votes] = meant[:, None]
    strokes = random.permuted(others, axis=1)
    for site, (top, left) in enumerate(SITES):
        shift = random.integers(-1, 2, size=(2, count))
        corner = np.array([top, left])[:, None] - STROKE // 2 + shift
        corner = corner.clip(0, CANVAS - STROKE)
        stamp(canvases, STROKES[strokes[:, site]], *corner)
    labels = shown[np.arange(count), meant]
    return Drawn(canvases[:, None], labels, {"quadrant": meant})


def _place(
    random: np.random.Generator,
    canvases: NDArray[np.uint8],
    quadrant: int,
    stamps: NDArray[np.uint8],
) -> None:
    """Lay a stamp anywhere in a quadrant's square."""
    corner = random.integers(0, CORNER - stamps.shape[1] + 1, size=(2, len(stamps)))
    below, beside = divmod(quadrant, 2)
    corner += (CANVAS - CORNER) * np.array([below, beside])[:, None]
    stamp(canvases, stamps, *corner)


class CuedClutterDataModule(DrawnDataModule):
    """Real digits amid debris on 48 pixels; a majority in the whole image says which one counts.

    Two to four digits lie in a quadrant each, among strokes that mean nothing. Nine more strokes
    lie on the cross between the quadrants, in four orientations: level strokes in the majority name
    the upper left digit, upright ones the upper right, falling ones the lower left and rising ones
    the lower right; the class of that digit is the label. The digits are of different classes, so a
    reader of the digits alone is right once in `digits` times, and nothing in a digit's own
    quadrant says whether it counts. Training, validation and test images are made of disjoint
    digits. Validation and test images are the same whatever the seed.

    Args:
        batch_size: Images per process and step.
        digits: How many of the quadrants hold a digit.
        classes: How many of the ten digits occur; as many as `digits` and each image shows all.
        votes: Strokes of the majority among the nine; 9 is the clearest sign, 5 the weakest.
        debris: Strokes that mean nothing in each quadrant.
        train_images: Training images per epoch.
        eval_images: Validation images, and as many test images.
        fresh: Whether to draw new training images in every epoch, without end; False repeats the
            same.
        num_workers: Processes that draw images; it costs so little that none is needed.

    Raises:
        InputError: An argument is out of its range.
    """

    title = "cued clutter"
    mean, std = 0.2, 0.35

    def __init__(
        self,
        batch_size: int = 64,
        digits: int = 4,
        classes: int = 10,
        votes: int = 6,
        debris: int = 1,
        train_images: int = 6400,
        eval_images: int = 1000,
        fresh: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, train_images, eval_images, fresh, num_workers)
        check_range("data.digits", digits, Range(2, 4))
        check_range("data.classes", classes, Range(4, 10))
        check_range("data.votes", votes, Range(5, 9))
        check_range("data.debris", debris, Range(0, 8))
        self.digits = digits
        self.classes = classes
        self.votes = votes
        self.debris = debris
        self.class_names = CLASS_NAMES[:classes]

    def draws(self, split: Split) -> Draw:
        """Return what draws the images of a split."""
        assert split != "predict"

        def drawn(random: np.random.Generator, count: int, epoch: int) -> Drawn:  # noqa: ARG001
            return draw(random, count, split, self.digits, self.classes, self.votes, self.debris)

        return drawn
