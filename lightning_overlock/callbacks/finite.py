"""A training that has left the finite numbers stops, and its good checkpoints stay."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_overlock.errors import InputError


class StopAtNonFinite(Callback):
    """Stops at a loss that is not finite, and saves no checkpoint with weights that are NaN."""

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Stop all processes before any weight changes.

        Raises:
            InputError: The loss is not finite.
        """
        finite = bool(torch.isfinite(loss))
        # All must stop together: one that goes on would wait for the others' gradients.
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            value = "not finite on another process" if finite else loss.item()
            rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
            raise InputError(
                f"the loss is {value} at step {trainer.global_step} (epoch "
                f"{trainer.current_epoch}), learning rate {rate:.3g}; checkpoints already saved "
                "are good\ntry a lower model.lr, more model.warmup_epochs, "
                "trainer.gradient_clip_val 5, or trainer.precision bf16-mixed or 32-true instead "
                "of 16-mixed"
            )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights that are NaN over good ones.

        Raises:
            InputError: Weights are NaN.
        """
        weights = checkpoint["state_dict"]
        if bad := [name for name, value in weights.items() if bool(value.isnan().any())]:
            raise InputError(
                f"weights are NaN at step {trainer.global_step} ({bad[0]}); no checkpoint was "
                "saved, earlier ones are good\ntry a lower model.lr or "
                "trainer.gradient_clip_val 5"
            )
