"""State that adds up over many steps, which a network of 16 bits would round away."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric


def convert_all_but_sums(
    task: LightningModule, convert: Callable[[Tensor], Tensor], recurse: bool = True
) -> Any:
    """Convert a task's tensors, but leave its batch norms and metrics in more than 16 bits.

    A running statistic in bfloat16 stays where it is as soon as a step changes it by less than a
    256th, and a sum that counts images in bfloat16 stops after 256 batches. The weights of a batch
    norm keep the type of its statistics: torch computes with 16 bits and one other type.

    It takes the place of `nn.Module._apply`, which every `to` goes through.
    """
    kept = _ids_of_sums(task)

    def convert_or_keep(tensor: Tensor) -> Tensor:
        converted = convert(tensor)
        rounds = converted.dtype in (torch.bfloat16, torch.float16)
        return tensor.to(converted.device) if rounds and id(tensor) in kept else converted

    return LightningModule._apply(task, convert_or_keep, recurse)  # type: ignore[no-untyped-call]


def _ids_of_sums(task: LightningModule) -> set[int]:
    found: list[Any] = []
    for part in task.modules():
        if isinstance(part, _BatchNorm):
            found += [*part.parameters(), *(p.grad for p in part.parameters()), *part.buffers()]
        elif isinstance(part, Metric):
            for state in (*part._defaults.values(), *part.metric_state.values()):
                found += state if isinstance(state, list) else [state]
    return {id(tensor) for tensor in found}
