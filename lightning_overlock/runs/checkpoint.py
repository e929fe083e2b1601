"""Reading the checkpoint files of a run."""

import re
import zipfile
from pathlib import Path
from typing import Any

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.runs.layout import BEST, CHECKPOINTS, LAST


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint file exists and was written to its end."""
    # Checkpoints are zip files, whose table of contents comes last.
    return zipfile.is_zipfile(path)


def checkpoint_in(path: Path, last_first: bool = False) -> Path:
    """Return the checkpoint that a path means: a file, a run's folder, or the one of checkpoints.

    Args:
        path: The path; a file is returned as it is.
        last_first: Whether a run's last checkpoint is preferred to its best.

    Raises:
        InputError: If the folder has none.
    """
    if not path.is_dir():
        return path
    run = path.parent if path.name == CHECKPOINTS else path
    for kind in (LAST, BEST) if last_first else (BEST, LAST):
        if (run / kind).is_file():
            return run / kind
    runs = [str(found.parents[1]) for found in path.glob(f"*/{LAST}")]
    raise InputError(
        f"--ckpt_path {path}: this folder holds no {LAST}.{did_you_mean(str(path), runs)}\n"
        "Expected a checkpoint or the folder of a run, as in --ckpt_path runs/NAME."
    )


def require_checkpoint(path: Path) -> None:
    """Make sure that a checkpoint's file exists.

    Raises:
        InputError: If it does not.
    """
    if not path.is_file():
        near = [str(file) for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise InputError(
            f"--ckpt_path {path}: this file does not exist.{did_you_mean(str(path), near)}\n"
            "Expected a checkpoint, as in runs/NAME/checkpoints/best.ckpt."
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a Lightning checkpoint's content, its tensors on the CPU.

    Raises:
        InputError: If the file does not exist or is no Lightning checkpoint.
    """
    require_checkpoint(path)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes lead to
        raise InputError(
            f"--ckpt_path {path}: this file is no checkpoint.\n"
            "Expected one written by `lightning fit`, as in runs/NAME/checkpoints/best.ckpt."
        ) from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise InputError(
            f"--ckpt_path {path}: found weights or other content, but no Lightning checkpoint.\n"
            "Expected one written by `lightning fit`; weights are given with --model.init_from."
        )
    _refuse_incomplete(path, content)
    return content


def _refuse_incomplete(path: Path, content: dict[str, Any]) -> None:
    import torch

    weights = content.get("state_dict")
    missing = ""
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        missing = "weights (state_dict)"
    elif not re.match(r"\d+\.\d+", str(content["pytorch-lightning_version"])):
        missing = "version of Lightning"
    if missing:
        raise InputError(
            f"--ckpt_path {path}: this checkpoint has no {missing}.\n"
            "Expected one as `lightning fit` has written it."
        )


def refuse_to_continue(path: Path, content: dict[str, Any]) -> None:
    """Refuse a checkpoint that training cannot go on from.

    Raises:
        InputError: It has weights only, as ModelCheckpoint's `save_weights_only` makes them.
    """
    if not content.get("optimizer_states") or not isinstance(content.get("loops"), dict):
        raise InputError(
            f"--ckpt_path {path}: this checkpoint has weights only, no state of a training.\n"
            "Expected last.ckpt or best.ckpt of a run; --model.init_from starts from weights."
        )


def read_progress(path: Path) -> dict[str, Any]:
    """Return how far a checkpoint is, and no weights; {} if it is not whole.

    Returns:
        "epoch", "global_step" and, of a checkpoint of this package, "position"
        (`runs.resume.Position`).
    """
    if not is_whole(path):
        return {}
    import torch

    # No tensor is read on the meta device.
    content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    return {key: content[key] for key in ("epoch", "global_step", "position") if key in content}


def checkpoint_of(folder: Path, step: int) -> str | None:
    """Return the checkpoint of an optimiser step, below the run folder; None if there is none."""
    for name in (BEST, LAST):
        if read_progress(folder / name).get("global_step") == step:
            return name
    return None
