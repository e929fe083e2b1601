"""What is at work beside the network: `torch.jit.trace`, or an export, with open sizes perhaps."""

from typing import Any

import torch


def is_tracing() -> bool:
    """Return whether a network is being traced: sizes must be made plain numbers then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Return whether a network is being exported, by `torch.export`.

    torch's own function is taken for true in whatever torch 2.11 compiles. Called as here, it is
    asked while the code is compiled.
    """
    return torch.compiler.is_exporting()


def is_open(size: Any) -> bool:
    """Return whether a size is a symbol, which an exported network leaves open."""
    return isinstance(size, torch.SymInt) and is_exporting()
