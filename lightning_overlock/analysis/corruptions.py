"""The fifteen corruptions of ImageNet-C, for images of any size.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations (arXiv 1903.12261), with the constants of its published code. What differs:

- Lengths (radii, shifts, displacements) are given for 224 px there and scale with the short side
  here, so that a corruption covers the same share of an image of any size. Far below 224 px whole
  pixels are coarse: severities of glass blur, motion blur and elastic transform may change places.
- Frost is drawn (needles along contour lines of fractal noise, thickest at the border) where the
  original lays crops of five photographs of frost over the image, with the same mixing factors.
- Motion blur (also of snow) is one-sided Gaussian along a line as ImageMagick's, whole pixels per
  step; borders are repeated. Zoom interpolates bilinearly, glass blur swaps pixels in blocks that
  do not touch each other instead of one after the other.
- Noise is drawn from (seed, corruption), not from a global generator.

So figures are comparable among models measured here, not with the published tables. As in the
original, elastic transform at severities 1 and 2 moves large regions and from 3 on small ones, so
that severity 3 changes fewer pixels than 2.
"""

import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import (  # type: ignore[attr-defined]  # scipy fills these modules at import
    gaussian_filter,
    map_coordinates,
)
from scipy.signal import oaconvolve  # type: ignore[attr-defined]

from lightning_overlock.analysis.style import name_pixels, panels, style
from lightning_overlock.errors import did_you_mean

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]
Random = np.random.Generator
# Takes an image (H, W, 3) in [0, 1], a severity of 0 to 4 and a generator; returns the corrupted
# image, which may leave [0, 1].
Corruption = Callable[[Values, int, Random], Values]

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_SIDE = 224


def corrupt(image: Pixels, corruption: str, severity: int, seed: int = 0) -> Pixels:
    """Return an image with one of `CORRUPTIONS`.

    Args:
        image: (H, W, 3) uint8, RGB.
        corruption: Name of the corruption.
        severity: 1 to 5.
        seed: Seed of what is random; the same seed gives the same image.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: The corruption or severity is unknown, or it is another kind of image.

    Example:
        >>> image = np.zeros((32, 48, 3), np.uint8)
        >>> int(corrupt(image, "brightness", 3).max())  # .3 of 255
        76
    """
    if corruption not in CORRUPTIONS:
        near = did_you_mean(corruption, CORRUPTIONS)
        raise ValueError(f"no corruption '{corruption}'.{near} There are {list(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}; expected 1 to 5")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    # Severities of one seed share angles and textures, so that only the strength differs.
    random = np.random.default_rng((seed, zlib.crc32(corruption.encode())))
    values = CORRUPTIONS[corruption](image / 255, severity - 1, random)
    return np.asarray((values.clip(0, 1) * 255).round(), np.uint8)


def _scale(image: Values) -> float:
    """Pixels here per pixel of the original's images."""
    return min(image.shape[:2]) / REFERENCE_SIDE


# Noise -------------------------------------------------------------------------------------------


def _gaussian_noise(image: Values, severity: int, random: Random) -> Values:
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity]
    return image + random.normal(scale=deviation, size=image.shape)


def _shot_noise(image: Values, severity: int, random: Random) -> Values:
    photons = (60, 25, 12, 5, 3)[severity]
    return random.poisson(image * photons) / photons


def _impulse_noise(image: Values, severity: int, random: Random) -> Values:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity]
    hit = random.random(image.shape) < share
    return np.where(hit, random.random(image.shape) < 0.5, image)


# Blur --------------------------------------------------------------------------------------------


def _defocus_blur(image: Values, severity: int, _random: Random) -> Values:
    length, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity]
    scale = _scale(image)
    # A disk within one pixel would do nothing: smaller images get up to half a pixel more.
    radius = length * scale + max(0.0, 1 - scale) / 2
    reach = int(np.ceil(radius)) + 1
    # The share of each pixel inside the disk, by 9 x 9 points.
    points = (np.arange((2 * reach + 1) * 9) - 9 * reach - 4) / 9
    inside = np.hypot(points[:, None], points) <= radius
    disk = inside.reshape(2 * reach + 1, 9, 2 * reach + 1, 9).mean((1, 3))
    disk = gaussian_filter(disk, softness * scale, mode="constant")
    disk = disk / disk.sum()
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return np.asarray(oaconvolve(padded, disk[:, :, None], mode="valid", axes=(0, 1)))


def _glass_blur(image: Values, severity: int, random: Random) -> Values:
    deviation, reach, rounds = (
        (0.7, 1, 2),
        (0.9, 2, 1),
        (1.0, 2, 3),
        (1.1, 3, 2),
        (1.5, 4, 2),
    )[severity]
    scale = _scale(image)
    reach = max(1, round(reach * scale))
    blurred = _blur(image, deviation * scale)
    height, width = image.shape[:2]
    apart = 2 * reach + 1
    for _ in range(rounds):
        for phase in range(apart * apart):
            # Pixels that lie so far apart swap with a neighbour at once.
            rows = np.arange(reach + phase // apart, height - reach, apart)
            columns = np.arange(reach + phase % apart, width - reach, apart)
            here = np.meshgrid(rows, columns, indexing="ij")
            moves = random.integers(-reach, reach + 1, (2, len(rows), len(columns)))
            there = (here[0] + moves[0], here[1] + moves[1])
            blurred[here[0], here[1]], blurred[there] = (
                blurred[there],
                blurred[here[0], here[1]],
            )
    return _blur(blurred, deviation * scale)


def _motion_blur(image: Values, severity: int, random: Random) -> Values:
    radius, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity]
    return _smear(image, radius, deviation, random.uniform(-45, 45))


def _zoom_blur(image: Values, severity: int, _random: Random) -> Values:
    largest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity]
    factors = np.arange(1, largest, step)
    return (image + sum(_zoom(image, factor) for factor in factors)) / (len(factors) + 1)


def _blur(image: Values, deviation: float) -> Values:
    return np.asarray(gaussian_filter(image, (deviation, deviation, 0), mode="nearest"))


def _smear(image: Values, radius: float, deviation: float, angle: float) -> Values:
    """Blur along a line to one side; lengths as for 224 px, the angle in degrees."""
    scale = _scale(image)
    steps = np.arange(max(2, round((2 * radius + 1) * scale)))
    weights = np.exp(-((steps / max(deviation * scale, 0.5)) ** 2) / 2)
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    reach = len(steps)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        top, left = reach + round(step * down), reach + round(step * right)
        blurred += weight * padded[top : top + height, left : left + width]
    return blurred


def _zoom(image: Values, factor: float) -> Values:
    """Enlarge the middle to the size of the whole."""
    height, width = image.shape[:2]
    rows = (np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2
    columns = (np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2
    grid = np.meshgrid(rows, columns, indexing="ij")
    channels = [map_coordinates(image[..., c], grid, order=1) for c in range(3)]
    return np.stack(channels, axis=-1)


# Weather -----------------------------------------------------------------------------------------


def _snow(image: Values, severity: int, random: Random) -> Values:
    mean, deviation, zoom, threshold, radius, blur, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity]
    flakes = random.normal(mean, deviation, image.shape[:2])
    # Flakes of at least two pixels: single ones would be sharper and so more.
    flakes = _zoom(np.repeat(flakes[..., None], 3, axis=2), max(2.0, zoom * _scale(image)))
    flakes[flakes < threshold] = 0
    flakes = _smear(flakes.clip(0, 1), radius, blur, random.uniform(-135, -45))
    grey = image @ np.array([0.299, 0.587, 0.114])
    pale = kept * image + (1 - kept) * np.maximum(image, grey[..., None] * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def _frost(image: Values, severity: int, random: Random) -> Values:
    kept, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity]
    height, width = image.shape[:2]
    # Needles along the contour lines of rough noise, a few of them and many.
    ridges = np.zeros((height, width))
    for lines, sharpness in ((3, 8), (9, 4)):
        noise = _plasma(max(height, width), 1.35, random)[:height, :width]
        ridges += np.abs(np.cos(np.pi * lines * noise)) ** sharpness / 2
    rows, columns = (np.abs(np.linspace(-1, 1, length)) for length in (height, width))
    border = np.maximum(rows[:, None], columns)
    thick = (0.5 + 0.5 * border**2) * (0.3 + 0.7 * ridges / ridges.max())
    return kept * image + ice * thick[..., None] * np.array([0.86, 0.94, 1.0])


def _fog(image: Values, severity: int, random: Random) -> Values:
    strength, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity]
    height, width = image.shape[:2]
    top = image.max()
    fog = _plasma(max(height, width), decay, random)[:height, :width]
    return (image + strength * fog[..., None]) * top / (top + strength)


def _plasma(side: int, decay: float, random: Random) -> Values:
    """Return diamond-square noise in [0, 1], periodic, its side the next power of two."""
    size = 1 << max(1, (side - 1).bit_length())
    field = np.zeros((size, size))
    step, amplitude = size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        square = corners + np.roll(corners, -1, 0)
        square = (square + np.roll(square, -1, 1)) / 4
        field[half::step, half::step] = _wobble(square, amplitude, random)
        middles = field[half::step, half::step]
        # The middle of each edge has two corners and two middles of squares for neighbours.
        across = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        field[::step, half::step] = _wobble(across / 4, amplitude, random)
        down = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        field[half::step, ::step] = _wobble(down / 4, amplitude, random)
        # Squared, as its code decays both factors of the amplitude.
        step, amplitude = half, amplitude / decay**2
    field -= field.min()
    return field / field.max()


def _wobble(values: Values, amplitude: float, random: Random) -> Values:
    return values + amplitude * random.uniform(-1, 1, values.shape)


# Digital -----------------------------------------------------------------------------------------


def _brightness(image: Values, severity: int, _random: Random) -> Values:
    hsv = rgb_to_hsv(image)
    hsv[..., 2] = (hsv[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[severity]).clip(0, 1)
    return np.asarray(hsv_to_rgb(hsv))


def _contrast(image: Values, severity: int, _random: Random) -> Values:
    mean = image.mean((0, 1), keepdims=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[severity] * (image - mean)


def _elastic_transform(image: Values, severity: int, random: Random) -> Values:
    # Strength and smoothness of the displacement and shift of the affine map, in shares of 244 px
    # as in the original.
    strength, smoothness, shift = (
        (2.0, 0.7, 0.1),
        (2.0, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[severity]
    height, width = image.shape[:2]
    unit = 244 * _scale(image)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    # An affine map that moves three points around the middle by up to `shift`.
    middle = np.array([height, width]) / 2
    third = min(height, width) / 3
    points = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + random.uniform(-shift * unit, shift * unit, (3, 2))
    matrix = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    grid = np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ matrix
    for axis in range(2):
        # The field is 224 px wide there: noise per pixel, so finer images get it smoother.
        noise = random.uniform(-1, 1, (height, width))
        field = gaussian_filter(noise, smoothness * unit, mode="reflect", truncate=3)
        grid[..., axis] += strength * unit * field * _scale(image)
    coordinates = np.moveaxis(grid, -1, 0)
    channels = [
        map_coordinates(image[..., c], coordinates, order=1, mode="reflect") for c in range(3)
    ]
    return np.stack(channels, axis=-1)


def _pixelate(image: Values, severity: int, _random: Random) -> Values:
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity]
    height, width = image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    pixels = Image.fromarray(np.asarray((image * 255).round(), np.uint8))
    pixels = pixels.resize(small, Image.Resampling.BOX)
    return np.asarray(pixels.resize((width, height), Image.Resampling.NEAREST)) / 255


def _jpeg_compression(image: Values, severity: int, _random: Random) -> Values:
    quality = (25, 18, 15, 10, 7)[severity]
    file = BytesIO()
    Image.fromarray(np.asarray((image * 255).round(), np.uint8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read.convert("RGB")) / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


def plot_corruptions(image: Pixels, severity: int = 3, seed: int = 0) -> Figure:
    """Draw an image and its fifteen corruptions.

    Args:
        image: (H, W, 3) uint8.
        severity: 1 to 5.
        seed: Seed of what is random.

    Example:
        >>> figure = plot_corruptions(np.full((32, 32, 3), 128, np.uint8))
        >>> len(figure.axes)
        16
    """
    with style():
        figure, axes = panels(2, 8, width=1.3, height=1.6)
        for panel, name in zip(axes.flat, ("clean", *CORRUPTIONS), strict=True):
            shown = image if name == "clean" else corrupt(image, name, severity, seed)
            panel.imshow(shown, interpolation="nearest")
            name_pixels(panel, name.replace("_", " "))
    return figure
