"""What every task shares: backbone, recipe, exact resuming, and watching over the training."""

import math
import random
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lightning_overlock.backbones.compile import compile_blocks
from lightning_overlock.backbones.create import create_backbone, input_channels
from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.backbones.weights import differences, start_from
from lightning_overlock.callbacks.finite import StopAtNonFinite
from lightning_overlock.callbacks.supported import refuse_unsupported
from lightning_overlock.callbacks.throughput import Throughput
from lightning_overlock.data.loading import global_seed
from lightning_overlock.errors import InputError
from lightning_overlock.heads.release import released_heads
from lightning_overlock.optim import (
    REFERENCE_BATCH,
    Float32AdamW,
    Schedule,
    dense_parameter_groups,
    images_per_step,
    parameter_groups,
)
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_0, SHARE, Range, check_ranges
from lightning_overlock.runs.resume import ExactResume
from lightning_overlock.tasks import image_results
from lightning_overlock.tasks.batch_norm import EvaluationStatistics, ends_here, set_bn_momentum
from lightning_overlock.tasks.combinations import check_combinations
from lightning_overlock.tasks.finite_outputs import FiniteOutputs, refuse_bad_weights
from lightning_overlock.tasks.float32 import convert_all_but_sums
from lightning_overlock.tasks.predictions import tell_unreadable


class BaseTask(LightningModule):
    """A timm backbone and its training recipe.

    A task adds a signature with class names, `monitor`, `configure_losses`, `configure_metrics`,
    its training and prediction steps, and for its evaluation `reset_evaluation`, `evaluate` and
    `evaluation`. Where its network is more than a classifier, it adds `build_model`, which then
    puts heads on a `DenseFeatures`. From here it has AdamW, a learning rate that is a function of
    the step, randomness that is a function of (seed, epoch, batch, process), initial weights, the
    stop at a non-finite loss, and `lr` and `train/images_per_second` in the log. The trainer clips
    gradients (`gradient_clip_val`) and synchronises batch norms (`sync_batchnorm`).

    A run with batch norms ends with the monitored metric by running statistics and by those of the
    final weights, as `val_bn/NAME_running` and `val_bn/NAME_reestimated`.

    Args:
        class_names: Names of the classes; linked from the data.
        backbone: Name of a timm model.
        backbone_args: Arguments of that model, for example `{drop_path_rate: 0.1}`.
        pretrained: Start from timm's weights for the model.
        init_from: Start from the weights in this file: a release checkpoint, a checkpoint of this
            package (its EMA where there is one), timm's, or safetensors. A head of other classes is
            replaced. A dense model starts from a classifier's weights or a dense model's.
        lr: Peak learning rate.
        scale_lr_with_batch: Scale `lr`, meant for 1024 images, with a step's over all processes.
        schedule: How the learning rate falls: cosine, multistep, or poly.
        min_lr: Learning rate at the end of cosine and poly.
        milestones: Epochs after which multistep multiplies the learning rate by `gamma`.
        gamma: Factor of each step of multistep.
        power: Exponent of poly; 1 is a straight line.
        warmup_epochs: Length of the linear warm-up.
        warmup_steps: The same in optimiser steps, in place of `warmup_epochs`.
        warmup_lr: Learning rate that the warm-up starts from.
        warmup_factor: The same as a share of `lr`, in place of `warmup_lr`.
        cooldown_epochs: Last epochs of cosine and poly, spent at `min_lr`.
        weight_decay: That of a classifier's parameters with more than one dimension; of all of a
            dense model's but norms (`optim.dense_parameter_groups`).
        betas: AdamW's two betas.
        layer_decay: Factor on the learning rate per layer below the head; none by default.
        compile: Compile the backbone's blocks in place.
        channels_last: Keep images and weights in channels-last memory.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        bn_momentum: Weight of a new batch in batch norms' running statistics, if not the network's.
        reestimate_bn: Evaluate and save with BatchNorm statistics of so many training batches in
            place of the running ones, which lag in short runs (`tasks.batch_norm`). Same weights.
    """

    # timm's models share more than nn.Module has, but no type.
    model: Any
    metrics: Any  # by stage, "val" and "test"
    monitor: str
    monitor_mode: Literal["min", "max"] = "max"
    # Options that change how a task computes, not what it is: free to differ from a checkpoint's.
    overridable_options: frozenset[str] = frozenset(
        {"compile", "channels_last", "grad_checkpointing", "reestimate_bn"}
    )
    # What the command and the constructor hold the options against.
    ranges: ClassVar[dict[str, Range]] = {
        "lr": AT_LEAST_0,
        "min_lr": AT_LEAST_0,
        "milestones": ABOVE_0,
        "gamma": SHARE,
        "power": AT_LEAST_0,
        "warmup_epochs": AT_LEAST_0,
        "warmup_steps": AT_LEAST_0,
        "warmup_lr": AT_LEAST_0,
        "warmup_factor": SHARE,
        "cooldown_epochs": AT_LEAST_0,
        "weight_decay": AT_LEAST_0,
        "betas": Range(0, 1, open="high"),
        "layer_decay": Range(0, 1, open="low"),
        "bn_momentum": Range(0, 1, open="low"),
        "reestimate_bn": AT_LEAST_0,
    }
    min_classes = 2  # a detector of one class tells it from the background
    _apply = convert_all_but_sums
    image_transform: image_results.ImageTransform | None = None  # `load` takes the data's
    predict_images = image_results.predict_images
    rename_heads = staticmethod(released_heads)

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "overlock_xxt",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        init_from: str | None = None,
        lr: float = 1e-3,
        scale_lr_with_batch: bool = False,
        schedule: Literal["cosine", "multistep", "poly"] = "cosine",
        min_lr: float = 1e-5,
        milestones: list[float] | None = None,
        gamma: float = 0.1,
        power: float = 1.0,
        warmup_epochs: float = 0.0,
        warmup_steps: int | None = None,
        warmup_lr: float = 1e-6,
        warmup_factor: float | None = None,
        cooldown_epochs: float = 0.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        grad_checkpointing: bool = False,
        bn_momentum: float | None = None,
        reestimate_bn: int = 0,
    ) -> None:
        super().__init__()
        # These are the task's own arguments. The logger gets none: 1000 class names would fill it.
        self.save_hyperparameters(logger=False)
        check_ranges("model", self.hparams, self.ranges)
        if len(class_names) < self.min_classes:
            fewest = "two classes" if self.min_classes == 2 else "one class"
            raise InputError(f"class_names is {class_names}, expected at least {fewest}")
        check_combinations(type(self), self.hparams)
        # What the configure_* hooks and the schedule need is read from self.hparams.
        self.class_names = class_names
        self.backbone = backbone
        self._weights_pending = pretrained or init_from is not None
        self._statistics = EvaluationStatistics(reestimate_bn)
        self.outputs = FiniteOutputs()

        self.model = self.build_model(len(class_names))
        if grad_checkpointing:
            if not hasattr(self.timm_model, "set_grad_checkpointing"):
                raise InputError(f"{backbone} has no gradient checkpointing")
            self.timm_model.set_grad_checkpointing(True)
        set_bn_momentum(self.model, bn_momentum)
        if channels_last:
            # Convolutions hand the layout of their weights on to their output.
            self.model.to(memory_format=torch.channels_last)
        if compile:
            compile_blocks(self.timm_model)
        self.configure_losses()
        self.configure_metrics()

    # What a task fills in

    def build_model(self, num_classes: int) -> nn.Module:
        """Return the network for so many classes: a classifier, unless a task has another."""
        arguments = self.hparams["backbone_args"] or {}
        return create_backbone(self.backbone, arguments, num_classes=num_classes)

    def configure_losses(self) -> None:
        """Set the losses; called once from the constructor."""

    def configure_metrics(self) -> None:
        """Set the metrics; called once from the constructor."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an optimiser step; a group's is `lr_scale` times it."""
        return self._schedule.rate(step)

    # The recipe

    @property
    def features(self) -> DenseFeatures | None:
        """The dense features that the network is built on; None of a classifier."""
        parts = [part for part in self.model.modules() if isinstance(part, DenseFeatures)]
        return parts[0] if parts else None

    @property
    def timm_model(self) -> Any:
        """The backbone: the network itself of a classifier."""
        return self.features.backbone if self.features else self.model

    @property
    def data_config(self) -> dict[str, Any]:
        """How the model wants its images: input_size, mean, std, interpolation, crop_pct."""
        return resolve_model_data_config(self.timm_model)

    def configure_callbacks(self) -> list[Callback]:
        """Return what watches over every training of a task; the first hook that is called.

        Raises:
            InputError: One of the trainer's own callbacks would act against the task.
        """
        if self.trainer.state.fn == "fit":
            refuse_unsupported(self.trainer)
        # The command has one of its own.
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        exact = [] if any(isinstance(c, ExactResume) for c in callbacks) else [ExactResume()]
        return [StopAtNonFinite(), Throughput(), *exact]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build AdamW and settle the lengths of the schedule.

        The schedule needs no scheduler object: its value is set from the step alone, so a run
        resumed with other `max_epochs` follows the new length at once.
        """
        trainer = self.trainer
        # Where max_steps alone ends the run, nothing else has counted the batches by now.
        try:
            trainer.fit_loop.setup_data()
        except ValueError as error:  # an interval longer than an epoch
            raise InputError(f"trainer: {error}") from error
        total_steps = trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise InputError(
                "the learning rate schedule needs an end\nexpected trainer.max_epochs or max_steps"
            )
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        hparams = self.hparams
        warmup_steps = hparams["warmup_steps"]
        if warmup_steps is None:
            warmup_steps = round(hparams["warmup_epochs"] * steps_per_epoch)
        decay_steps = total_steps - round(hparams["cooldown_epochs"] * steps_per_epoch)
        if decay_steps < 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError(
                f"cooldown_epochs {hparams['cooldown_epochs']:g} leaves no epoch to train in\n"
                f"expected less than the length of the run, {total_steps / steps_per_epoch:g}"
            )
        peak, factor = hparams["lr"], hparams["warmup_factor"]
        if hparams["scale_lr_with_batch"]:
            peak *= images_per_step(trainer) / REFERENCE_BATCH
        self._schedule = Schedule(
            hparams["schedule"],
            peak=peak,
            start=hparams["warmup_lr"] if factor is None else factor * peak,
            warmup_steps=warmup_steps,
            total_steps=max(int(decay_steps), 1),
            min_lr=hparams["min_lr"],
            milestones=[round(epoch * steps_per_epoch) for epoch in hparams["milestones"] or []],
            gamma=hparams["gamma"],
            power=hparams["power"],
        )
        decay = {name: hparams[name] for name in ("weight_decay", "layer_decay")}
        groups = (
            dense_parameter_groups(self.model, self.features, **decay)
            if self.features
            else parameter_groups(self.model, **decay)
        )
        options: dict[str, Any] = {"lr": peak, "betas": tuple(hparams["betas"])}
        if trainer.precision in {"bf16-true", "16-true"}:
            return Float32AdamW(groups, **options)
        # One kernel for all parameters, but in mixed precision: there, with gradient clipping,
        # some Lightning releases refuse it and some clip nothing.
        fused = self.device.type in ("cpu", "cuda") and not trainer.precision.endswith("mixed")
        return torch.optim.AdamW(groups, **options, fused=fused)

    # Initial weights

    def load_initial_weights(self) -> None:
        """Load the weights of `pretrained` or `init_from` once, unless a checkpoint was loaded.

        Raises:
            InputError: There are no such weights, or they belong to another network.
        """
        if self._weights_pending:
            self._weights_pending = False
            arguments, path = self.hparams["backbone_args"] or {}, self.hparams["init_from"]
            start_from(self.model, self.backbone, arguments, path, self.features, self.rename_heads)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network; training goes on with its own statistics."""
        self._weights_pending = False
        if self._trainer is None:
            return
        if self.trainer.state.fn == "fit":
            self._statistics.load(checkpoint)
        if difference := differences(self.state_dict(), checkpoint["state_dict"]):
            made_with = checkpoint.get("hyper_parameters", {}).get("backbone", "another network")
            same = made_with == self.backbone
            whose = "other parts or classes" if same else f"{made_with}, this task {self.backbone}"
            raise InputError(f"the checkpoint {self.trainer.ckpt_path} has {whose}\n{difference}")
        data: Any = getattr(self.trainer, "datamodule", None)
        predicts = self.trainer.state.fn == "predict"
        if predicts and "data" in checkpoint and hasattr(data, "load_prediction_state"):
            data.load_prediction_state(checkpoint["data"])

    def setup(self, stage: str) -> None:
        """Refuse images with other channels than the network's, before anything is computed."""
        found = getattr(getattr(self.trainer, "datamodule", None), "channels", None)
        taken = input_channels(self.timm_model)
        if None not in (found, taken) and found != taken:
            raise InputError(
                f"{self.backbone} has in_chans {taken}, the images have {found} channels\n"
                f"expected model.backbone_args.in_chans {found}"
            )

    def on_fit_start(self) -> None:
        """Load initial weights; take out what an earlier fit has left for evaluations."""
        self._statistics.take_out(self)
        self._statistics.forget()
        self.load_initial_weights()

    def on_validation_start(self) -> None:
        """Load initial weights; in training put the statistics in that the evaluation sees."""
        self.load_initial_weights()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._statistics.put_in(self)

    def on_test_start(self) -> None:
        """Load initial weights."""
        self.load_initial_weights()

    def on_predict_start(self) -> None:
        """Load initial weights, and refuse those that are no numbers."""
        self.load_initial_weights()
        refuse_bad_weights(self.state_dict())

    # Evaluation

    def reset_evaluation(self, stage: str) -> None:
        """Start an evaluation: "val" or "test"."""
        raise NotImplementedError

    def evaluate(self, batch: Any, stage: str) -> None:
        """Count a batch."""
        raise NotImplementedError

    def evaluation(self, stage: str) -> dict[str, float | Tensor]:
        """Return the metrics of all processes together, by name; every process calls this."""
        raise NotImplementedError

    def report_classes(self, stage: str) -> None:
        """Say and write what there is to say of each class; called after `validate`, `test`."""

    def pass_for_statistics(self, batch: Any) -> None:
        """Run the network as an evaluation does, on a training batch."""
        self(batch[0])

    def on_validation_epoch_start(self) -> None:
        """Start to count."""
        refuse_bad_weights(self.state_dict())
        self.reset_evaluation("val")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count a batch."""
        self.evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics under `val/`."""
        self._log_evaluation("val")
        # Before `on_validation_end`, where an average of the weights is taken out.
        if self.trainer.state.fn == "fit":
            self._statistics.take_out(self)

    def on_test_epoch_start(self) -> None:
        """Start to count."""
        refuse_bad_weights(self.state_dict())
        self.reset_evaluation("test")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Count a batch."""
        self.evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the metrics under `test/`."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        self.outputs.refuse(self.trainer)
        # At the end of the epoch and not in the step: every process gets here, also one
        # without a batch, so that none waits for another for ever.
        for name, value in self.evaluation(stage).items():
            self.log(f"{stage}/{name}", value, prog_bar=self.monitor.endswith(f"/{name}"))
        if self.trainer.is_global_zero and self.trainer.state.fn in {"validate", "test"}:
            self.report_classes(stage)

    def on_predict_end(self) -> None:
        """Say which images could not be read."""
        tell_unreadable(self.trainer)

    # What belongs to a step, an epoch, a checkpoint

    def on_train_start(self) -> None:
        """Note which norms train; set the learning rate of the first step."""
        self._statistics.start(self)
        self._set_learning_rate()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch and log its learning rate."""
        entropy = (global_seed(), self.current_epoch, batch_idx, self.global_rank)
        # A key of its own, or the draws of an image and of a batch would be the same.
        sequence = np.random.SeedSequence(entropy, spawn_key=(1,))
        for_python, for_numpy, for_torch = sequence.generate_state(3).tolist()
        random.seed(for_python)
        np.random.seed(for_numpy)  # noqa: NPY002 - timm's Mixup draws from it
        torch.manual_seed(for_torch)
        self.log("lr", self.learning_rate(self.global_step), on_step=True, on_epoch=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the next step: callbacks read it before the batch begins."""
        self._set_learning_rate()

    def _set_learning_rate(self) -> None:
        rate = self.learning_rate(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["lr_scale"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what evaluation and prediction need; refuse to save NaN weights over good ones."""
        self._statistics.save(self, checkpoint)
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "prediction_state"):
            checkpoint["data"] = data.prediction_state()

    def on_train_epoch_end(self) -> None:
        """Compare what an evaluation sees at the end of the run."""
        if ends_here(self.trainer):
            self._statistics.compare(self)

    def on_train_end(self) -> None:
        """Leave the network as it is evaluated; say what that has cost."""
        self._statistics.put_in(self)
        if cost := self._statistics.cost():
            rank_zero_info(cost)
