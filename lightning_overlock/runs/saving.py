"""Which checkpoints a run keeps: the last one, the best one, and one when it is interrupted."""

import math
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_overlock.errors import Interrupted
from lightning_overlock.runs.layout import BEST, LAST
from lightning_overlock.runs.lock import is_rank_zero

STOPPING = "\nStopping after this step to save it; once more stops at once."


class BestAndLast(Checkpoint):
    """Keeps `best.ckpt` and `last.ckpt` in one folder, under these fixed names.

    `last.ckpt` is written at the end of every epoch and when Ctrl-C or SIGTERM stops the run (after
    the optimiser step in hand, so that it continues exactly there), never after an error.
    `best.ckpt` is written when a validation improves on the best so far, also across restarts and
    wherever the run folder has moved since. Lightning's ModelCheckpoint forgets the best score when
    the folder moves, writes the last checkpoint only where it validates, and knows no signals.

    Args:
        folder: The run folder.
        monitor: The logged metric that decides which is best.
        mode: "max" or "min".
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.best_model_score: float | None = None
        self._signum: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, "" as long as there is none (read by `ckpt_path="best"`)."""
        path = self.folder / BEST
        return str(path) if self.best_model_score is not None and path.is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run must know."""
        return {"best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over, if the checkpoint that reached it is here."""
        if (self.folder / BEST).is_file():
            self.best_model_score = state_dict["best_model_score"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best checkpoint."""
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or score is None:
            return
        value, best = float(score), self.best_model_score
        if math.isnan(value):  # of a set without an object, for example
            return
        if best is None or (value > best if self.mode == "max" else value < best):
            self.best_model_score = value
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last checkpoint."""
        self._save(trainer, LAST)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if a signal came during the end of the last epoch, which is saved."""
        self._stop_if_asked(trainer, save=False)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop after this step if a signal asked for it."""
        # Between accumulated batches gradients would be lost; the last batch of an epoch still
        # has its validation before it.
        between = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if not between and not trainer.is_last_batch:
            self._stop_if_asked(trainer, save=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT]
        environment = trainer._accelerator_connector.cluster_environment
        # Under SLURM Lightning saves and requeues itself, and passes over SIGTERM.
        if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
            signals.append(signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            raise KeyboardInterrupt
        self._signum = signum
        if is_rank_zero():
            try:
                print(STOPPING, flush=True)
            except RuntimeError:  # the signal came while a line was being printed
                os.write(1, f"{STOPPING}\n".encode())

    def _save(self, trainer: Trainer, name: str) -> None:
        """Save under another name first: whatever kills the process, the checkpoint is whole."""
        part = self.folder / f"{name}.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.folder / name)

    def _stop_if_asked(self, trainer: Trainer, save: bool) -> None:
        asked = self._signum is not None
        if trainer.world_size > 1:  # all processes must stop at the same step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            if save:
                self._save(trainer, LAST)
            raise Interrupted(self._signum or signal.SIGINT)
