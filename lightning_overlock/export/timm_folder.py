"""A classifier as a folder that timm loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from lightning_overlock.errors import InputError
from lightning_overlock.export.card import model_card
from lightning_overlock.export.network import normalisation
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.classification import ClassificationTask


def preprocessing(task: BaseTask) -> dict[str, Any]:
    """Return what a classifier expects of its images, by timm's names."""
    mean, std, size = normalisation(task)
    config = task.data_config
    return {
        "input_size": (3, *size),
        "mean": tuple(round(value, 6) for value in mean.flatten().tolist()),
        "std": tuple(round(value, 6) for value in std.flatten().tolist()),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
    }


def save_timm(
    task: BaseTask,
    checkpoint: Mapping[str, Any],
    run: Path,
    folder: Path,
    dtype: torch.dtype,
) -> nn.Module:
    """Write weights, `config.json` and the model card; return the model that timm makes of them.

    The weights are those of the training form, without the head of an overview.

    Args:
        task: A classification task.
        checkpoint: The checkpoint's content.
        run: The run folder.
        folder: Where the files go; it is made.
        dtype: Type of the weights.

    Raises:
        InputError: The task is no classification, or its model cannot be described to timm.
    """
    if not isinstance(task, ClassificationTask):
        raise InputError(
            f"--format timm takes a classifier, found a {type(task).__name__}: timm's models have "
            "no decoder\nexpected --format onnx or torch"
        )
    model: Any = task.model
    if getattr(model, "overview_head", None) is not None:
        model.overview_head = None
    model.to(dtype)
    expected = preprocessing(task)
    options = {"label_names": task.class_names}
    try:
        save_for_hf(
            model, str(folder), model_config=options, safe_serialization=True, data_config=expected
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"timm cannot describe {task.backbone}: {error}") from error
    card = model_card(task, checkpoint, run, expected)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return timm.create_model(f"local-dir:{folder}", pretrained=True).to(dtype).eval()
