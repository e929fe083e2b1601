"""A trained task from its checkpoint, ready to predict."""

import importlib
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from lightning_overlock.backbones.weights import differences
from lightning_overlock.errors import InputError
from lightning_overlock.runs.checkpoint import checkpoint_in, read_checkpoint
from lightning_overlock.runs.config import MOVABLE, MOVABLE_SPLITS, checkpoint_config
from lightning_overlock.tasks.base import BaseTask


def load(path: str | Path, device: torch.device | str = "cpu") -> BaseTask:
    """Return the task of a run in evaluation mode, with its class names and its data's transform.

    Neither the training data nor a trainer is needed. Weights are those that the run has evaluated:
    of an average, where it kept one.

    Args:
        path: `runs/NAME`, of which the best checkpoint is taken, or a checkpoint.
        device: Where the network goes.

    Raises:
        InputError: There is no such checkpoint, or it was not written by `lightning fit`.
    """
    path = checkpoint_in(Path(path))
    return task_of(read_checkpoint(path), path).to(device)


def task_of(checkpoint: dict[str, Any], path: Path) -> BaseTask:
    """Return the task in the content of a checkpoint, see `load`.

    Args:
        checkpoint: What `runs.checkpoint.read_checkpoint` returns.
        path: The checkpoint's file, for messages.

    Raises:
        InputError: It was not written by `lightning fit`.
    """
    if "config" not in checkpoint or "hyper_parameters" not in checkpoint:
        raise InputError(
            f"--ckpt_path {path}: found no configuration inside this checkpoint.\n"
            "Expected a checkpoint written by `lightning fit`."
        )
    config = checkpoint_config(checkpoint, str(path))
    task_class = _task_class(config, path)
    # Lightning's CLI adds entries of its own; compiling gains nothing in a few predictions.
    stored = checkpoint["hyper_parameters"].items()
    arguments = {name: value for name, value in stored if not name.startswith("_")}
    task = task_class(**arguments | {"compile": False})
    task.on_load_checkpoint(checkpoint)
    if difference := differences(task.state_dict(), checkpoint["state_dict"]):
        raise InputError(
            f"--ckpt_path {path}: its weights are of another network than {task.backbone}.\n"
            f"{difference}"
        )
    task.load_state_dict(checkpoint["state_dict"])
    data: Any = data_of(config["data"])
    if "data" in checkpoint:
        data.load_prediction_state(checkpoint["data"])
    task.image_transform = data.image_transform(task.data_config)
    return task.eval()


def _task_class(config: dict[str, Any], path: Path) -> type[BaseTask]:
    """Return the class of the task in a checkpoint's configuration.

    Raises:
        InputError: It is of another package, or is not installed here.
    """
    class_path = str(config["model"].get("class_path"))
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # the last for a name without a module
        found = None
    data = config.get("data")
    if not (isinstance(found, type) and issubclass(found, BaseTask)):
        reason = f"its task, {class_path}, is none of this package or is not installed here"
    elif not (isinstance(data, dict) and "class_path" in data):
        reason = "its configuration names no data"
    else:
        return found
    raise InputError(
        f"--ckpt_path {path}: {reason}.\nExpected a checkpoint written by `lightning fit`."
    )


def data_of(config: dict[str, Any]) -> LightningDataModule:
    """Return a run's data module without its files, which may be gone.

    Args:
        config: The entry `data` of its configuration.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    given: dict[str, Any] = config.get("init_args") or {}
    kept = {
        name: value
        for name, value in given.items()
        if name not in MOVABLE and not name.startswith(MOVABLE_SPLITS)
    }
    if "predict_dir" in given:
        kept["predict_dir"] = []
    entry = {"class_path": config["class_path"], "init_args": kept}
    found = parser.instantiate_classes(parser.parse_object({"data": entry}))
    data: LightningDataModule = found.data
    return data
