"""Where a trial's figures come from: code, versions, machine, configuration."""

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_overlock import __version__


@cache
def checkout() -> dict[str, Any]:
    """Return the git commit of the package's checkout and whether files in it had changed.

    Without a checkout of the package, that of the current folder; nothing where there is none.
    """
    package = Path(__file__).parents[1]
    for folder, files in ((package, [str(package / "__init__.py")]), (Path.cwd(), [])):
        if files and _git(folder, "ls-files", "--error-unmatch", *files) is None:
            continue
        if (commit := _git(folder, "rev-parse", "HEAD")) is not None:
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return {"commit": commit, "changed": bool(changed)}
    return {}


def _git(folder: Path, *words: str) -> str | None:
    if shutil.which("git") is None:
        return None
    command = ["git", "-C", str(folder), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def machine(threads: int, devices: str | None) -> dict[str, Any]:
    """Return the hardware and the versions that trials run with, in words without names."""
    words: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count(), "threads": threads}
    if gpus := _gpus(devices):
        words["gpu"] = ", ".join(gpus)
    return words | {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{name: _version(name) for name in ("torch", "lightning", "timm", "optuna")},
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


def _version(name: str) -> str:
    # A module knows its variant too, as in 2.11.0+cu130.
    return str(getattr(sys.modules.get(name), "__version__", None) or version(name))
