"""Parameter groups and the learning rate of every step."""

import math
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay


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
