"""What every task shares: backbone, recipe, exact resuming, and watching over the training."""

import inspect
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lightning_overlock.data.loading import global_seed
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.optim import parameter_groups, warmup_cosine
from lightning_overlock.tasks.weights import differences, load_error_summary, read_state_dict

# The batch that `lr` is meant for with `scale_lr_with_batch`, as in timm and OverLoCK's release.
REFERENCE_BATCH = 1024


class BaseTask(LightningModule):
    """A timm backbone and its training recipe.

    A task adds a signature with class names, `monitor`, `configure_losses`, `configure_metrics`
    and its steps, and where its network is more than a classifier, `build_model`. From here it has
    AdamW, a learning rate that is a function of the step, randomness that is a function of (seed,
    epoch, batch, process), initial weights, the stop at a non-finite loss, and `lr` and
    `train/images_per_second` in the log. Gradients are clipped by the trainer
    (`gradient_clip_val`), batch norms synchronised by it (`sync_batchnorm`).

    Args:
        class_names: Names of the classes; linked from the data.
        backbone: Name of a timm model.
        backbone_args: Arguments of that model, for example `{drop_path_rate: 0.1}`.
        pretrained: Start from timm's weights for the model.
        init_from: Start from the weights in this file: a release checkpoint, a checkpoint of this
            package (its EMA where there is one), timm's, or safetensors. A head for another number
            of classes is replaced.
        lr: Peak learning rate.
        scale_lr_with_batch: `lr` is meant for 1024 images; scale it with those of one optimiser
            step over all processes.
        min_lr: Learning rate at the end of the cosine.
        warmup_epochs: Length of the linear warm-up.
        warmup_lr: Learning rate that the warm-up starts from.
        cooldown_epochs: Last epochs, spent at `min_lr`.
        weight_decay: Of all parameters with more than one dimension.
        betas: Of AdamW.
        layer_decay: Factor on the learning rate per layer below the head; none by default.
        compile: Compile the backbone's blocks in place.
        channels_last: Keep images and weights in channels-last memory.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
    """

    # timm's models share more than nn.Module has, but no type.
    model: Any
    monitor: str
    monitor_mode: Literal["min", "max"] = "max"

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "overlock_xxt",
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        init_from: str | None = None,
        lr: float = 1e-3,
        scale_lr_with_batch: bool = False,
        min_lr: float = 1e-5,
        warmup_epochs: float = 0.0,
        warmup_lr: float = 1e-6,
        cooldown_epochs: float = 0.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float | None = None,
        compile: bool = False,
        channels_last: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        # Of the task's own signature; not for the logger, whose table 1000 class names would fill.
        self.save_hyperparameters(logger=False)
        if len(class_names) < 2:
            raise InputError(f"class_names is {class_names}, expected at least two classes")
        if pretrained and init_from is not None:
            raise InputError("pretrained and init_from are both given, expected one of them")
        # What the configure_* hooks and the schedule need is read from self.hparams.
        self.class_names = class_names
        self.backbone = backbone
        self._weights_pending = pretrained or init_from is not None
        self._images = 0
        self._seconds = 0.0
        self._tick = 0.0

        self.model = self.build_model(len(class_names))
        if grad_checkpointing:
            if not hasattr(self.model, "set_grad_checkpointing"):
                raise InputError(f"{backbone} has no gradient checkpointing")
            self.model.set_grad_checkpointing(True)
        if channels_last:
            # Convolutions hand the layout of their weights on to their output.
            self.model.to(memory_format=torch.channels_last)
        if compile:
            compile_blocks(self.model)
        self.configure_losses()
        self.configure_metrics()

    # What a task fills in

    def build_model(self, num_classes: int, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """Return the network for so many classes.

        Args:
            num_classes: Number of classes.
            pretrained: Load timm's weights, or those of `pretrained_cfg_overlay`.
            kwargs: Further arguments for `create_backbone`.
        """
        return create_backbone(
            self.backbone,
            self.hparams["backbone_args"] or {},
            num_classes=num_classes,
            pretrained=pretrained,
            **kwargs,
        )

    def configure_losses(self) -> None:
        """Set the losses; called once from the constructor."""

    def configure_metrics(self) -> None:
        """Set the metrics; called once from the constructor."""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an optimiser step; a group's is `lr_scale` times it."""
        return warmup_cosine(
            step,
            lr=self._peak_lr,
            total_steps=self._cosine_steps,
            warmup_steps=self._warmup_steps,
            warmup_lr=self.hparams["warmup_lr"],
            min_lr=self.hparams["min_lr"],
        )

    # The recipe

    @property
    def data_config(self) -> dict[str, Any]:
        """How the model wants its images: input_size, mean, std, interpolation, crop_pct."""
        return resolve_model_data_config(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build AdamW and settle the lengths of the schedule.

        The schedule needs no scheduler object: its value is set at the start of every batch from
        the step alone, so a run resumed with other `max_epochs` follows the new length at once.
        """
        trainer = self.trainer
        total_steps = trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise InputError(
                "the learning rate schedule needs an end\nexpected trainer.max_epochs or max_steps"
            )
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        hparams = self.hparams
        self._warmup_steps = round(hparams["warmup_epochs"] * steps_per_epoch)
        cosine_steps = total_steps - round(hparams["cooldown_epochs"] * steps_per_epoch)
        if cosine_steps < 1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise InputError(
                f"cooldown_epochs {hparams['cooldown_epochs']:g} leaves no epoch to train in\n"
                f"expected less than the length of the run, {total_steps / steps_per_epoch:g}"
            )
        self._cosine_steps = max(int(cosine_steps), 1)
        self._peak_lr = hparams["lr"]
        if hparams["scale_lr_with_batch"]:
            self._peak_lr *= self._images_per_step() / REFERENCE_BATCH
        groups = parameter_groups(
            self.model, weight_decay=hparams["weight_decay"], layer_decay=hparams["layer_decay"]
        )
        # Not fused: with gradient clipping under mixed precision some Lightning releases
        # refuse it and some clip nothing.
        return torch.optim.AdamW(groups, lr=self._peak_lr, betas=tuple(hparams["betas"]))

    def _images_per_step(self) -> int:
        batch_size = getattr(self.trainer.train_dataloader, "batch_size", None)
        if batch_size is None:
            raise InputError(
                "scale_lr_with_batch needs a training loader with a fixed batch_size, "
                f"found {type(self.trainer.train_dataloader).__name__}"
            )
        return int(batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    # Initial weights

    def load_initial_weights(self) -> None:
        """Load the weights of `pretrained` or `init_from` into the model.

        Runs once when a trainer starts with this task, and not at all after a checkpoint of the
        task was loaded: its weights count, and the file of long ago may be gone.

        Raises:
            InputError: there are no such weights, or they belong to another network.
        """
        if not self._weights_pending:
            return
        self._weights_pending = False
        source, donor = self._donor()
        own, given = self.model.state_dict(), donor.state_dict()
        # Both are built alike: only what depends on the number of classes can differ.
        replaced = [name for name in own if own[name].shape != given[name].shape]
        kept = {name: value for name, value in given.items() if name not in replaced}
        self.model.load_state_dict(kept, strict=False)
        rank_zero_info(f"Initial weights: {source}")
        if replaced:
            rank_zero_info(f"New, for {len(self.class_names)} classes: {', '.join(replaced)}")

    def _donor(self) -> tuple[str, nn.Module]:
        """Return where the initial weights come from and the network that has them."""
        config = self.model.pretrained_cfg
        overlay = dict((self.hparams["backbone_args"] or {}).get("pretrained_cfg_overlay") or {})
        num_classes = config["num_classes"]
        source = str(overlay.get("file", f"timm's weights for {self.backbone}"))
        if self.hparams["init_from"] is not None:
            source = str(self.hparams["init_from"])
            weights = read_state_dict(Path(source))
            num_classes = _rows(weights, config["classifier"]) or num_classes
            overlay = {"state_dict": weights, "num_classes": num_classes}
        elif "file" in overlay and not Path(source).is_file():
            raise InputError(f"no checkpoint file {source} (pretrained_cfg_overlay)")
        try:
            return source, self.build_model(
                num_classes, pretrained=True, pretrained_cfg_overlay=overlay
            )
        except Exception as error:  # of many libraries: file, network, hub, state dict
            raise InputError(
                f"{source} does not give the weights of {self.backbone}\n"
                f"{load_error_summary(error)}"
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network."""
        self._weights_pending = False
        if self._trainer is None:
            return
        if difference := differences(self.state_dict(), checkpoint["state_dict"]):
            made_with = checkpoint.get("hyper_parameters", {}).get("backbone", "another network")
            raise InputError(
                f"checkpoint {self.trainer.ckpt_path} was made with {made_with}, "
                f"this task has {self.backbone}\n{difference}"
            )

    def on_fit_start(self) -> None:
        """Load initial weights."""
        self.load_initial_weights()

    def on_validation_start(self) -> None:
        """Load initial weights."""
        self.load_initial_weights()

    def on_test_start(self) -> None:
        """Load initial weights."""
        self.load_initial_weights()

    def on_predict_start(self) -> None:
        """Load initial weights."""
        self.load_initial_weights()

    # Watching over the training

    def on_train_start(self) -> None:
        """Start the clock; an epoch that is continued in its middle has no other start."""
        self._tick = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        """Start counting images."""
        self._images, self._seconds, self._tick = 0, 0.0, time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch and set its learning rate."""
        entropy = (global_seed(), self.current_epoch, batch_idx, self.global_rank)
        # A key of its own, or the draws of an image and of a batch would be the same.
        sequence = np.random.SeedSequence(entropy, spawn_key=(1,))
        for_python, for_numpy, for_torch = sequence.generate_state(3).tolist()
        random.seed(for_python)
        np.random.seed(for_numpy)  # noqa: NPY002 - timm's Mixup draws from it
        torch.manual_seed(for_torch)
        lr = self.learning_rate(self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.log("lr", lr, on_step=True, on_epoch=False)

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop at a loss that is not finite, on all processes and before any weight changes."""
        finite = bool(torch.isfinite(loss))
        # All must stop together: one that goes on would wait for the others' gradients.
        if not self.trainer.strategy.reduce_boolean_decision(finite, all=True):
            value = "not finite on another process" if finite else loss.item()
            raise InputError(
                f"the loss is {value} at step {self.global_step} (epoch "
                f"{self.current_epoch}), learning rate {self.learning_rate(self.global_step):.3g}; "
                "checkpoints already saved are good\n"
                "try a lower model.lr, more model.warmup_epochs, trainer.gradient_clip_val 5, "
                "or trainer.precision bf16-mixed or 32-true instead of 16-mixed"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are NaN over good ones."""
        weights = checkpoint["state_dict"]
        if bad := [name for name, value in weights.items() if bool(value.isnan().any())]:
            raise InputError(
                f"weights are NaN at step {self.global_step} ({bad[0]}); no checkpoint was saved, "
                "earlier ones are good\ntry a lower model.lr or "
                "trainer.gradient_clip_val 5"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count images and time, that of loading included."""
        now = time.perf_counter()
        self._images += len(batch[0])
        self._seconds += now - self._tick
        self._tick = now

    def on_validation_end(self) -> None:
        """Leave the time of a validation amid an epoch out."""
        self._tick = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Log the throughput over all processes."""
        rate = self._images * self.trainer.world_size / self._seconds
        self.log("train/images_per_second", rate)

    @contextmanager
    def explained(self, images: Tensor) -> Iterator[None]:
        """Turn a network's complaint about an unusual image size into an input error."""
        try:
            yield
        except (ValueError, AssertionError, RuntimeError) as error:
            usual = tuple(self.data_config["input_size"])
            about_size = not isinstance(error, RuntimeError) or "ernel size" in str(error)
            if tuple(images.shape[1:]) == usual or not about_size:
                raise
            raise InputError(
                f"{self.backbone} takes no images of {tuple(images.shape[1:])} (channels, height, "
                f"width); it was made for {usual}\n{str(error).splitlines()[0]}"
            ) from error


def _rows(weights: Mapping[str, Tensor], classifier: str | tuple[str, ...]) -> int | None:
    """Return how many classes the classifier in `weights` has, None if it is not found there."""
    name = classifier if isinstance(classifier, str) else classifier[0]
    weight = weights.get(f"{name}.weight")
    return None if weight is None else len(weight)


def create_backbone(name: str, arguments: dict[str, Any], **kwargs: Any) -> nn.Module:
    """Create a timm model; mistakes in its name or arguments are input errors.

    Args:
        name: Of a timm model, with or without the tag of its weights.
        arguments: As typed by the user.
        kwargs: Arguments of `timm.create_model` that the user cannot set.

    Raises:
        InputError: timm has no such model, or the model refuses the arguments.
    """
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise InputError(f"timm has no model '{name}', expected one of timm.list_models().{near}")
    for key in ("num_classes", "features_only", "pretrained", "overview_head"):
        if key in arguments:
            raise InputError(f"backbone_args has '{key}', which the task sets itself")
    try:
        return timm.create_model(name, **(arguments | kwargs))
    except (TypeError, ValueError, AssertionError) as error:
        if not arguments or kwargs.get("pretrained"):
            raise
        raise InputError(
            f"{name} refuses backbone_args {arguments}\n{error}{_nearest_argument(name, error)}"
        ) from error


def _nearest_argument(name: str, error: Exception) -> str:
    """Return " Did you mean …?" where a constructor complains of an unknown argument."""
    complaint = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if complaint is None:
        return ""
    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    owner = getattr(module, complaint[1], None)
    return did_you_mean(complaint[2], inspect.signature(owner).parameters) if owner else ""


def compile_blocks(model: Any) -> None:
    """Compile the blocks of a timm model in place.

    Blocks are the layers of the model's own `group_matcher`. Compiled in place they keep the names
    of their parameters, and every method of the model that runs them is sped up, not only
    `forward`. A model without named blocks is compiled as a whole.
    """
    matcher = model.group_matcher(coarse=False) if hasattr(model, "group_matcher") else {}
    patterns = [
        pattern.lstrip("^")
        for entry in matcher.values()
        for pattern in ([entry] if isinstance(entry, str) else [pattern for pattern, _ in entry])
    ]
    blocks = [
        module
        for name, module in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in patterns) and any(module.children())
    ] or [model]
    # All blocks of a class share the code that torch counts recompilations of, and each has its
    # own shapes and drop path rate, in training and in evaluation, for one image size and for any.
    limit = 4 * len(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile()
