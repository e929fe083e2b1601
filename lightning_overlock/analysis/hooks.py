"""Reading a network without changing it: evaluation mode for a while, outputs of its modules."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_overlock.errors import did_you_mean


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode inside the block, and give every module its mode back.

    Example:
        >>> model = nn.Dropout().train()
        >>> with evaluation(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def to_model_device(model: nn.Module, images: Tensor) -> Tensor:
    """Return images on the device and in the dtype of the model's parameters.

    Example:
        >>> import torch
        >>> to_model_device(nn.Linear(1, 1).double(), torch.zeros(1)).dtype
        torch.float64
    """
    first = next(model.parameters(), None)
    return images if first is None else images.to(first)


@contextmanager
def module_outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Read what the modules called `names` return in the forward passes of the block.

    Args:
        model: Any module.
        names: Names of modules, as in `model.named_modules()`.

    Yields:
        A dictionary from name to the output of the last forward pass, in its graph.

    Raises:
        ValueError: The model has no module of a name.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
        >>> with module_outputs(model, ["0"]) as found:
        ...     _ = model(torch.zeros(1, 3, 8, 8))
        >>> found["0"].shape
        torch.Size([1, 8, 6, 6])
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"the model has no module '{name}'.{did_you_mean(name, modules)}")
    found: dict[str, Tensor] = {}

    def keep(name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, value: Tensor) -> Tensor:
            found[name] = value
            # What works in place behind the module works on a copy.
            return value.clone()

        return modules[name].register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
