"""What Lightning calls to write a run's configuration and metrics."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_overlock.runs.config import write_config
from lightning_overlock.runs.metrics_file import (
    ALL_OF_TRAINING,
    AMID_EPOCH,
    EPOCH,
    format_value,
    read_curve,
    revise_rows,
    write_row,
)
from lightning_overlock.runs.resume import validation_is_due


class RunConfig(Callback):
    """Writes the configuration to a file when training starts, and into every checkpoint.

    Args:
        text: The configuration as YAML.
        folder: The run folder, None to write no file.
    """

    def __init__(self, text: str, folder: Path | None) -> None:
        self.text = text
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        if stage == "fit" and self.folder is not None and trainer.is_global_zero:
            write_config(self.folder, self.text)

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Add the key "config"."""
        checkpoint["config"] = self.text


class MetricsFile(Checkpoint):
    """Writes `metrics.csv`: a row per epoch, validation amid an epoch and evaluation.

    An epoch's row has the metrics of its validation if that comes at its end. A continued run drops
    the rows that were written after its checkpoint. It is a `Checkpoint` because Lightning calls
    these after the task, which logs at the epoch's end too.

    Args:
        folder: The run folder.
        epoch: Epoch of the evaluated checkpoint, for evaluations outside training.
        step: Its optimiser step.
    """

    def __init__(self, folder: Path, epoch: int | None = None, step: int | None = None) -> None:
        self.folder = folder
        self.epoch = epoch
        self.step = step
        self._rows = 0  # of training
        self._validated_at = -1

    def state_dict(self) -> dict[str, int]:
        """Return how many rows this run has."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Note how many rows the checkpoint knows of."""
        self._rows = state_dict.get("rows", 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what was written after the checkpoint that is continued."""
        amid_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0
        known, epoch, step = self._rows, trainer.current_epoch, trainer.global_step
        # Else it was made because training stopped.
        due = validation_is_due(trainer)
        steps_seen: set[int] = set()

        def revise(number: int, row: dict[str, str]) -> dict[str, str] | None:
            of_this_step = int(row["step"]) == step
            if number >= known or (row["stage"] == AMID_EPOCH and of_this_step and not due):
                return None
            if row["stage"] == EPOCH and of_this_step and not due:
                row = {name: value for name, value in row.items() if not name.startswith("val/")}
            if row["stage"] == EPOCH and amid_epoch and int(row["epoch"]) >= epoch:
                # An epoch that goes on has no row yet; a validation that came last in it has.
                if not due or not of_this_step or step in steps_seen:
                    return None
                row = {name: v for name, v in row.items() if not name.startswith("train/")}
                row["stage"] = AMID_EPOCH
            steps_seen.add(int(row["step"]))
            return row

        if trainer.is_global_zero:
            revise_rows(self.folder, revise)
        self._rows = len(read_curve(self.folder, *ALL_OF_TRAINING))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a validation by itself or amid an epoch; else the epoch's row has it."""
        if trainer.state.fn == "validate":
            self._write(trainer, "validate", self.epoch, self.step)
        elif not trainer.sanity_checking:
            self._validated_at = trainer.fit_loop.total_batch_idx
            if not trainer.is_last_batch:
                self._write(trainer, AMID_EPOCH, trainer.current_epoch, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a test."""
        self._write(trainer, "test", self.epoch, self.step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row."""
        self._write(trainer, EPOCH, trainer.current_epoch, trainer.global_step)

    def _write(self, trainer: Trainer, stage: str, epoch: int | None, step: int | None) -> None:
        # Asked for by all processes: Lightning reduces them over all of them here.
        metrics = trainer.callback_metrics
        self._rows += stage in ALL_OF_TRAINING
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"stage": stage, "epoch": epoch, "step": step}
        # Values stay around: of the last validation, and amid an epoch of the last epoch.
        stale: tuple[str, ...] = ()
        if stage == EPOCH and self._validated_at != trainer.fit_loop.total_batch_idx:
            stale = ("val/",)
        elif stage == AMID_EPOCH:
            stale = ("train/",)
        for name, value in metrics.items():
            if not name.startswith(stale) and not name.endswith("_step"):
                row[name] = format_value(float(value), value.dtype == torch.float64)
        write_row(self.folder, row)
