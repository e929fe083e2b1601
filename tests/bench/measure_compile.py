"""Measures what compiling takes and gains: `python tests/bench/measure_compile.py NAME:BATCH ...`.

Each network runs as it is and compiled, in turn: inference, whole (`fullgraph=True`, Inductor), and
a training step in blocks, as `--model.compile true` has it.
"""

import sys
import time

import timm
import torch

import lightning_overlock  # noqa: F401  registers the backbones
from lightning_overlock.backbones.compile import compile_blocks
from lightning_overlock.bench.measure import inference_step, time_interleaved, training_step


def first_run(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def main():
    for word in sys.argv[1:]:
        name, _, batch = word.partition(":")
        eager = timm.create_model(name)
        images = torch.randn(int(batch or 4), *eager.pretrained_cfg["input_size"])
        whole = timm.create_model(name)
        whole.load_state_dict(eager.state_dict())
        steps = {"as it is": inference_step(eager, images)}
        steps["compiled"] = inference_step(torch.compile(whole.eval(), fullgraph=True), images)
        report(name, "inference", first_run(steps["compiled"]), steps)
        blocks = timm.create_model(name)
        compile_blocks(blocks)
        steps = {"as it is": training_step(eager, images)}
        steps["compiled"] = training_step(blocks, images)
        report(name, "training", first_run(steps["compiled"]), steps)
        torch.compiler.reset()


def report(name, what, compiling, steps):
    took = time_interleaved(steps, seconds=10)
    ratio = took["as it is"] / took["compiled"]
    print(
        f"{name}, {what}: {took['as it is']:.3f} s as it is, {took['compiled']:.3f} s compiled "
        f"({ratio:.2f} times as fast) after {compiling:.0f} s of compiling",
        flush=True,
    )


if __name__ == "__main__":
    main()
