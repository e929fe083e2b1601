"""Where a run's figures go: TensorBoard, CSV, Weights & Biases, MLflow; by default nowhere else.

Weights & Biases writes into the run folder and sends nothing unless the environment's WANDB_MODE
is "online"; MLflow writes a database beside the runs unless MLFLOW_TRACKING_URI names a server.
What both libraries report about themselves is turned off.
"""

import importlib.util
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.runs.disk import replace_file
from lightning_overlock.runs.layout import BEST, CONFIG, METRICS, TRACKER_IDS

TRACKERS = ("tensorboard", "csv", "wandb", "mlflow")
# What a library must be installed for; both are extras of the package.
EXTRAS = ("wandb", "mlflow")
PROJECT = "lightning_overlock"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        name: The run's name.
        folder: Its folder.
        group: What it belongs to, such as SWEEP/ROW; "" for nothing.
        tags: Its seed and the hash of its configuration, by "seed" and "hash".
        continued: Whether it goes on with what is in the folder.
    """

    name: str
    folder: Path
    group: str
    tags: dict[str, str]
    continued: bool = False


def tracker_names(given: str | list[str] | None) -> list[str]:
    """Return the trackers that were asked for, each once; [] for none.

    Args:
        given: A name, several with commas between them, or a list; None means TensorBoard.

    Raises:
        InputError: One is unknown or not installed, or "none" stands beside others.
    """
    words = given if isinstance(given, list) else str(given or "tensorboard").split(",")
    names = list(dict.fromkeys(str(word).strip().lower() for word in words))
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise InputError(
                f"--logger {name}: no logger of this name.{did_you_mean(name, TRACKERS)} "
                f"Expected some of {', '.join(TRACKERS)}, or none."
            )
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise InputError(
                f"--logger {name}: {name} is not installed.\n"
                f"Expected pip install 'lightning-overlock[{name}]', or another logger."
            )
    if "none" in names and len(names) > 1:
        raise InputError(f"--logger {','.join(names)}: 'none' stands alone.")
    return [name for name in names if name != "none"]


def loggers_of(names: list[str], run: TrackedRun) -> list[Logger]:
    """Return Lightning's loggers; nothing is written before the first of them is used.

    Args:
        names: As `tracker_names` returns them.
        run: The run.
    """
    made = {"tensorboard": _tensorboard, "csv": _csv, "wandb": _wandb, "mlflow": _mlflow}
    return [made[name](run) for name in names]


class _RunBoard(TensorBoardLogger):
    """TensorBoard's log in the run folder; Lightning would replace $HOME in a run's name."""

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.root_dir)


def _tensorboard(run: TrackedRun) -> Logger:
    return _RunBoard(run.folder, name="", version="")


def _csv(run: TrackedRun) -> Logger:
    # A version for each time a run is continued: Lightning's writer begins a file anew.
    return CSVLogger(run.folder, name="csv")


def _wandb(run: TrackedRun) -> Logger:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(
        name=run.name,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        save_dir=run.folder,
        id=_known_ids(run).get("wandb") or uuid.uuid4().hex[:12],
        group=run.group or None,
        tags=[f"{key} {value}" for key, value in run.tags.items()],
        mode=os.environ.get("WANDB_MODE", "offline"),
        settings={"console": "off"},
    )
    # Lightning hands it on even where it is None, and W&B warns that it has dropped it.
    logger._wandb_init.pop("anonymous", None)
    return logger


def _mlflow(run: TrackedRun) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for library in ("mlflow", "alembic"):  # they say how they make their tables
        logging.getLogger(library).setLevel(logging.WARNING)
    root = run.folder.resolve().parent
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        root.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(
        experiment_name=PROJECT,
        run_name=run.name,
        tracking_uri=address or f"sqlite:///{root / 'mlflow.db'}",
        artifact_location=None if address else (root / "mlartifacts").as_uri(),
        tags=run.tags | ({"group": run.group} if run.group else {}),
        run_id=_known_ids(run).get("mlflow"),
    )


def _known_ids(run: TrackedRun) -> dict[str, str]:
    """Return under which ids the trackers know a run that goes on."""
    file = run.folder / TRACKER_IDS
    if not run.continued or not file.is_file():
        return {}
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def log_image(logger: Logger, name: str, image: Tensor, step: int) -> None:
    """Hand an image to a logger that has images.

    Args:
        logger: The logger.
        name: Its name.
        image: (3, H, W) uint8.
        step: The optimiser step it belongs to.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step)
    elif isinstance(logger, MLFlowLogger):
        client: Any = logger.experiment
        client.log_image(logger.run_id, pixels, artifact_file=f"{name}/step_{step:08d}.png")


def log_files(logger: Logger, name: str, files: list[Path]) -> None:
    """Hand files to a tracker that keeps files: W&B as an artefact, MLflow with the run.

    Args:
        logger: The logger.
        name: What they are called together.
        files: They; those that are not there are passed over.
    """
    there = [file for file in files if file.is_file()]
    if isinstance(logger, WandbLogger) and there:
        import wandb

        artifact = wandb.Artifact(_plain(name), type="results")
        for file in there:
            artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact)
    elif isinstance(logger, MLFlowLogger):
        client: Any = logger.experiment
        for file in there:
            client.log_artifact(logger.run_id, str(file))


def register_checkpoint(logger: Logger, name: str, file: Path) -> None:
    """Register a checkpoint as the model of a name, with the alias "best".

    Args:
        logger: The logger; W&B and MLflow have a registry.
        name: The model's name.
        file: The checkpoint.
    """
    if isinstance(logger, WandbLogger):
        import wandb

        artifact = wandb.Artifact(_plain(name), type="model")
        artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact, aliases=["best"])
    elif isinstance(logger, MLFlowLogger):
        from mlflow.exceptions import MlflowException

        name = _plain(name)
        client: Any = logger.experiment
        client.log_artifact(logger.run_id, str(file), file.parent.name)
        uri = client.get_run(logger.run_id).info.artifact_uri
        try:
            client.create_registered_model(name)
        except MlflowException as error:  # of an earlier run of the name
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, source=f"{uri}/{file.parent.name}", run_id=logger.run_id
        )
        client.set_registered_model_alias(name, "best", version.version)


def _plain(name: str) -> str:
    """Return a name with the characters that all registries take."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def log_results(names: list[str], run: TrackedRun, files: list[Path]) -> None:
    """Make a run of its own for files, in the trackers that keep files.

    Args:
        names: As `tracker_names` returns them.
        run: What it is called, and where it goes.
        files: They.
    """
    for logger in loggers_of([name for name in names if name in EXTRAS], run):
        run.folder.mkdir(parents=True, exist_ok=True)
        log_files(logger, run.name, files)
        logger.finalize("success")
        close(logger)


def close(logger: Logger, failed: bool = False) -> None:
    """End what a logger keeps open beyond a training.

    Args:
        logger: The logger.
        failed: Whether the training broke off.
    """
    if isinstance(logger, WandbLogger) and logger._experiment is not None:
        logger.experiment.finish(exit_code=int(failed))


class Tracking(Callback):
    """Gives trackers the configuration when a training starts, files and checkpoint at its end.

    Args:
        run: The run.
        config: Its configuration.
    """

    def __init__(self, run: TrackedRun, config: dict[str, Any]) -> None:
        self.run = run
        self.options = dict(_options(config))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the hyperparameters; note under which ids the trackers know the run."""
        if not trainer.is_global_zero:
            return
        ids = {}
        for logger in trainer.loggers:
            # A value of a run that goes on cannot be changed in MLflow; TensorBoard takes those of
            # a sweep's table (`sweep.runner`).
            if not self.run.continued and not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.options)
            if isinstance(logger, WandbLogger):
                ids["wandb"] = str(logger.experiment.id)
                if logger.experiment.offline:
                    where = Path(logger.experiment.dir).parent
                    rank_zero_info(f"Weights & Biases, offline; `wandb sync {where}` sends it")
            elif isinstance(logger, MLFlowLogger):
                ids["mlflow"] = str(logger.run_id)
        if ids:
            replace_file(self.run.folder / TRACKER_IDS, json.dumps(ids).encode())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log configuration and metrics as files, and register the best checkpoint."""
        if not trainer.is_global_zero:
            return
        folder = self.run.folder
        for logger in trainer.loggers:
            log_files(logger, f"{self.run.name}-files", [folder / CONFIG, folder / METRICS])
            if (folder / BEST).is_file():
                register_checkpoint(logger, self.run.name, folder / BEST)


def _options(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield options under their short names, as they are typed."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _options(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
