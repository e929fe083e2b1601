"""Which backend an operation runs on: what "auto" means, and where Triton's kernels can run.

On a CPU the choices are fixed, from measurements of ours. On a GPU the backends of each kind of
call are measured when it first comes, see `Backends.choose` and the docs, "Backends".
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lightning_overlock.errors import InputError
from lightning_overlock.ops.choices import Choice, choices
from lightning_overlock.ops.first_process import of_first_process, together
from lightning_overlock.ops.measure import Run, measure
from lightning_overlock.ops.tracing import is_exporting, is_tracing

# The kernels were compiled for chips of this compute capability or later.
TRITON_CAPABILITY = (8, 0)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# A process tries to measure a kind of call on so many inputs, then leaves it.
ATTEMPTS = 3

# The environment's word on "auto": "safe", "measure" (on a CPU too), or OPERATION=BACKEND, ...
SETTING = "LIGHTNING_OVERLOCK_BACKENDS"
OPERATIONS = ("contmix", "depthwise")


class Backends:
    """The backends of one operation, all with the same result.

    Args:
        operation: The operation's name.
        names: The operation's own backends.

    Attributes:
        operation: The operation's name.
        names: All backends by name, those from outside included.
        outside: Backends that another module brought, for example a benchmark's baseline: functions
            with the arguments of the operation.
        forced: The backend that "auto" means now; None outside of `force`.
    """

    def __init__(self, operation: str, *names: str) -> None:
        self.operation = operation
        self.names = list(names)
        self.outside: dict[str, Callable[..., Any]] = {}
        self.forced: str | None = None
        # What all processes of a training agreed on, by kind of call.
        self._agreed: dict[str, str | None] = {}
        self._fruitless: dict[str, int] = {}
        self._warned: set[str] = set()

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Bring a backend from outside."""
        self.outside[name] = function
        self.names.append(name)

    def resolve(self, backend: str) -> str:
        """Return the backend that a call runs on; "auto" is left where nothing is forced.

        Raises:
            ValueError: The backend is unknown.
            InputError: `LIGHTNING_OVERLOCK_BACKENDS` makes no sense.
        """
        if backend == "auto":
            return self.forced or pinned(self.operation, tuple(self.names)) or backend
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

    def choose(
        self,
        call: str,
        sizes: Mapping[str, int],
        candidates: Callable[[], Sequence[str]],
        run: Run,
        inputs: Sequence[Tensor | None],
    ) -> str | None:
        """Return the fastest backend for a kind of call, from memory or by measuring it now.

        In compiled code, under deterministic algorithms and where tensors are not real, nothing is
        measured. In several processes the first one's choice holds for all.

        Args:
            call: What a kind of call is told by: types, layout, kernel, gradients.
            sizes: What it is told by up to the next power of two.
            candidates: Returns backends that this call can run on, the safe one first.
            run: Called with a backend's name and the inputs.
            inputs: The call's inputs, the first one a tensor.

        Returns:
            A backend's name, or None: nothing is known and nothing could be measured.
        """
        device = inputs[0].device if inputs[0] is not None else torch.device("cpu")
        if not measures(device):
            return None
        if is_exporting() or is_tracing():
            return None
        if not all(map(has_static_value, sizes.values())):  # a guard would narrow them to a class
            return None
        kind = _kind(call, sizes)
        known = remembered(self.operation, device, kind)
        known = known if known in self.names else None
        if torch.compiler.is_compiling() or not _are_real(inputs):
            return known
        if together():
            if kind not in self._agreed:
                key = f"{self.operation} {choices(device).path.name} {kind}"
                self._agreed[kind] = of_first_process(
                    key, lambda: known or self._measure(kind, candidates, run, inputs)
                )
            return self._agreed[kind]
        return known or self._measure(kind, candidates, run, inputs)

    def _measure(
        self,
        kind: str,
        candidates: Callable[[], Sequence[str]],
        run: Run,
        inputs: Sequence[Tensor | None],
    ) -> str | None:
        tried = self._fruitless.get(kind, 0)
        if torch.are_deterministic_algorithms_enabled() or tried == ATTEMPTS:
            return None
        assert inputs[0] is not None
        choice = measure(candidates(), run, inputs)
        if choice is None:
            self._fruitless[kind] = tried + 1
            return None
        choices(inputs[0].device).put(self.operation, kind, choice)
        self._warn(kind, choice)
        return choice.backend

    def _warn(self, kind: str, choice: Choice) -> None:
        """Warn of each dropped backend once in a process."""
        for name, reason in choice.dropped.items():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{self.operation} does not take its backend '{name}' for {kind}: {reason}",
                    stacklevel=2,
                )


def call_of(inputs: Sequence[Tensor | None]) -> str:
    """Name what a kind of call is told by in every operation: dtypes, layout, gradients.

    Args:
        inputs: The call's inputs, a map (B, C, H, W) first.
    """
    tensors = [x for x in inputs if x is not None]
    dtypes = "+".join(sorted({str(x.dtype).removeprefix("torch.") for x in tensors}))
    layout = "channels-last" if tensors[0].stride(1) == 1 else "NCHW"
    gradient = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return f"{dtypes}, {layout}, {'with' if gradient else 'without'} gradients"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _kind(call: str, sizes: Mapping[str, int]) -> str:
    """Name a kind of call: sizes up to the next power of two."""
    classes = [f"{name} <= {1 << max(0, size - 1).bit_length()}" for name, size in sizes.items()]
    # On a GPU, matrix products of float32 are fast and coarse where they may be.
    precision = torch.get_float32_matmul_precision()
    return ", ".join([call, *classes, f"float32 products {precision}"])


def _are_real(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a call is for its values: not recorded, counted or batched by a transform."""
    return (
        _get_current_dispatch_mode() is None
        and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
        and all(
            type(x) in (Tensor, torch.nn.Parameter) and not is_functorch_wrapped_tensor(x)
            for x in inputs
            if x is not None
        )
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def remembered(operation: str, device: torch.device, kind: str) -> str | None:
    """Return the backend that was chosen for a kind of call, None where none was."""
    if device.type == "cuda" and not torch.cuda.is_available():  # of tensors that are not real
        return None
    choice = choices(device).get(operation, kind)
    return None if choice is None else choice.backend


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def measures(device: torch.device) -> bool:
    """Return whether backends are chosen by measurement on a device."""
    setting = os.environ.get(SETTING, "")
    if device.type == "cuda":
        return setting != "safe"
    return device.type == "cpu" and setting == "measure"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def pinned(operation: str, names: tuple[str, ...]) -> str | None:
    """Return the backend that the environment gives an operation, None where it gives none.

    Args:
        operation: The operation.
        names: Its backends.

    Raises:
        InputError: The variable names an operation or a backend that there is not.
    """
    setting = os.environ.get(SETTING, "")
    if setting in ("", "safe", "measure"):
        return None
    pins = dict(part.strip().partition("=")[::2] for part in setting.split(","))
    if unknown := [name for name in pins if name not in OPERATIONS]:
        raise InputError(
            f"{SETTING}: found '{unknown[0]}' in '{setting}',\nexpected 'safe', 'measure' or "
            f"OPERATION=BACKEND, ... with an operation of {', '.join(OPERATIONS)}."
        )
    backend = pins.get(operation)
    if backend is not None and backend not in names:
        raise InputError(
            f"{SETTING}: found {operation}={backend}, expected one of {', '.join(names)}."
        )
    return backend


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
