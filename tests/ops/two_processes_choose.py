"""One of two processes that measure: rank and the store's file are its arguments."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from lightning_overlock.ops import first_process
from lightning_overlock.ops.choices import Choice, choices
from lightning_overlock.ops.dispatch import Backends


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    backends = Backends("made", "safe", "first", "second")
    other = "second" if rank == 0 else "first"

    def run(name: str, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.004 if name in ("safe", other) else 0)
        return x * 3

    def choose(count: int) -> str | None:
        x = torch.ones(count, 1, 1, 1)
        return backends.choose("made", {"maps": count}, lambda: backends.names, run, [x])

    found = [choose(1)]
    # The first comes after the second has waited for long enough.
    first_process.HEAD_START = timedelta(seconds=0.1)
    if rank == 0:
        time.sleep(1.5)
    found.append(choose(2))
    dist.barrier()
    first_process.HEAD_START = timedelta(seconds=60)
    remembered = Choice("first" if rank == 0 else "second")
    choices(torch.device("cpu")).put("made", "made, maps <= 4", remembered)
    found.append(choose(4))
    torch.use_deterministic_algorithms(True)
    found.append(choose(8))
    print(*found)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
