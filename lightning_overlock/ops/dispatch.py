"""Which backend an operation runs on: what "auto" means, and where Triton's kernels can run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

# The kernels were compiled for chips of this compute capability or later.
TRITON_CAPABILITY = (8, 0)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Backends:
    """The backends of one operation, all with the same result.

    Args:
        names: The operation's own backends.

    Attributes:
        names: All backends by name, those from outside included.
        outside: Backends that another module brought, for example a benchmark's baseline: functions
            with the arguments of the operation.
        forced: The backend that "auto" means now; None outside of `force`.
    """

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.outside: dict[str, Callable[..., Any]] = {}
        self.forced: str | None = None

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Bring a backend from outside."""
        self.outside[name] = function
        self.names.append(name)

    def resolve(self, backend: str) -> str:
        """Return the backend that a call runs on; "auto" is left where nothing is forced.

        Raises:
            ValueError: The backend is unknown.
        """
        if backend == "auto":
            return self.forced or backend
        if backend not in self.names:
            raise ValueError(f"backend is '{backend}', expected 'auto' or one of {self.names}")
        return backend

    @contextmanager
    def force(self, backend: str) -> Iterator[None]:
        """Make "auto" mean one backend inside a block, to compare whole models.

        Raises:
            ValueError: The backend is unknown.
        """
        if backend not in self.names:
            raise ValueError(f"backend is '{backend}', expected one of {self.names}")
        before, self.forced = self.forced, backend
        try:
            yield
        finally:
            self.forced = before


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def triton_obstacle(device: torch.device) -> str | None:
    """Return what keeps Triton from running on a device, None if nothing does."""
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
