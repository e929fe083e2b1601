"""Initial weights from a file: release checkpoints, Lightning checkpoints, timm's, safetensors."""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from lightning_overlock.errors import InputError

# In the order of preference: averaged weights first.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the network's weights from a checkpoint file.

    Understands safetensors, a bare state dict, one under `state_dict_ema`, `model_ema`,
    `state_dict` or `model`, and checkpoints of this package, whose `state_dict` holds the average
    where an EMA was kept.

    Raises:
        InputError: there is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # timm's training script stores its arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise InputError(
            f"{path} is no checkpoint that torch reads with weights_only ({type(error).__name__})\n"
            "expected weights of the release, of timm or of this package, or safetensors"
        ) from error
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    if isinstance(content, Mapping):
        content = next((content[name] for name in _ENTRIES if name in content), content)
    weights = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not weights:
        raise InputError(
            f"{path} holds no weights\n"
            f"expected a state dict, or one under {', '.join(map(repr, _ENTRIES))}"
        )
    if lightning:
        weights = {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if name.startswith("model.")
        }
    return clean_state_dict(weights)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe where two state dicts differ in names or shapes, "" if they do not.

    Names the first missing and the first unexpected entry and the first of another shape.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return _summary(missing, unexpected, shapes)


def counted(names: Iterable[str]) -> str:
    """Shorten a list of entries: "head.conv (5), head.fc (2)"."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in parts.items())


def load_error_summary(error: Exception) -> str:
    """Shorten what `load_state_dict` says to the first entry of each kind."""
    text = str(error)

    def names(kind: str) -> list[str]:
        line = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        return re.findall(r'"([^"]+)"', line[1]) if line else []

    shapes = [
        f"{name} is {tuple(map(int, re.findall('[0-9]+', found)))} "
        f"instead of {tuple(map(int, re.findall('[0-9]+', expected)))}"
        for name, found, expected in re.findall(
            r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text
        )
    ]
    summary = _summary(names("Missing"), names("Unexpected"), shapes)
    return summary or f"{type(error).__name__}: {text.strip().splitlines()[0] if text else ''}"


def _summary(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    parts = [
        f"{len(entries)} {kind} ({entries[0]}{', …' if len(entries) > 1 else ''})"
        for kind, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if entries
    ]
    return "; ".join(parts)
