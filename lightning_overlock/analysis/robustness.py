"""Accuracy under corruption, and the mean corruption error against a baseline model.

Source: Hendrycks and Dietterich (arXiv 1903.12261), section 4. The corruptions and what differs
from the published ones: `lightning_overlock.analysis.corruptions`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_overlock.analysis.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from lightning_overlock.analysis.hooks import evaluation, to_model_device
from lightning_overlock.analysis.style import panels, style
from lightning_overlock.data.base import BaseDataModule


class CorruptionErrors(NamedTuple):
    """Top-1 errors of a classifier, 0 to 1.

    Attributes:
        images: Number of images that errors were counted on.
        clean: Error on the images as they are.
        errors: Errors by corruption, (S,), one for each severity measured.
        severities: The severities measured.
    """

    images: int
    clean: float
    errors: dict[str, NDArray[np.float64]]
    severities: tuple[int, ...] = SEVERITIES


def corruption_errors(
    model: nn.Module,
    data: BaseDataModule,
    *,
    split: str = "val",
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> CorruptionErrors:
    """Count a classifier's errors on corrupted images of a data module.

    Images come as the data module gives them to the model, resized and cropped, are turned back
    into 8-bit RGB, corrupted and normalised again, as ImageNet-C's are corrupted after the crop.

    Args:
        model: A timm model, or any module that maps images to logits.
        data: A data module with batches (images (B, 3, H, W) normalised, labels (B,)).
        split: "val" or "test".
        corruptions: Names of corruptions; None takes all fifteen.
        severities: Severities, 1 to 5.
        mean: Mean that the images were normalised with, in units of [0, 1]; None takes what the
            data module says.
        std: Standard deviation that they were normalised with, likewise.
        limit: Number of images to take; None takes all.
        seed: Seed of what is random in the corruptions, together with the image's number.

    Raises:
        ValueError: A corruption, severity or split is unknown, or there are no images, or images
            whose normalisation the data module does not say.

    Example:
        >>> import timm
        >>> from lightning_overlock.data import DigitsDataModule
        >>> model = timm.create_model("test_overlock", num_classes=10)
        >>> data = DigitsDataModule(batch_size=4, image_size=32)
        >>> found = corruption_errors(model, data, corruptions=["fog"], severities=[1], limit=4)
        >>> found.images, found.errors["fog"].shape
        (4, (1,))
    """
    names = list(CORRUPTIONS if corruptions is None else corruptions)
    if split not in ("val", "test"):
        raise ValueError(f"split is {split!r}; expected 'val' or 'test'")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    if mean is None or std is None:
        mean, std = normalisation(loader.source)
    # (3,) or one for all channels, in the shape of (B, H, W, 3).
    shift, scale = (np.asarray(x, np.float64).reshape(-1) for x in (mean, std))
    for name in names:  # before any image is read
        for severity in severities:
            corrupt(np.zeros((8, 8, 3), np.uint8), name, severity)
    total, clean = 0, 0
    wrong = {name: np.zeros(len(severities)) for name in names}
    try:
        for images, labels in loader:
            if limit is not None:
                images, labels = images[: limit - total], labels[: limit - total]
            if len(images) == 0:
                break
            channels_last = images.permute(0, 2, 3, 1).double().numpy()
            pixels = ((channels_last * scale + shift).clip(0, 1) * 255).round().astype(np.uint8)
            clean += _wrong(model, images, labels)
            for name in names:
                for place, severity in enumerate(severities):
                    changed = np.stack(
                        [
                            corrupt(image, name, severity, seed + total + number)
                            for number, image in enumerate(pixels)
                        ]
                    )
                    normal = torch.from_numpy((changed / 255 - shift) / scale)
                    normal = normal.permute(0, 3, 1, 2).to(images.dtype)
                    wrong[name][place] += _wrong(model, normal, labels)
            total += len(images)
    finally:
        loader.close()
    if total == 0:
        raise ValueError(f"no images to count errors on (limit {limit})")
    errors = {name: counts / total for name, counts in wrong.items()}
    return CorruptionErrors(total, clean / total, errors, tuple(severities))


def _wrong(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with evaluation(model), torch.inference_mode():
        found = model(to_model_device(model, images.contiguous())).argmax(1).cpu()
    return int((found != labels).sum())


def normalisation(source: Any) -> tuple[Any, Any]:
    """Return the mean and standard deviation that a source of images normalises with.

    Args:
        source: Has attributes `mean` and `std`, or a `transform` of torchvision with a
            `Normalize` in it.

    Raises:
        ValueError: It has neither.

    Example:
        >>> from lightning_overlock.data import DigitsDataModule
        >>> normalisation(DigitsDataModule().source("val"))
        (0.195, 0.295)
    """
    steps = getattr(getattr(source, "transform", None), "transforms", [])
    for holder in (source, *reversed(steps)):
        if hasattr(holder, "mean") and hasattr(holder, "std"):
            return holder.mean, holder.std
    raise ValueError(
        f"{type(source).__name__} does not say how it normalises images; give mean and std"
    )


def corruption_rows(
    found: dict[str, CorruptionErrors], baseline: str | None = None
) -> list[dict[str, Any]]:
    """Return one row per model: errors, and corruption errors against a baseline.

    With E the error of a corruption and severity: CE_c = sum_s E_model / sum_s E_baseline, mCE
    its mean over corruptions; the relative form has E minus the model's own clean error.

    Args:
        found: What `corruption_errors` returns, by model, of the same corruptions, severities
            and images.
        baseline: Name of the model that is 100 %; None leaves these columns out. (The paper's
            is AlexNet.).

    Returns:
        Rows with "model", "clean error %", "corrupted error %" (mean over corruptions and
        severities), "mCE %" and "relative mCE %", and one "CE % NAME" for every corruption. None
        where the baseline makes no (relative) error to divide by.

    Raises:
        ValueError: The baseline is unknown, or models were measured on different things.

    Example:
        >>> errors = CorruptionErrors(10, 0.1, {"fog": np.array([0.2, 0.4])}, (1, 2))
        >>> half = CorruptionErrors(10, 0.1, {"fog": np.array([0.1, 0.2])}, (1, 2))
        >>> rows = corruption_rows({"a": errors, "b": half}, baseline="a")
        >>> rows[1]["mCE %"], rows[1]["relative mCE %"]
        (50.0, 25.0)
    """
    if baseline is not None and baseline not in found:
        raise ValueError(f"no model '{baseline}' was measured; there are {list(found)}")
    measured = {
        (errors.images, tuple(errors.errors), errors.severities) for errors in found.values()
    }
    if len(measured) > 1:
        raise ValueError(
            "the models were measured on different images, corruptions or severities: "
            + "; ".join(f"{name} on {errors.images} images" for name, errors in found.items())
        )
    rows = []
    for name, own in found.items():
        row: dict[str, Any] = {
            "model": name,
            "clean error %": 100 * own.clean,
            "corrupted error %": 100 * float(np.mean([e.mean() for e in own.errors.values()])),
        }
        if baseline is not None:
            base = found[baseline]
            plain = {c: corruption_error(own.errors[c], base.errors[c]) for c in own.errors}
            relative = [
                corruption_error(own.errors[c] - own.clean, base.errors[c] - base.clean)
                for c in own.errors
            ]
            row["mCE %"] = mean_of_all(list(plain.values()))
            row["relative mCE %"] = mean_of_all(relative)
            row |= {f"CE % {c}": value for c, value in plain.items()}
        rows.append(row)
    return rows


def corruption_error(own: NDArray[np.float64], base: NDArray[np.float64]) -> float | None:
    """Return a corruption error in percent: the sum of a model's errors over a baseline's.

    Args:
        own: Errors at some severities, (S,); less the clean error for the relative form.
        base: The baseline's at the same severities, (S,), likewise.

    Returns:
        None where the baseline makes no (relative) error to divide by.

    Example:
        >>> corruption_error(np.array([0.25, 0.25]), np.array([0.5, 0.5]))
        50.0
    """
    whole = float(base.sum())
    return 100 * float(own.sum()) / whole if whole > 0 else None


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean, as of corruption errors; None where one of them is None.

    Example:
        >>> mean_of_all([40.0, 60.0]), mean_of_all([40.0, None])
        (50.0, None)
    """
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None


def plot_corruption_errors(found: dict[str, CorruptionErrors]) -> Figure:
    """Draw every model's error per corruption, means over severities, and per severity.

    Args:
        found: What `corruption_errors` returns, by model.

    Example:
        >>> errors = CorruptionErrors(10, 0.1, {"fog": np.array([0.2, 0.4])}, (1, 2))
        >>> figure = plot_corruption_errors({"a model": errors})
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['corruption', 'severity (0 is clean)']
    """
    with style():
        figure, axes = panels(1, 2, width=4.2, height=3.2)
        left, right = axes[0]
        names = list(next(iter(found.values())).errors)
        for name, own in found.items():
            means = [100 * own.errors[c].mean() for c in names]
            left.plot(range(len(names)), means, linestyle="", label=name)
            errors = [100 * own.clean]
            errors += [100 * float(e) for e in np.mean(list(own.errors.values()), axis=0)]
            right.plot([0, *own.severities], errors, label=name)
        labels = [name.replace("_", " ") for name in names]
        left.set_xticks(range(len(names)), labels, rotation=60, ha="right")
        left.set_xlabel("corruption")
        left.set_ylabel("top-1 error (%)")
        left.set_title("mean over severities")
        right.set_xlabel("severity (0 is clean)")
        right.set_ylabel("top-1 error (%)")
        right.set_title("mean over corruptions")
        right.xaxis.get_major_locator().set_params(integer=True)
        for panel in (left, right):
            panel.set_ylim(bottom=0)
        right.legend()
    return figure
