"""A process of its own for a model that is measured.

What runs in one process shares memory that is freed and used again: how fast a model is would
depend on what ran beside it.
"""

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self

import torch

from lightning_overlock.bench.measure import Step

# In the process: the steps that it holds, once they are made.
_steps: Mapping[str, Step] | None = None


class Worker:
    """Holds named steps in a process, where functions of one of them are called on request.

    Use it as a context manager, which ends the process.

    Args:
        title: What the process is called when it ends by itself.
        make: Returns the steps by name, in the process; a function of a module.
        arguments: Arguments of `make`, picklable.
    """

    def __init__(
        self, title: str, make: Callable[..., Mapping[str, Step]], *arguments: Any
    ) -> None:
        self.title = title
        self._make = (make, arguments)
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _start, (torch.get_num_threads(),)
        )

    def ask(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(step, *arguments)` of the step of that name.

        Args:
            name: Name of the step.
            function: A function of a module.
            arguments: Further arguments, picklable.

        Raises:
            RuntimeError: The process has ended, killed for the memory it took, perhaps.
            Exception: What `make` or the function raised.
        """
        try:
            return self._pool.submit(_call, self._make, name, function, arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the process of '{self.title}' ended, for want of memory perhaps"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)


def _start(threads: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that asks ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _call(
    make: tuple[Callable[..., Mapping[str, Step]], tuple[Any, ...]],
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Any:
    global _steps
    if _steps is None:
        _steps = make[0](*make[1])
    return function(_steps[name], *arguments)
