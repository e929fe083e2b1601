"""Where a checkpoint stands in its run, so that training goes on exactly there.

Lightning's own record takes an epoch that was cut short for a whole one, passes over a validation
that was due, and forgets the running means of the epoch and the gradients of batches accumulated.
A checkpoint therefore holds its `Position` as well, and the loops are set to it when it is loaded.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_overlock.data.loaders import TrainLoader
from lightning_overlock.errors import InputError


@dataclass(frozen=True)
class Position:
    """How far a run has come; the state of a run between two batches.

    Attributes:
        epoch: The epoch in hand, from 0.
        batch: How many batches of it are trained.
        batches: How many it has.
        total_batches: Batches trained in all epochs.
        step: Optimiser steps.
        ended: Whether the epoch has ended, its last validation included.
        validated: Whether the validation after this batch is done, if one is due there.
        images_per_step: Images of a step of all processes; 0 where the loader does not say.
    """

    epoch: int
    batch: int
    batches: int
    total_batches: int
    step: int
    ended: bool
    validated: bool
    images_per_step: int


def validation_is_due(trainer: Trainer) -> bool:
    """Tell whether the schedule has a validation after the batch that was trained last.

    A validation is also made where training is stopped amid an epoch. The run that goes on does
    not have it.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    epoch, batch = trainer.current_epoch, float(progress.current.ready)
    if batch == 0:  # between two epochs
        epoch, batch = epoch - 1, float(trainer.num_training_batches)
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or interval is None:
        return False
    if every is None:
        return progress.total.ready % interval == 0
    last = batch == trainer.num_training_batches or progress.is_last_batch
    return (epoch + 1) % every == 0 and (last if math.isinf(interval) else batch % interval == 0)


class ExactResume(Callback):
    """Saves where a run stands, and continues a run exactly there.

    A run that was stopped anywhere and continued ends in the same weights, optimiser state and
    metrics as one that never stopped, as long as the order of its images is a function of the seed
    (`data.loading`) and its random numbers are drawn anew for each batch (`tasks.base`).

    A task adds it by itself (`BaseTask.configure_callbacks`).

    Args:
        allow_changes: Continue with another batch size, seed or number of images, too.
    """

    def __init__(self, allow_changes: bool = False) -> None:
        self.allow_changes = allow_changes
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._checkpoint: dict[str, Any] = {}
        self._sums: dict[str, dict[str, Any]] = {}  # of the epoch, before it was interrupted
        self._logged: dict[str, Any] = {}
        self._validated_at = 0
        self._stop_later = False
        self._batches = 0  # since the start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; come after all that may stop the run, as Lightning's Timer."""
        self._start_afresh()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if callback is not self]
        savers = [callback for callback in others if isinstance(callback, Checkpoint)]
        # Another list: Lightning goes through this one.
        callbacks = [*(c for c in others if c not in savers), self, *savers]
        trainer.callbacks = callbacks  # type: ignore[attr-defined]

    # Saving

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the position and what Lightning leaves out."""
        position = self._position(trainer)
        checkpoint["position"] = asdict(position)
        checkpoint["order"] = _loader_state(trainer)
        checkpoint["epoch_sums"] = _gather(self._merged_sums(trainer), trainer)
        # While an epoch goes on, what is logged at its end is not yet known.
        epochs: Any = trainer.fit_loop.epoch_progress.current
        at_end = epochs.processed == epochs.ready
        checkpoint["logged"] = self._logged if at_end else dict(trainer.callback_metrics)
        if _between_steps(position, trainer) and trainer.world_size == 1:
            checkpoint["gradients"] = {
                name: parameter.grad
                for name, parameter in pl_module.named_parameters()
                if parameter.grad is not None
            }

    def _position(self, trainer: Trainer) -> Position:
        # Lightning declares less than these have.
        epochs: Any = trainer.fit_loop.epoch_progress.current
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        batches = trainer.num_training_batches
        epoch = max(epochs.ready - 1, 0)
        # In `on_train_epoch_start` the count is still that of the epoch before.
        batch = progress.current.processed if epochs.started == epochs.ready else 0
        finished = epochs.ready > 0 and epochs.processed == epochs.ready
        if finished and batch == 0:  # loaded, and nothing was trained since
            epoch, finished = epoch + 1, False
        total = progress.total.processed
        return Position(
            epoch=epoch,
            batch=batch,
            batches=-1 if math.isinf(batches) else int(batches),
            total_batches=total,
            step=trainer.global_step,
            ended=finished and (batch >= batches or progress.is_last_batch),
            validated=self._validated_at == total,
            images_per_step=_loader_state(trainer).get("images per step", 0),
        )

    def _merged_sums(self, trainer: Trainer) -> dict[str, dict[str, Any]]:
        """Return the running sums of this epoch's metrics, with what came before a break."""
        sums = dict(self._sums)
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            meta = metric.meta
            # What is logged when an epoch ends is no sum over its batches.
            per_batch = meta.on_epoch and not meta.fx.startswith("on_train_epoch")
            if not per_batch or not metric.is_tensor or metric.has_reset:
                continue
            found = {
                "fx": meta.fx,
                "name": meta.name,
                "prog_bar": meta.prog_bar,
                "logger": meta.logger,
                "on_step": meta.on_step,
                "reduce_fx": meta.reduce_fx.__name__,
                "sync_dist": meta.sync.should,
                "rank_zero_only": meta.sync.rank_zero_only,
                "value": metric.value,
                "size": getattr(metric, "cumulated_batch_size", torch.tensor(0)),
            }
            sums[key] = _add(sums[key], found) if key in sums else found
        return sums

    # Loading

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint for `on_fit_start`."""
        if trainer.state.fn == TrainerFn.FITTING and "position" in checkpoint:
            self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the loops' record in the checkpoint, which Lightning reads next.

        Raises:
            InputError: If the rest of the run would not be the rest of the same run.
        """
        checkpoint = self._checkpoint
        if not checkpoint:
            return
        loops = checkpoint["loops"]["fit_loop"]
        try:
            position = Position(**checkpoint["position"])
        except TypeError as error:
            raise InputError(
                f"checkpoint {trainer.ckpt_path} was saved by another version of this package, "
                f"which notes its place otherwise\nexpected one of this version ({error})"
            ) from error
        saved, now = checkpoint["order"], _loader_state(trainer)
        if not self.allow_changes:
            self._refuse_changes(trainer, saved, now)
        accumulated = _between_steps(position, trainer) and not position.ended
        position = _where_to_continue(position, trainer, now.get("images per step", 0))
        checkpoint["loops"]["fit_loop"] = loops | _loop_states(position, loops)
        self._validated_at = position.total_batches if position.validated else -1
        if position.batch == 0:
            self._checkpoint = {}
            return
        ranks = checkpoint["epoch_sums"]
        if len(ranks) == trainer.world_size:
            self._sums = ranks[trainer.global_rank]
        if accumulated and "gradients" not in checkpoint:
            raise InputError(
                f"checkpoint {trainer.ckpt_path} was saved between two accumulated batches of "
                "several processes, without their gradients\nexpected last.ckpt of that run"
            )

    def _refuse_changes(self, trainer: Trainer, saved: dict[str, int], now: dict[str, int]) -> None:
        changes = [
            f"{name} {saved.get(name, 0)} (now {now[name]})"
            for name in now
            if saved.get(name, 0) != now[name]
        ]
        if changes:
            raise InputError(
                f"the checkpoint {trainer.ckpt_path} was made with {', '.join(changes)}\n"
                "Expected the same, or the run would not be continued exactly; "
                "--allow_changes true continues it all the same."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up what was logged and accumulated."""
        trainer._logger_connector._callback_metrics.update(self._checkpoint.get("logged", {}))
        gradients = self._checkpoint.get("gradients", {})
        for name, parameter in pl_module.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)
        self._checkpoint = {}
        trained = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if trained == trainer.num_training_batches and not validation_is_due(trainer):
            # Lightning looks for this, and would train a batch more than the epoch has.
            trainer.fit_loop.epoch_loop.val_loop._has_run = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the interrupted epoch's sums up, once Lightning has started its own."""
        if self._batches == 1:
            self._put_back(trainer)
        if self._batches == 0 and pl_module.automatic_optimization:
            # The loggers' count of steps, which a restart may be one off with.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._batches += 1

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Do not stop between accumulated batches."""
        self._stop_after_step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the sums up."""
        if self._batches:
            self._put_back(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the validation is done."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validated_at = trainer.fit_loop.total_batch_idx + 1
            self._stop_after_step(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the sums up if the epoch had no more batches."""
        self._put_back(trainer)
        trainer.fit_loop.epoch_loop.on_iteration_done()  # so that the next one starts at 0
        self._logged = dict(trainer._logger_connector._callback_metrics)

    def _stop_after_step(self, trainer: Trainer) -> None:
        if trainer.fit_loop._should_accumulate():
            self._stop_later = self._stop_later or trainer.should_stop
            trainer.should_stop = False
        elif self._stop_later:
            trainer.should_stop = True

    def _put_back(self, trainer: Trainer) -> None:
        if not self._sums:
            return
        results = trainer.fit_loop.epoch_loop._results
        merged, self._sums = self._merged_sums(trainer), {}
        for key, sums in merged.items():
            if key not in results or results[key].has_reset:
                results.log(
                    sums["fx"],
                    sums["name"],
                    sums["value"].to(trainer.strategy.root_device),
                    prog_bar=sums["prog_bar"],
                    logger=sums["logger"],
                    on_step=sums["on_step"],
                    on_epoch=True,
                    reduce_fx=sums["reduce_fx"],
                    sync_dist=sums["sync_dist"],
                    sync_dist_fn=trainer.strategy.reduce,
                    batch_size=1,
                    rank_zero_only=sums["rank_zero_only"],
                )
            metric = results[key]
            metric.value = sums["value"].to(metric.value.device)
            if metric.meta.is_mean_reduction:
                metric.cumulated_batch_size = sums["size"].to(metric.value.device)
            metric._computed = None


def _where_to_continue(position: Position, trainer: Trainer, images_per_step: int) -> Position:
    """Return the position in terms of this run's batches."""
    values = asdict(position)
    batches = trainer.num_training_batches
    if trainer.fit_loop._combined_loader is None:  # the task has not asked for the data yet
        batches = position.batches if position.batches >= 0 else math.inf
    same_batches = images_per_step in {0, position.images_per_step}
    if not same_batches and not position.ended:
        # The first batch without an image that was trained already.
        values["batch"] = -(-position.batch * position.images_per_step // images_per_step)
    batch = values["batch"]
    # An epoch that a limit had ended goes on if the limit is higher now.
    goes_on = batch < batches and (same_batches or not position.ended)
    pending = batch == batches and not position.ended
    values["ended"] = False
    if batch and not (goes_on or pending):
        values |= {"epoch": position.epoch + 1, "batch": 0}
    values["validated"] = position.validated or values["batch"] == 0
    values["batches"] = int(batches) if not math.isinf(batches) else -1
    return Position(**values)


def _loop_states(position: Position, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the state of Lightning's loops at a position."""
    epoch, batch, total = position.epoch, position.batch, position.total_batches
    begun = epoch + 1 if batch else epoch
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    # A validation that was interrupted starts anew; this is how Lightning recognises one.
    pending = 0 if position.validated else 1
    val_total = {"ready": pending, "started": pending, "processed": 0, "completed": 0}
    zero_grads = saved["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["zero_grad"]
    zeroed = zero_grads["total"]["completed"]
    return {
        "epoch_progress": {"total": dict(epochs), "current": dict(epochs)},
        "epoch_loop.state_dict": {"_batches_that_stepped": max(position.step - 1, 0)},
        "epoch_loop.batch_progress": {
            "total": _all(total),
            "current": _all(batch),
            "is_last_batch": 0 < batch == position.batches,
        },
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": {
                    "total": {"ready": position.step, "completed": position.step},
                    "current": {"ready": 0, "completed": 0},
                },
                "zero_grad": {
                    "total": {"ready": zeroed, "started": zeroed, "completed": zeroed},
                    "current": {"ready": 0, "started": 0, "completed": 0},
                },
            }
        },
        "epoch_loop.val_loop.batch_progress": {
            "total": val_total,
            "current": _all(0),
            "is_last_batch": False,
        },
    }


def _all(count: int) -> dict[str, int]:
    return {"ready": count, "started": count, "processed": count, "completed": count}


def _between_steps(position: Position, trainer: Trainer) -> bool:
    last = position.batch == position.batches
    return not last and position.batch % trainer.accumulate_grad_batches != 0


def _loader_state(trainer: Trainer) -> dict[str, int]:
    """Return what defines the order of the training images, if the loader is ours."""
    loader = trainer.train_dataloader
    return loader.state_dict() if isinstance(loader, TrainLoader) else {}


def _add(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    reduce = {"max": torch.maximum, "min": torch.minimum}.get(second["reduce_fx"], torch.add)
    one, other = (sums["value"].to(second["value"].device) for sums in (first, second))
    size = first["size"].to(second["size"].device) + second["size"]
    return second | {"value": reduce(one, other), "size": size}


def _gather(sums: dict[str, Any], trainer: Trainer) -> list[dict[str, Any]]:
    """Return the sums of every process."""
    own = {
        key: {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
        for key, entry in sums.items()
    }
    if trainer.world_size == 1:
        return [own]
    found: list[dict[str, Any]] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(found, own)
    return found
