"""The configuration that made a run, kept beside it and inside its checkpoints."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from lightning_overlock.errors import InputError
from lightning_overlock.runs.disk import replace_file
from lightning_overlock.runs.layout import CONFIG
from lightning_overlock.yaml_files import parse_yaml

# Options of the data that say where they are and how they are read: the number of images is
# compared when the training starts (`runs.resume`).
MOVABLE = {
    "download",
    "folder",
    "max_image_pixels",
    "max_left_out",
    "num_workers",
    "root",
    "skip_corrupt",
    "skip_invalid",
}
MOVABLE_SPLITS = ("train_images", "train_json", "train_labels", "val_", "test_", "predict_")
# Options that differ between runs of one configuration.
PLACE = ("name", "seed_everything", "ckpt_path", "logger", "group")
OWN_TASKS = "lightning_overlock.tasks."
# Options of the trainer that change what a step does.
STEP_OPTIONS = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "overfit_batches",
    "precision",
    "sync_batchnorm",
)


def write_config(folder: Path, text: str) -> None:
    """Write a run's configuration, as YAML, into its folder."""
    replace_file(folder / CONFIG, text.encode())


def checkpoint_config(checkpoint: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the configuration in a checkpoint, with the class names its head was built for.

    Args:
        checkpoint: Its content.
        source: What it is called in messages.

    Raises:
        InputError: It is no configuration of a task.
    """
    config = parse_yaml(str(checkpoint["config"]), source)
    if not isinstance(config.get("model"), dict):
        raise InputError(f"{source}: found no model in it, expected what `lightning fit` wrote.")
    class_names = (checkpoint.get("hyper_parameters") or {}).get("class_names")
    if class_names is None and str(config["model"].get("class_path")).startswith(OWN_TASKS):
        raise InputError(
            f"{source}: the checkpoint does not name the classes (hyper_parameters).\n"
            "Expected one as `lightning fit` has written it."
        )
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


def config_hash(folder: Path) -> str | None:
    """Return a hash of a run's whole configuration, see `hash_of`.

    Args:
        folder: The run folder; None comes back where it has no configuration yet.
    """
    try:
        content = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return hash_of(content) if isinstance(content, dict) else None


def hash_of(content: dict[str, Any]) -> str:
    """Return a hash of a configuration, the same for all its seeds and places."""
    kept = {key: value for key, value in content.items() if key not in PLACE}
    if isinstance(trainer := kept.get("trainer"), dict):
        kept["trainer"] = {k: v for k, v in trainer.items() if k not in {"default_root_dir"}}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_inexact(own: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Refuse options with which a run would not be continued exactly.

    Those of the model are the checkpoint's anyway; data may have moved.

    Args:
        own: The configuration in the checkpoint.
        now: The present one.
        checkpoint: Its path.

    Raises:
        InputError: If an option differs that what is left of the training depends on.
    """
    before, after = _recipe(own), _recipe(now)
    changed = [
        f"--{name} {_shown(before.get(name))} (now {_shown(after.get(name))})"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise InputError(
            f"{checkpoint} was made with {', '.join(changed[:4])}{', …' * (len(changed) > 4)}.\n"
            "With another value the run would not be continued exactly: leave the option out, or "
            "give\n--allow_changes true to continue it all the same."
        )


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options, in their short form, that a training step depends on."""
    data = config.get("data") or {}
    options = {
        f"data.{name}": value
        for name, value in (data.get("init_args") or {}).items()
        if name not in MOVABLE and not name.startswith(MOVABLE_SPLITS)
    }
    options |= {f"trainer.{name}": (config.get("trainer") or {}).get(name) for name in STEP_OPTIONS}
    options |= {f"ema.{name}": value for name, value in (config.get("ema") or {}).items()}
    return options | {"seed_everything": config.get("seed_everything")}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)[:40]
