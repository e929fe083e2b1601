"""What Lightning calls to write a run's configuration and metrics."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_overlock.runs.config import write_config
from lightning_overlock.runs.layout import METRICS
from lightning_overlock.runs.metrics_file import write_row


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
    """Writes `metrics.csv`: a row per trained epoch and a row per evaluation, all metrics in it.

    A continued run appends; an epoch that is trained again replaces its earlier row. It is a
    `Checkpoint` because Lightning calls these after the task, which logs at the epoch's end too.

    Args:
        folder: The run folder.
        epoch: Epoch of the evaluated checkpoint, for evaluations outside training.
        step: Its optimiser step.
    """

    def __init__(self, folder: Path, epoch: int | None = None, step: int | None = None) -> None:
        self.path = folder / METRICS
        self.epoch = epoch
        self.step = step
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a stand-alone validation; in training the epoch's row has it."""
        self._validated = not trainer.sanity_checking
        if trainer.state.fn == "validate":
            self._write(trainer, "validate", self.epoch, self.step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a test."""
        self._write(trainer, "test", self.epoch, self.step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row."""
        self._write(trainer, "fit", trainer.current_epoch, trainer.global_step)
        self._validated = False

    def _write(self, trainer: Trainer, stage: str, epoch: int | None, step: int | None) -> None:
        # Asked for by all processes: Lightning reduces them over all of them here.
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        row: dict[str, Any] = {"stage": stage, "epoch": epoch, "step": step}
        for name, value in metrics.items():
            # The last validation's values stay around in epochs without validation.
            stale = stage == "fit" and name.startswith("val/") and not self._validated
            if not stale and not name.endswith("_step"):
                row[name] = f"{float(value):.6g}"
        write_row(self.path, row)
