"""Forms that an operation is computed in: which one "auto" means, and where Triton's can run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch

# Of the chips that the kernels were compiled for: this compute capability or later.
TRITON_CAPABILITY = (8, 0)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ForcedForm:
    """Makes `form="auto"` of an operation mean one form inside a block, to compare whole models.

    Args:
        names: the operation's forms.

    Attributes:
        form: the one that "auto" means now; None outside of blocks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.form: str | None = None

    @contextmanager
    def __call__(self, form: str) -> Iterator[None]:
        """Enter a block in which "auto" means `form`.

        Raises:
            ValueError: the form is unknown.
        """
        if form not in self.names:
            raise ValueError(f"form is '{form}', expected one of {self.names}")
        before, self.form = self.form, form
        try:
            yield
        finally:
            self.form = before


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def triton_obstacle(device: torch.device) -> str | None:
    """What keeps Triton from running on a device."""
    if device.type == "meta":  # where nothing runs
        return None
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs a GPU; on a CPU it runs with TRITON_INTERPRET=1 set, slowly"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "needs a GPU, there is none here"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
        return f"needs a GPU of compute capability {TRITON_CAPABILITY} or more"
    return None
