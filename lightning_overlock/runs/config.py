"""The configuration that made a run, kept beside it and inside its checkpoints."""

from pathlib import Path
from typing import Any

import yaml

from lightning_overlock.runs.layout import CONFIG


def write_config(folder: Path, text: str) -> None:
    """Write a run's configuration, as YAML, into its folder."""
    (folder / CONFIG).write_text(text, encoding="utf-8")


def checkpoint_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in a checkpoint, with the class names its head was built for."""
    config: dict[str, Any] = yaml.safe_load(checkpoint["config"])
    class_names = checkpoint.get("hyper_parameters", {}).get("class_names")
    if class_names is not None:
        config["model"].setdefault("init_args", {})["class_names"] = class_names
    return config


def total_epochs(folder: Path) -> int | None:
    """Return how many epochs the run was asked for, None if it does not say."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        found = config["trainer"]["max_epochs"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return None
    return found if isinstance(found, int) and found > 0 else None
