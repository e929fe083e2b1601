"""Which backend was fastest: remembered in the process, and in a file for those that follow."""

import hashlib
import json
import os
import platform
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lightning_overlock import __version__


@dataclass(frozen=True)
class Choice:
    """What was measured for one kind of call.

    Args:
        backend: The fastest of those that agree with the safe one.
        milliseconds: Median time of each that was timed, by name.
        dropped: Why each of the others was not timed, by name.
    """

    backend: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


class Choices:
    """The choices of one device, under one set of versions.

    A file that cannot be read, is torn, is of another device or is not ours counts as none; where
    it cannot be written, choices last as long as the process.

    Args:
        device: The device that was measured.
        folder: Where the file is.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.identity = identity(device)
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        name = re.sub(r"[^a-z0-9]+", "_", self.identity["device"].lower()).strip("_")
        self.path = folder / f"backends_{name}_{digest}.json"
        self._made = self._read()

    def get(self, operation: str, call: str) -> Choice | None:
        """Return the choice for a kind of call of an operation, None where there is none."""
        return self._made.get(operation, {}).get(call)

    def put(self, operation: str, call: str, choice: Choice) -> None:
        """Remember a choice, here and in the file."""
        self._made.setdefault(operation, {})[call] = choice
        # Other processes may have written theirs since.
        for name, theirs in self._read().items():
            self._made[name] = theirs | self._made.get(name, {})
        with suppress(OSError):
            self._write()

    def items(self) -> list[tuple[str, str, Choice]]:
        """Return all choices with their operation and kind of call, in order."""
        return [
            (operation, call, choice)
            for operation, calls in sorted(self._made.items())
            for call, choice in sorted(calls.items())
        ]

    def _read(self) -> dict[str, dict[str, Choice]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["identity"] != self.identity:
                return {}
            return {
                operation: {call: _choice(found) for call, found in calls.items()}
                for operation, calls in content["choices"].items()
            }
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        choices = {
            operation: {call: asdict(choice) for call, choice in calls.items()}
            for operation, calls in self._made.items()
        }
        text = json.dumps({"identity": self.identity, "choices": choices}, indent=1)
        # Under a name of its own first: a reader finds the old file or the new one, whole.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=self.path.parent, suffix=".tmp", delete=False
        ) as file:
            try:
                file.write(text)
                file.close()
                Path(file.name).replace(self.path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise


def choices(device: torch.device) -> Choices:
    """Return the choices made on a device, those of earlier processes included."""
    return _choices(device, cache_folder(), torch.get_num_threads())


@cache
def _choices(device: torch.device, folder: Path, _threads: int) -> Choices:
    return Choices(device, folder)


def cache_folder() -> Path:
    """Return `LIGHTNING_OVERLOCK_CACHE`, or a folder of the package in the user's cache folder."""
    if named := os.environ.get("LIGHTNING_OVERLOCK_CACHE"):
        return Path(named).expanduser()
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a container's user without a home
        folder = Path(tempfile.gettempdir())
    return folder / "lightning_overlock"


def identity(device: torch.device) -> dict[str, str]:
    """Return what a timing holds for: the device, its driver, torch, Triton and this package."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    found = {"torch": torch.__version__, "triton": triton, "lightning_overlock": __version__}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return found | {
            "device": properties.name,
            "memory": str(properties.total_memory),
            "processors": str(properties.multi_processor_count),
            "driver": _driver(),
            "runtime": str(torch.version.hip or torch.version.cuda),
            "cudnn": str(cudnn),
        }
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)
    threads = str(torch.get_num_threads())
    return found | {"device": f"{device.type} {processor}", "threads": threads, "driver": "none"}


def _driver() -> str:
    """Version of the graphics driver; that of the interface it offers where it tells no other."""
    with suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    return str(getattr(torch._C, "_cuda_getDriverVersion", lambda: "unknown")())


def _choice(found: Any) -> Choice:
    """Return what a file's entry says.

    Raises:
        TypeError: It says nothing of the kind.
    """
    choice = Choice(**found)
    times, reasons = choice.milliseconds, choice.dropped
    if not (
        isinstance(choice.backend, str)
        and all(isinstance(time, int | float) for time in times.values())
        and all(isinstance(reason, str) for reason in reasons.values())
    ):
        raise TypeError(f"{found} is no choice of a backend")
    return choice
