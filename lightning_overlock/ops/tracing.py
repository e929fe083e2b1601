"""Whether `torch.jit.trace` is at work, which makes tensors of sizes."""

import torch


def is_tracing() -> bool:
    """Return whether a network is being traced: sizes must be made plain numbers then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
