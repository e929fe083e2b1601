"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_overlock.errors import InputError


class EMA(Callback):
    """Keep an exponential moving average of weights and buffers; evaluate it and save it.

    After every optimiser step, average = d * average + (1 - d) * weights; integer buffers are
    copied. As in timm's `ModelEmaV3`, the average starts as a copy of the weights after the first
    step, so until then there is none, and validation and checkpoints take the weights themselves.
    Validation during `fit` and everything after it sees the average. It is kept in float32 where
    the weights have 16 bits: there most steps of a slow average are smaller than the last bit.

    A checkpoint holds the average as `state_dict`, so that whoever loads it gets the average, and
    the weights in training as `current_model_state`. Unlike Lightning's `WeightAveraging`, which
    uses the same two keys, it holds the right one in each whenever it is saved: amid a validation,
    by Ctrl-C and after training, too.

    Args:
        decay: Factor d of the average, between 0 and 1; None turns the average off.
        warmup: Let d rise with the step t as min(decay, 1 - (1 + t)^(-2/3)), for runs that are not
            many times longer than 1 / (1 - decay) steps.

    Raises:
        InputError: `decay` is out of range, or a run with an average is resumed without.
    """

    def __init__(self, decay: float | None = None, warmup: bool = False) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise InputError(f"ema.decay is {decay}, expected a number in [0, 1) or null")
        if warmup and decay is None:
            raise InputError(
                "ema.warmup is true without ema.decay, expected a decay such as 0.9999"
            )
        self.decay = decay
        self.warmup = warmup
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._average: dict[str, Tensor] = {}
        self._updates = 0
        self._latest_step = 0
        # The weights in training, as long as the average is in the module.
        self._held: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the average of an earlier fit."""
        if stage == "fit":
            self._start_afresh()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up a resumed average where the run goes on."""
        self._latest_step = trainer.global_step
        self._average = {
            name: _at_least_float32(value.to(pl_module.device))
            for name, value in self._average.items()
        }

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the average if this batch ended with an optimiser step."""
        if self.decay is None or trainer.global_step == self._latest_step:
            return
        self._latest_step = trainer.global_step
        if not self._average:
            self._average = {
                name: _at_least_float32(value).clone()
                for name, value in pl_module.state_dict().items()
            }
        else:
            self._update(pl_module.state_dict(), 1 - self._decay_of(self._updates))
        self._updates += 1

    def _decay_of(self, update: int) -> float:
        assert self.decay is not None
        return min(self.decay, 1 - (1 + update) ** (-2 / 3)) if self.warmup else self.decay

    def _update(self, weights: dict[str, Tensor], share: float) -> None:
        averaged = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._average[name] for name in averaged],
            [_at_least_float32(weights[name]) for name in averaged],
            share,
        )
        for name, value in weights.items():
            if not value.is_floating_point():
                self._average[name].copy_(value)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights in training back."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put the weights in training back after an interrupted validation."""
        if self._held and trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        self._swap(pl_module)

    @contextmanager
    def average_in(self, module: LightningModule) -> Iterator[None]:
        """Have the average in the module for a block, if there is one."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def _swap(self, module: LightningModule) -> None:
        """Put the average into the module, or take it out, if there is one."""
        if not self._average:
            return
        found = module.state_dict()
        if self._held:
            values, self._held = self._held, {}
        else:
            values, self._held = self._average, {n: v.clone() for n, v in found.items()}
        for name, value in found.items():
            value.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return how often the average was updated."""
        return {"updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count updates."""
        self._updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as `state_dict`, the weights in training as `current_model_state`."""
        if not self._average:
            return
        checkpoint["current_model_state"] = self._held or checkpoint["state_dict"]
        checkpoint["state_dict"] = self._average

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume with both; evaluation has the average from `state_dict` already."""
        if trainer.state.fn != TrainerFn.FITTING or "current_model_state" not in checkpoint:
            return
        if self.decay is None:
            raise InputError(
                f"checkpoint {trainer.ckpt_path} was made with an average of the weights, this run "
                "keeps none\nexpected ema.decay as in that run"
            )
        self._average = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint["current_model_state"])


def _at_least_float32(value: Tensor) -> Tensor:
    """Return weights in 16 bits as float32; others are returned as they are."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
