"""Progress for output that is no terminal."""

import math
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only


class EpochLines(Checkpoint):
    """Prints one line of metrics per epoch, where a progress bar would fill a log file.

    It is a `Checkpoint` because Lightning calls these after the task.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of an epoch that is continued in its middle."""
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        epochs = trainer.max_epochs
        of = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        metrics = format_metrics(trainer)
        seconds = time.monotonic() - self._start
        print(f"epoch {trainer.current_epoch + 1}{of}  {metrics}  {seconds:.1f} s", flush=True)


def format_metrics(trainer: Trainer) -> str:
    """Return the metrics of the last epoch in one line, without those that have no value."""
    values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    return "  ".join(
        f"{name} {value:.4g}"
        for name, value in values.items()
        # A set without an object of a size has no precision for it.
        if not name.endswith("_step") and not (math.isnan(value) and not name.startswith("train/"))
    )
