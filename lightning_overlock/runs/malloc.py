"""What becomes of memory between the steps of a training on a CPU."""

import ctypes
import os

# Numbers of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Whoever sets one of these has their own mind about it.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let what is freed stay with this process and those that it forks, for its next step.

    By default glibc gives large pieces back to the system and fetches them again page by page: up
    to a fifth of a training step (docs, "Benchmarks").

    Returns:
        Whether it was set: not with other C libraries, nor where the environment says how.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in VARIABLES):
        return False
    # Older glibc refuses more than the second.
    piece = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(piece and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
