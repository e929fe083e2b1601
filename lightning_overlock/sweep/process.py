"""A trial's process: one `lightning fit`, as a person would type it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from lightning_overlock.sweep import watchdog
from lightning_overlock.sweep.warm import WarmProcess, fits

# What a person would type, less its arguments.
COMMAND = [sys.executable, "-m", "lightning_overlock"]

# A trial is started by the runner alone: it is no task of the runner's own SLURM step or torchrun,
# and takes no seed from the environment.
FOREIGN = ("SLURM_", "TORCHELASTIC_", "PL_", "LOCAL_", "GROUP_", "MASTER_")
FOREIGN_NAMES = {"RANK", "WORLD_SIZE", "NODE_RANK"}

TAIL_LINES = 12

# The exit code of a known input error, which would come again exactly.
INPUT_ERROR = 2


# The process -------------------------------------------------------------------------------------


def environment(runs: Path, threads: int, devices: str | None) -> dict[str, str]:
    """Return the environment of a trial.

    Args:
        runs: The folder that its run folder goes into.
        threads: Number of CPU threads of each of its processes.
        devices: The GPUs that it sees, as in CUDA_VISIBLE_DEVICES; None for those of the runner.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    kept |= {"OVERLOCK_RUNS": str(runs), "OMP_NUM_THREADS": str(threads)}
    # Threads that spin while they wait take the other trials' cores.
    kept["OMP_WAIT_POLICY"] = "PASSIVE"
    if devices is not None:
        kept["CUDA_VISIBLE_DEVICES"] = devices
    return kept


class FreshProcess:
    """A trial in an interpreter of its own.

    Args:
        command: The words of the command.
        environment: Its environment variables.
        log: The file that its output is appended to.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", watchdog.__file__, *command],
                stdin=subprocess.PIPE,  # closes when this process dies
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is the runner's to pass on
            )
        self.pid = self._process.pid

    def wait(self, seconds: float | None) -> int | None:
        """Wait for its end, at most this long, and return its exit code; None if it goes on."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        assert self._process.stdin is not None
        self._process.stdin.close()
        return code


class Process:
    """A running `lightning fit`, which dies with this process.

    Args:
        arguments: What follows `lightning`.
        environment: Its environment variables.
        log: The file that its output is appended to.
        warm: Fork it from the warm process, which must have been started, if that has its
            environment.
    """

    def __init__(
        self, arguments: list[str], environment: dict[str, str], log: Path, warm: bool = False
    ) -> None:
        self.log = log
        self._from = log.stat().st_size if log.is_file() else 0
        command = [*COMMAND, *arguments]
        forked: WarmProcess | None = None
        if warm and fits(environment):
            with contextlib.suppress(OSError, EOFError):  # the warm process was killed just now
                forked = WarmProcess(command, environment, log)
        self._process = forked or FreshProcess(command, environment, log)

    def wait(self, seconds: float | None) -> int | None:
        """Wait for its end, at most this long, and return its exit code; None if it goes on."""
        code = self._process.wait(seconds)
        if code is not None:
            # Whatever processes of a crashed multi-GPU training are left.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return code

    def interrupt(self) -> None:
        """Ask it to save its state and stop, as Ctrl-C does."""
        if self.wait(0) is None:
            os.kill(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it and all its children at once; nothing happens if it has ended."""
        if self.wait(0) is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it leads no group yet
                os.kill(self._process.pid, signal.SIGKILL)
            self.wait(None)

    def last_lines(self) -> str:
        """Return the end of what it has printed."""
        with self.log.open("rb") as file:
            file.seek(max(self._from, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode(errors="replace")
        lines = [line[-300:] for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-TAIL_LINES:])

    def failure(self, code: int) -> str:
        """Return why it failed: the cause in the first line, its last lines below.

        Args:
            code: Its exit code, or that of its watchdog.
        """
        lines = self.last_lines().splitlines()
        ending = _ending(code)
        if code == INPUT_ERROR:
            known = [line for line in lines if line.startswith("lightning: ")]
        else:
            # The last line of a traceback; what a library prints while it ends comes after it.
            known = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
        if known:
            cause = known[-1].removeprefix("lightning: ")
        elif ending.startswith("ended by"):
            cause, ending = ending, f"exit code {code}"
        else:
            cause = lines[-1] if lines else "it printed nothing"
        return "\n".join([f"{cause[:300]} ({ending})", *lines])


def _ending(code: int) -> str:
    """Return in words how a process ended, by its exit code or that of its watchdog."""
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return "ended by SIGKILL, as for want of memory"
    if number in set(signal.Signals):
        return f"ended by {signal.Signals(number).name}"
    return f"exit code {code}"
