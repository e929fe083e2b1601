"""One choice for all processes of a training: that of the first one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# Processes wait for the first one's turn so long: it may never come to a call of this kind, with
# images of other sizes. They wait so long for what is being measured, which may take a compiler.
HEAD_START = timedelta(seconds=5)
PATIENCE = timedelta(seconds=120)


def together() -> bool:
    """Return whether this process trains with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def of_first_process(key: str, decide: Callable[[], str | None]) -> str | None:
    """Return what the process of rank 0 decided, or another one where that does not come.

    No collective operation is used: processes may come here in any order, or never.

    Args:
        key: What is decided, the same in all processes.
        decide: Called in one process.

    Returns:
        What `decide` returned there; None too where it takes too long.
    """
    # Where torch is built without it, this module can be imported and `together` is False.
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    store = PrefixStore(f"lightning_overlock {key}", _get_default_store())
    waited_for = dist.get_rank() and _comes(store, "claimed", HEAD_START)
    if not waited_for and store.add("claimed", 1) == 1:
        found = decide()
        store.set("decided", found or "")
        return found
    if not _comes(store, "decided", PATIENCE):
        return None
    return store.get("decided").decode() or None


def _comes(store: Any, key: str, patience: timedelta) -> bool:
    try:
        store.wait([key], patience)
    except RuntimeError:
        return False
    return True
