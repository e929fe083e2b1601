"""Trials without an import each: a warm process has imported everything and forks one per trial.

Python's own fork server is that process. It only imports, and never runs an operation of torch, so
that no thread of OpenMP and no CUDA context is there when it forks. Per trial it forks a watchdog,
which forks the trial.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

from lightning_overlock.sweep import watchdog

# What a trial would import, this file's `warm_imports` first.
PRELOAD = ["lightning_overlock.sweep.warm_imports"]

_fork_server = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
# Processes of multiprocessing may be looked at by one thread at a time.
_lock = threading.Lock()
# What the warm process was started with; it outlives the sweep that started it.
_environment: dict[str, str] = {}
# Read when a run begins, not by what is imported: each sweep's trials get their own.
RUNS = "OVERLOCK_RUNS"


def is_possible() -> bool:
    """Tell whether trials may be forked here: not beside GPUs, nor where the system has threads."""
    gpus = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return sys.platform == "linux" and not any(Path(device).exists() for device in gpus)


@contextlib.contextmanager
def warmed_up(environment: dict[str, str]) -> Iterator[threading.Event]:
    """Start the warm process, with an environment that this process has meanwhile, too.

    Args:
        environment: The trials'. What libraries read when they are imported is fixed by it.

    Yields:
        An event that is set once all is imported.
    """
    assert _fork_server is not None
    _fork_server.set_forkserver_preload(PRELOAD)
    before = dict(os.environ)
    if not _environment:
        _environment.update(environment)
    _set_environment(environment)
    ready = threading.Event()

    def first() -> None:
        try:
            # A process that does nothing: forked, as any, after the imports.
            with contextlib.suppress(OSError, EOFError):
                process = _fork_server.Process(target=int)
                with _lock:
                    process.start()
                process.join()
        finally:
            ready.set()

    threading.Thread(target=first, daemon=True).start()
    try:
        yield ready
    finally:
        _set_environment(before)


def fits(environment: dict[str, str]) -> bool:
    """Tell whether a trial may be forked: libraries have read the environment when imported."""
    return environment | {RUNS: ""} == _environment | {RUNS: ""}


class WarmProcess:
    """A trial that is forked from the warm process, as `subprocess.Popen` is one of its own.

    Args:
        command: The words of the command, which begin with `python -m MODULE`.
        environment: The trial's, which `fits`.
        log: The file that its output is appended to.

    Raises:
        OSError: The warm process has ended meanwhile.
        EOFError: Likewise.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        assert _fork_server is not None
        words = (command, str(Path.cwd()), str(log), environment[RUNS])
        self._process = _fork_server.Process(target=_watched, args=words)
        with _lock:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, seconds: float | None) -> int | None:
        """Wait for its end, at most this long, and return its exit code; None if it goes on."""
        wait([self._process.sentinel], seconds)
        with _lock:
            return self._process.exitcode


def _set_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _watched(command: list[str], folder: str, log: str, runs: str) -> None:
    """Run a trial in a process of its own, and end with its exit code."""
    os.setsid()
    os.environ[RUNS] = runs
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND)):
        found = os.open(path, mode | os.O_CREAT)
        os.dup2(found, number)
        os.close(found)
    os.dup2(1, 2)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # An interrupt that comes before the watchdog can pass it on waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if (trial := os.fork()) == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _run(command, folder)
        return
    asker = multiprocessing.parent_process()
    assert asker is not None
    sys.exit(watchdog.watch(trial, asker.join))


def _run(command: list[str], folder: str) -> None:
    """Do what `python -m MODULE ARGUMENTS` does."""
    os.chdir(folder)
    module, arguments = command[2], command[3:]
    sys.argv = [module, *arguments]
    sys.path.insert(0, folder)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing leaves these out.
        atexit._run_exitfuncs()
