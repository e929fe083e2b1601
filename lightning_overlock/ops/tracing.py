"""What is at work beside the network: `torch.jit.trace`, or an export with open sizes."""

from typing import Any

import torch


def is_tracing() -> bool:
    """Return whether a network is being traced: sizes must be made plain numbers then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_open(size: Any) -> bool:
    """Return whether a size is a symbol, which an exported network leaves open."""
    return isinstance(size, torch.SymInt) and torch.compiler.is_exporting()
