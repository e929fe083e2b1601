"""Places inside a network whose values can be read from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Tap(nn.Module):
    """Passes its input on unchanged; `capture` reads what flows through it.

    A block holds one under the name of the value, for example `self.gate_tap = Tap()`, and writes
    `gate = self.gate_tap(gate)`. A value that the network itself does not need is computed only
    `if self.surprise_tap.wanted`.
    """

    @property
    def wanted(self) -> bool:
        """Whether somebody reads this tap now."""
        return bool(self._forward_hooks)

    def forward(self, value: Tensor) -> Tensor:
        """Return `value`, of any shape, unchanged."""
        return value


@contextmanager
def capture(model: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Read the taps called `names` (all of them if none is given) while the block runs.

    Args:
        model: A backbone of this package, or a module that contains one.
        names: Taps without their `_tap` ending, for example "gate", "kernel", "context_prior".

    Yields:
        A dictionary from the tap's path in `model`, for example "blocks3.0.gate", to the detached
        value of the last forward pass.

    Raises:
        ValueError: The model has no tap of one of the names.
    """
    taps = {
        path.removesuffix("_tap"): module
        for path, module in model.named_modules()
        if isinstance(module, Tap)
    }
    known = sorted({path.rpartition(".")[2] for path in taps})
    for name in names:
        if name not in known:
            raise ValueError(f"no tap is called '{name}' in this model; it has {known}")
    found: dict[str, Tensor] = {}

    def keep(path: str, module: Tap) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, value: Tensor) -> None:
            found[path] = value.detach()

        return module.register_forward_hook(hook)

    handles = [
        keep(path, module)
        for path, module in taps.items()
        if not names or path.rpartition(".")[2] in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
