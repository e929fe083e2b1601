"""Images per second of a training."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `train/images_per_second` of each epoch over all processes.

    The time for loading counts, that of validations amid an epoch does not. Where an epoch is
    continued in its middle, the rest of it is measured.
    """

    def __init__(self) -> None:
        self.images = 0
        self._seconds = 0.0
        self._tick = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; an epoch that is continued in its middle has no other start."""
        self._tick = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting images."""
        self.images, self._seconds, self._tick = 0, 0.0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count images and time."""
        now = time.perf_counter()
        self.images += len(batch[0])
        self._seconds += now - self._tick
        self._tick = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of a validation out."""
        self._tick = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the throughput."""
        if self._seconds:
            rate = self.images * trainer.world_size / self._seconds
            pl_module.log("train/images_per_second", rate)
