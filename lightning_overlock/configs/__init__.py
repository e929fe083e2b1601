"""The shipped configurations: YAML files that `--config NAME` finds by their bare name."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from lightning_overlock.errors import InputError, did_you_mean

# Recipes for networks that are trained already: from scratch their learning rates are too low.
FROM_WEIGHTS = frozenset({"finetune"})


def shipped() -> dict[str, Path]:
    """Return the shipped configurations as name -> file, sorted by name."""
    folder = Path(str(resources.files(__name__)))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Return the file that `--config name` means.

    A bare word is a shipped name; anything with a suffix or a slash is a path.

    Raises:
        InputError: If there is no such configuration or file.
    """
    return find_file(name, shipped(), "configuration", typed=f"--config {name}")


def find_file(name: str, known: Mapping[str, Path], kind: str, typed: str) -> Path:
    """Return the file that a bare word or a path means.

    Args:
        name: One of `known`, or a path: it has a suffix or a slash.
        known: Shipped files by name.
        kind: What such a file is called in messages.
        typed: What was typed, for messages.

    Raises:
        InputError: If there is no such name or file.
    """
    if "/" in name or Path(name).suffix:
        path = Path(name)
        if path.is_file():
            return path
        what = "is a folder" if path.is_dir() else "does not exist"
        near = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise InputError(
            f"{typed}: this file {what}.{did_you_mean(name, near)}\n"
            f"Expected a YAML file, or the bare name of a shipped {kind}, such as {min(known)}."
        )
    if name not in known:
        raise InputError(
            f"{typed}: no {kind} of this name is shipped.{did_you_mean(name, known)}\n"
            f"Shipped: {', '.join(known)}. A file of your own needs a suffix or a slash, as in "
            "./mine.yaml."
        )
    return known[name]


def listing() -> str:
    """Return one line per shipped configuration: its name and its file's first comment line."""
    lines = []
    width = max(map(len, shipped()), default=0)
    for name, file in shipped().items():
        first = file.read_text().split("\n", 1)[0]
        lines.append(f"{name:<{width}}  {first.removeprefix('#').strip()}")
    return "\n".join(lines)
