"""Measures training steps with freed memory kept and given back, in processes in turn.

`python tests/runs/measure_malloc.py NAME:SIZE:BATCH ...`, one thread. For each, three pairs of
processes; prints the median of each kind's medians in seconds, and the peak of its resident set.
"""

import os
import resource
import statistics
import subprocess
import sys

PAIRS, STEPS = 3, 7


def one(name, size, batch, keep):
    import timm
    import torch

    import lightning_overlock  # noqa: F401  registers the backbones
    from lightning_overlock.bench.measure import second_run, training_step
    from lightning_overlock.runs.malloc import keep_freed_memory

    torch.set_num_threads(1)
    if keep == "kept":
        assert keep_freed_memory()
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    step = training_step(model, images)
    took = statistics.median(second_run(step, "cpu") for _ in range(STEPS))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    for word in sys.argv[1:]:
        found = {"kept": [], "given back": []}
        for _ in range(PAIRS):
            for keep, values in found.items():
                command = [sys.executable, __file__, "--one", word, keep]
                done = subprocess.run(
                    command, env=dict(os.environ), capture_output=True, text=True, check=True
                )
                values.append([float(number) for number in done.stdout.split()])
        took, peak = (
            {keep: statistics.median(v[i] for v in values) for keep, values in found.items()}
            for i in (0, 1)
        )
        print(
            f"{word}: given back {took['given back']:.3f} s, kept {took['kept']:.3f} s, "
            f"{took['given back'] / took['kept']:.2f}x; peak {peak['given back']:.0f} and "
            f"{peak['kept']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        name, size, batch = sys.argv[2].split(":")
        one(name, int(size), int(batch), sys.argv[3])
    else:
        main()
