"""The model card of a run: what was trained, on what, how, and what came out."""

import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lightning_overlock import __version__
from lightning_overlock.runs.layout import METRICS
from lightning_overlock.runs.metrics_file import ALL_OF_TRAINING, best_of, read_curve
from lightning_overlock.tables import escape_markdown
from lightning_overlock.tasks.base import BaseTask

PAPERS = {
    "overlock": (
        "Lou and Yu, OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing "
        "Dynamic Kernels, CVPR 2025, arXiv:2502.20087"
    ),
    "convneur": (
        "Yang et al., Efficiency Follows Global-Local Decoupling, CVPR 2026, arXiv:2603.19567 (the "
        "network is a re-implementation from the paper with reconstructed dimensions)"
    ),
}
PACKAGES = ("torch", "lightning", "timm")


def model_card(
    task: BaseTask, checkpoint: Mapping[str, Any], run: Path, preprocessing: Mapping[str, Any]
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read.

    Args:
        task: The trained task.
        checkpoint: The checkpoint's content.
        run: The run folder, whose metrics are shown if it has any.
        preprocessing: What the network expects of its images, by timm's names.
    """
    config: dict[str, Any] = yaml.safe_load(str(checkpoint["config"])) or {}
    licence = task.timm_model.pretrained_cfg.get("license") or "other"
    front = {
        "tags": ["image-classification", "timm"],
        "library_name": "timm",
        "license": licence,
    }
    data, trainer = config.get("data") or {}, config.get("trainer") or {}
    recipe = {
        **{k: v for k, v in task.hparams.items() if k != "class_names" and v is not None},
        **{k: v for k, v in trainer.items() if v is not None},
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {task.backbone}, {len(task.class_names)} classes",
        f"Load it with `timm.create_model('local-dir:FOLDER', pretrained=True)`{_needed(task)}.",
        f"Images: {_words(preprocessing)}.",
        f"Classes: {_listed(task.class_names)}.",
        "## Data",
        _table({"module": data.get("class_path", "unknown"), **(data.get("init_args") or {})}),
        "## Metrics",
        _metrics(task, checkpoint, run),
        "## Recipe",
        _table({"seed": config.get("seed_everything"), **recipe}),
        "The command that trains it again, with the configuration of the run folder:",
        f"```sh\nlightning fit --config {run}/config.yaml --name {run.name}-again\n```",
        "Versions: "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        + f", lightning_overlock {__version__}.",
        *_ablation(run),
        "## Licence and citation",
        f"Weights: {licence} as far as the architecture goes; the data may set further terms.",
        *(f"Please cite {text}." for name, text in PAPERS.items() if name in task.backbone),
    ]
    return "\n\n".join(parts) + "\n"


def _needed(task: BaseTask) -> str:
    own = type(task.timm_model).__module__.startswith("lightning_overlock.")
    return ", after `import lightning_overlock`, which brings the architecture" if own else ""


def _words(preprocessing: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in preprocessing.items())


def _listed(names: list[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)}, all in config.json)"


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_escaped(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _escaped(value: Any) -> str:
    text = str(value)
    return escape_markdown(text if len(text) <= 200 else text[:199] + "…")


def _metrics(task: BaseTask, checkpoint: Mapping[str, Any], run: Path) -> str:
    """Return the metrics of the row that the checkpoint was written at, else of the best row."""
    curve = read_curve(run, *ALL_OF_TRAINING)
    same = [row for row in curve if row.get("step") == checkpoint.get("global_step")]
    way = "maximize" if task.monitor_mode == "max" else "minimize"
    row = same[-1] if same else best_of(curve, task.monitor, way)
    if row is None:
        return f"The run folder has no {METRICS}, so nothing is said of them here."
    place = {"epoch": row.get("epoch"), "step": row.get("step")}
    found = {k: f"{v:.6g}" for k, v in row.items() if k not in place and math.isfinite(v)}
    return _table({k: f"{v:g}" for k, v in place.items() if v is not None} | found)


def _ablation(run: Path) -> list[str]:
    """Return the table of the sweep that the run is a trial of, nothing if it is none."""
    path = run.parent / "table.md"
    if not path.is_file():
        return []
    return [f"## The sweep `{run.parent.name}`, of which this is a trial", path.read_text().strip()]
