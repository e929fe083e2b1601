"""A process of its own for something that is measured.

What runs in one process shares memory that is freed and used again: how fast a model is would
depend on what ran beside it.
"""

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch

Step = Callable[[], object]


class StepProcess:
    """Holds named steps in a process, where functions of one of them are called on request.

    Use it as a context manager, which ends the process.

    Args:
        title: what the process is called when it ends by itself.
        make: returns the steps by name, in the process; a function of a module.
        arguments: of `make`, picklable.
    """

    def __init__(
        self, title: str, make: Callable[..., Mapping[str, Step]], *arguments: Any
    ) -> None:
        self.title = title
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        threads = torch.get_num_threads()
        self._process = context.Process(
            target=_serve, args=(remote, threads, make, arguments), daemon=True
        )
        self._process.start()
        remote.close()

    def ask(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(step, *arguments)` of the step of that name.

        Args:
            name: of the step.
            function: a function of a module.
            arguments: picklable.

        Raises:
            RuntimeError: the process has ended, killed for the memory it took, perhaps.
            Exception: what `make` or the function raised.
        """
        try:
            self._connection.send((name, function, arguments))
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"the process of '{self.title}' ended with exit code {code}"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()


def _serve(
    connection: Connection, threads: int, make: Callable[..., Mapping[str, Step]], arguments: Any
) -> None:
    # Ctrl-C reaches all processes of a terminal; the one that asks ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    steps: Mapping[str, Step] | None = None
    while True:
        try:
            name, function, rest = connection.recv()
        except EOFError:
            return
        try:
            if steps is None:
                steps = make(*arguments)
            connection.send(function(steps[name], *rest))
        except Exception as error:
            connection.send(error)
