"""A trial: one `lightning fit` as a process, and the machine it runs on."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_overlock.sweep import guard

# What a person would type, less its arguments.
COMMAND = [sys.executable, "-m", "lightning_overlock"]

# A trial is started by the runner alone: it is no task of the runner's own SLURM step or torchrun,
# and takes no seed from the environment.
FOREIGN = ("SLURM_", "TORCHELASTIC_", "PL_", "LOCAL_", "GROUP_", "MASTER_")
FOREIGN_NAMES = {"RANK", "WORLD_SIZE", "NODE_RANK"}

TAIL_LINES = 12


# The process -------------------------------------------------------------------------------------


def environment(runs: Path, threads: int, devices: str | None) -> dict[str, str]:
    """Return the environment of a trial.

    Args:
        runs: The folder that its run folder goes into.
        threads: Of the CPU, for each of its processes.
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


class Process:
    """A running `lightning fit`, which dies with this process.

    Args:
        arguments: What follows `lightning`.
        environment: Its environment variables.
        log: The file that its output is appended to.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._from = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, *COMMAND, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is the runner's to pass on
            )

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, at most this long, and return its exit code; None if it goes on."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._clear_up()
        return code

    def interrupt(self) -> None:
        """Ask it to save its state and stop, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its children at once; nothing happens if it has ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._clear_up()

    def _clear_up(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        # Whatever processes of a crashed multi-GPU training are left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_lines(self) -> str:
        """Return the end of what it has printed."""
        with self.log.open("rb") as file:
            file.seek(max(self._from, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode(errors="replace")
        lines = [line[-300:] for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-TAIL_LINES:])


# The machine -------------------------------------------------------------------------------------


def machine(threads: int, devices: str | None) -> dict[str, Any]:
    """Return the hardware and the versions that trials run with, in words without names."""
    import lightning
    import optuna
    import timm

    from lightning_overlock import __version__

    words: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count(), "threads": threads}
    if gpus := _gpus(devices):
        words["gpu"] = ", ".join(gpus)
    return words | {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "timm": timm.__version__,
        "optuna": optuna.__version__,
        "lightning_overlock": __version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _gpus(devices: str | None) -> list[str]:
    """Return the GPUs' names, without making a CUDA context in this process."""
    if shutil.which("nvidia-smi") is None:
        return []
    visible = devices if devices is not None else os.environ.get("CUDA_VISIBLE_DEVICES")
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    chosen = [f"--id={visible}"] if visible else []
    if visible == "":
        return []
    answer = subprocess.run([*query, *chosen], capture_output=True, text=True, check=False)
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
