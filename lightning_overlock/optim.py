"""Parameter groups and the learning rate of every step."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from timm.layers import RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.adamw import adamw

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.errors import InputError

# The batch that `lr` is meant for with `scale_lr_with_batch`, as in timm and OverLoCK's release.
REFERENCE_BATCH = 1024
# The layers of OverLoCK that are called norm in its release. Its batch norms and the layer norms
# of its static blocks have other names there.
_RELEASE_NORMS = re.compile(r"focus\.\d+\.blocks\.\d+\.norm[12]")
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    _BatchNorm,
    RmsNorm,
    RmsNorm2d,
    SimpleNorm,
    SimpleNorm2d,
)


def parameter_groups(
    model: Any, *, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split the trainable parameters of `model` by weight decay and, on request, by depth.

    One-dimensional parameters (biases, norms) and those that the model's own `no_weight_decay()`
    names are not decayed; all others are, as in timm's training script and OverLoCK's release.

    Args:
        model: A timm model.
        weight_decay: Decay of the decayed groups.
        layer_decay: Factor per layer of the model's `group_matcher`, counted from the head (factor
            1) towards the stem (BEiT, arXiv 2106.08254). None: one learning rate for all.

    Returns:
        Groups for a torch optimiser; each has `lr_scale`, its factor on the learning rate.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(
            model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay
        )
    return [{"lr_scale": 1.0, **group} for group in groups]


def dense_parameter_groups(
    model: nn.Module,
    features: DenseFeatures,
    *,
    weight_decay: float,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of a dense model as the release's dense recipes do.

    There weight decay falls on everything but what is called norm: the layer norms of OverLoCK's
    dynamic blocks and those on the maps. Its batch norms, GRN, scales and biases and those of the
    heads are decayed. In other backbones all norms are exempt, and so is what the model's own
    `no_weight_decay()` names.

    Args:
        model: A network around `features`.
        features: The backbone with the norms of its maps.
        weight_decay: Decay of the decayed groups.
        layer_decay: Factor per layer of the backbone's `group_matcher`, counted from the rest of
            the network (factor 1) towards the stem. None: one learning rate for all.

    Returns:
        Groups for a torch optimiser; each has `lr_scale`, its factor on the learning rate.
    """
    backbone = features.backbone
    norms = [(name, m) for name, m in backbone.named_modules() if isinstance(m, _NORMS)]
    norms = [(name, m) for name, m in norms if _RELEASE_NORMS.fullmatch(name)] or norms
    exempt = {id(p) for _, norm in norms for p in norm.parameters(recurse=False)}
    exempt |= {id(p) for norm in features.map_norms() for p in norm.parameters()}
    named = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    exempt |= {id(p) for name, p in backbone.named_parameters() if name in named}
    scales: dict[int, float] = {}
    if layer_decay is not None:
        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
        above = max(layers.values()) + 1
        scales = {
            id(p): layer_decay ** (above - layers[name]) for name, p in backbone.named_parameters()
        }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = 0.0 if id(parameter) in exempt else weight_decay
            groups.setdefault((scales.get(id(parameter), 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def images_per_step(trainer: Trainer) -> int:
    """Return the images of one optimiser step over all processes.

    Raises:
        InputError: The training loader has no fixed batch size.
    """
    batch_size = getattr(trainer.train_dataloader, "batch_size", None)
    if batch_size is None:
        raise InputError(
            "scale_lr_with_batch needs a training loader with a fixed batch_size, "
            f"found {type(trainer.train_dataloader).__name__}"
        )
    return int(batch_size * trainer.world_size * trainer.accumulate_grad_batches)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run.

    Attributes:
        kind: "cosine", "multistep" or "poly".
        peak: Rate at the end of the warm-up.
        start: Rate that the warm-up starts from.
        warmup_steps: Steps of the warm-up.
        total_steps: Step at which cosine and poly reach `min_lr`.
        min_lr: Rate at the end of cosine and poly.
        milestones: Steps after which multistep multiplies the rate by `gamma`.
        gamma: Factor of multistep.
        power: Exponent of poly.
    """

    kind: Literal["cosine", "multistep", "poly"]
    peak: float
    start: float
    warmup_steps: int
    total_steps: int
    min_lr: float
    milestones: list[int]
    gamma: float
    power: float

    def rate(self, step: int) -> float:
        """Return the rate of an optimiser step, counted from 0."""
        if self.kind == "cosine":
            return warmup_cosine(
                step,
                lr=self.peak,
                total_steps=self.total_steps,
                warmup_steps=self.warmup_steps,
                warmup_lr=self.start,
                min_lr=self.min_lr,
            )
        # A learning rate of 0 has no share to start from.
        factor = self.start / self.peak if self.peak else 0.0
        if self.kind == "multistep":
            return warmup_multistep(
                step,
                lr=self.peak,
                milestones=self.milestones,
                gamma=self.gamma,
                warmup_steps=self.warmup_steps,
                warmup_factor=factor,
            )
        return warmup_poly(
            step,
            lr=self.peak,
            total_steps=self.total_steps,
            power=self.power,
            min_lr=self.min_lr,
            warmup_steps=self.warmup_steps,
            warmup_factor=factor,
        )


def warmup_cosine(
    step: int, *, lr: float, total_steps: int, warmup_steps: int, warmup_lr: float, min_lr: float
) -> float:
    """Learning rate of one optimiser step: linear warm-up, cosine decay, then constant.

    The cosine counts from step 0, so the warm-up replaces its first part (timm's
    `CosineLRScheduler` without `warmup_prefix`). A function of the step alone needs no state to
    resume.

    Args:
        step: Optimiser steps taken so far.
        lr: Peak learning rate.
        total_steps: Step at which the cosine reaches `min_lr`; it stays there afterwards.
        warmup_steps: Steps of the warm-up from `warmup_lr` to `lr`.
        warmup_lr: Learning rate of step 0 when there is a warm-up.
        min_lr: Learning rate at the end.
    """
    if step < warmup_steps:
        return warmup_lr + (lr - warmup_lr) * step / warmup_steps
    progress = min(step / total_steps, 1.0)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup_multistep(
    step: int,
    *,
    lr: float,
    milestones: Sequence[int],
    gamma: float,
    warmup_steps: int,
    warmup_factor: float,
) -> float:
    """Learning rate of one optimiser step: constant, times `gamma` from each milestone on.

    Args:
        step: Optimiser steps taken so far.
        lr: Learning rate before the first milestone.
        milestones: Steps.
        gamma: Factor per milestone.
        warmup_steps: Length of the warm-up.
        warmup_factor: Factor of the warm-up, see `linear_warmup`.
    """
    passed = sum(step >= milestone for milestone in milestones)
    return lr * gamma**passed * linear_warmup(step, warmup_steps, warmup_factor)


def warmup_poly(
    step: int,
    *,
    lr: float,
    total_steps: int,
    power: float,
    min_lr: float,
    warmup_steps: int,
    warmup_factor: float,
) -> float:
    """Learning rate of one optimiser step: from `lr` to `min_lr` as (1 - progress) ** power.

    Args:
        step: Optimiser steps taken so far.
        lr: Learning rate of step 0 without warm-up.
        total_steps: Step at which `min_lr` is reached; it stays there afterwards.
        power: 1 is a straight line.
        min_lr: Learning rate at the end.
        warmup_steps: Length of the warm-up.
        warmup_factor: Factor of the warm-up, see `linear_warmup`.
    """
    left = 1 - min(step / total_steps, 1.0)
    rate = min_lr + (lr - min_lr) * left**power
    return rate * linear_warmup(step, warmup_steps, warmup_factor)


def linear_warmup(step: int, steps: int, factor: float) -> float:
    """Return what a schedule is multiplied by: from `factor` in a straight line to 1 at `steps`.

    The schedule itself counts from step 0, as in mmcv's linear warm-up.
    """
    return 1.0 if step >= steps else factor + (1 - factor) * step / steps


class Float32AdamW(torch.optim.AdamW):
    """AdamW for weights in 16 bits, which keeps moments and a copy of the weights in float32.

    In bfloat16 the second moment would never fall: a thousandth of it is less than its last bit.
    In float16 squared gradients below 6e-8 would be 0. The weights are rounded after each step.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make a step; `closure` computes gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            states = [self._state_of(weight) for weight in weights]
            adamw(
                [state["weight"] for state in states],
                [weight.grad.float() for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for weight, state in zip(weights, states, strict=True):
                weight.copy_(state["weight"])
        return loss

    def _state_of(self, weight: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["weight"] = weight.detach().float().clone()
            state["exp_avg"] = torch.zeros_like(state["weight"])
            state["exp_avg_sq"] = torch.zeros_like(state["weight"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue; torch would round the state to the weights' type."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, saved in state_dict["state"].items():
            state, device = self.state[weights[number]], weights[number].device
            for name in saved.keys() - {"step"}:
                state[name] = saved[name].to(device, torch.float32, copy=True)
            if "weight" not in state:  # of a run that kept its state in 16 bits
                state["weight"] = weights[number].detach().float().clone()
