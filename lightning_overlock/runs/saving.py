"""Which checkpoints a run keeps: the last one, the best one, and one when it is interrupted."""

import io
import math
import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_overlock.errors import Interrupted
from lightning_overlock.runs.checkpoint import read_progress
from lightning_overlock.runs.disk import replace_file, writing
from lightning_overlock.runs.layout import BEST, LAST, PREVIOUS_BEST
from lightning_overlock.runs.lock import is_rank_zero
from lightning_overlock.runs.resume import validation_is_due
from lightning_overlock.runs.slurm import requeue_job

EARLIER_ARE_GOOD = (
    "Checkpoints already saved are good: make room, then continue with --ckpt_path last."
)
STOPPING = "\nStopping after this step to save it; once more stops at once."


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints so that a file is whole at every moment, beside where it belongs.

    Lightning's own way goes through the system's temporary folder, which may be small, and copies
    from there, which may be interrupted.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write one.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        file = Path(path)
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        replace_file(file, content.getbuffer(), EARLIER_ARE_GOOD)


class BestAndLast(Checkpoint):
    """Keeps `best.ckpt` and `last.ckpt` in one folder, under these fixed names.

    `last.ckpt` is written after every validation and every epoch, and when Ctrl-C, SIGTERM or
    SLURM's signal for requeueing stops the run, never after an error. `best.ckpt` is a copy of it,
    made when a validation improves on the best so far, also across restarts and wherever the run
    folder has moved since. Lightning's ModelCheckpoint forgets the best score when the folder
    moves, and knows no signals.

    A validation that is made only because training stops amid an epoch is not the run's if it goes
    on: the best checkpoint before it is kept until then.

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
        self.best_step: int | None = None
        self._before: dict[str, Any] | None = None
        self._improved = False
        self._signum: int | None = None
        self._interrupts = 0
        self._requeue_signum: int | None = None
        self._requeue = False
        self._handlers: dict[int, Any] = {}

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, "" as long as there is none (read by `ckpt_path="best"`)."""
        path = self.folder / BEST
        return str(path) if self.best_model_score is not None and path.is_file() else ""

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run must know."""
        return {
            "best_model_score": self.best_model_score,
            "best_step": self.best_step,
            "before": self._before,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score over."""
        self.best_model_score = state_dict["best_model_score"]
        self.best_step = state_dict.get("best_step")
        self._before = state_dict.get("before")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have checkpoints written whole."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()

    # Best

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the loaded checkpoint if it is the best, and the process was killed before that."""
        if self.best_step is None or not trainer.ckpt_path or not trainer.is_global_zero:
            return
        loaded = Path(trainer.ckpt_path)
        inside = loaded.resolve().parent == (self.folder / LAST).resolve().parent
        steps = {_step_of(self.folder / BEST), _step_of(self.folder / PREVIOUS_BEST)}
        if inside and self.best_step not in steps and _step_of(loaded) == self.best_step:
            self._copy_to_best(loaded)

    def _reconcile(self, trainer: Trainer) -> None:
        """Make the best checkpoint the one that the loaded checkpoint knows of."""
        best, previous = self.folder / BEST, self.folder / PREVIOUS_BEST
        if self._before is not None and not validation_is_due(trainer):
            self.best_model_score = self._before["best_model_score"]
            self.best_step = self._before["best_step"]
        self._before = None
        if self.best_step is not None and self.best_step == _step_of(previous):
            previous.replace(best)
        previous.unlink(missing_ok=True)
        if not best.is_file():  # a new run that continues another's checkpoint
            self.best_model_score = self.best_step = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether this is the best so far, and save amid an epoch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = trainer.callback_metrics.get(self.monitor)
        value = math.nan if score is None else float(score)
        best = self.best_model_score
        # It is NaN on a set without an object, for example.
        if not math.isnan(value) and (
            best is None or (value > best if self.mode == "max" else value < best)
        ):
            if not self._is_final_only(trainer):
                self._before = None
            elif self._before is None:
                self._before = {"best_model_score": best, "best_step": self.best_step}
            self.best_model_score, self.best_step = value, trainer.global_step
            self._improved = True
        if trainer.is_last_batch or _is_at_last_step(trainer):  # the epoch's end saves
            return
        if trainer.world_size > 1 and trainer.fit_loop._should_accumulate():
            # Without the gradients of the other processes nothing could go on from here.
            if self._improved:
                trainer.save_checkpoint(self.folder / BEST)
            self._improved = False
            return
        self._save(trainer)
        self._stop_if_asked(trainer, save=False)

    def _is_final_only(self, trainer: Trainer) -> bool:
        """Tell whether the run would not have this validation if it went on."""
        if not validation_is_due(trainer):
            return True
        trained = trainer.fit_loop.batch_idx + 1
        cut_short = trainer.is_last_batch and trained < len(trainer.train_dataloader or ())
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        return cut_short and (last_epoch or trainer.global_step == trainer.max_steps)

    def _copy_to_best(self, path: Path) -> None:
        best, previous = self.folder / BEST, self.folder / PREVIOUS_BEST
        if self._before is not None and best.is_file() and not previous.exists():
            best.replace(previous)
        part = best.with_name(f"{best.name}.part")
        with writing(best, EARLIER_ARE_GOOD):
            try:
                shutil.copyfile(path, part)
                part.replace(best)
            finally:
                part.unlink(missing_ok=True)
        if self._before is None:
            previous.unlink(missing_ok=True)

    # Last

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / LAST)
        if self._improved and trainer.is_global_zero:
            self._copy_to_best(self.folder / LAST)
        self._improved = False

    # Signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle which checkpoint is the best, and listen for signals."""
        if trainer.is_global_zero:
            self._reconcile(trainer)
        if threading.current_thread() is not threading.main_thread():
            return
        # SLURM's SIGTERM is a cancelled job, a preempted one, or one whose time is over.
        signals = [signal.SIGINT, signal.SIGTERM]
        environment: Any = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signum = environment.requeue_signal or signal.SIGUSR1
            signals.append(self._requeue_signum)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save and stop after this step if a signal asked for it."""
        if not (trainer.fit_loop._should_accumulate() or _is_at_last_step(trainer)):
            self._stop_if_asked(trainer, save=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Do not wait for the end of a validation, which the continued run makes anew."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        # Several processes would have to agree after every batch.
        if training and trainer.world_size == 1 and not _is_at_last_step(trainer):
            self._stop_if_asked(trainer, save=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if a signal came during the end of the last epoch, which is saved."""
        self._stop_if_asked(trainer, save=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        # A cluster's SIGTERM goes to all processes of a job, and so comes beside the runner's
        # SIGINT: only who presses Ctrl-C twice is in a hurry.
        self._interrupts += signum == signal.SIGINT
        self._requeue |= signum == self._requeue_signum
        if self._interrupts == 2:
            raise KeyboardInterrupt
        if self._signum is not None:
            return
        self._signum = signum
        if is_rank_zero():
            try:
                print(STOPPING, flush=True)
            except RuntimeError:  # the signal came while a line was being printed
                os.write(1, f"{STOPPING}\n".encode())

    def _stop_if_asked(self, trainer: Trainer, save: bool) -> None:
        asked = self._signum is not None
        if trainer.world_size > 1:  # all processes must stop at the same step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if not asked:
            return
        if save:
            self._save(trainer)
        signum = self._signum or signal.SIGINT
        if self._requeue and not self._interrupts and trainer.is_global_zero:
            requeue_job()
        raise Interrupted(signum)


def _is_at_last_step(trainer: Trainer) -> bool:
    """Tell whether nothing is left but a validation; a run continued there would not make it."""
    return trainer.global_step == trainer.max_steps


def _step_of(path: Path) -> int | None:
    return read_progress(path).get("global_step")
