"""The metrics of a run as one CSV file."""

import csv
import fcntl
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class MetricsFile(Checkpoint):
    """Writes `metrics.csv`: a row per trained epoch and a row per evaluation, all metrics in it.

    A continued run appends; an epoch that is trained again replaces its earlier row. It is a
    `Checkpoint` because Lightning calls these after the task, which logs at the epoch's end too.

    Args:
        path: The CSV file.
        epoch: Epoch of the evaluated checkpoint, for evaluations outside training.
        step: Its optimiser step.
    """

    def __init__(self, path: Path, epoch: int | None = None, step: int | None = None) -> None:
        self.path = path
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        with self.path.open("r+", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a validation may run beside the training
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
            if stage == "fit" and epoch is not None:
                rows = [r for r in rows if r["stage"] != "fit" or int(r["epoch"]) < epoch]
            rows.append(row)
            columns = list(dict.fromkeys(name for r in rows for name in r))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            # Shortened only afterwards, so that a kill leaves no empty file.
            file.seek(0)
            file.write(text.getvalue())
            file.truncate()
