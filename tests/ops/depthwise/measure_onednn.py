"""Measures the forms of depthwise convolutions on this CPU, in turn.

`python tests/ops/depthwise/measure_onednn.py NAME:SIZE:BATCH ...`: a training step and inference of
each network by each of the rules in `ops/depthwise/onednn.py`, and by the rules for this CPU
without the products of `ops/depthwise/few_pixels.py`.
"""

import sys

import timm
import torch

import lightning_overlock  # noqa: F401  registers the backbones
from lightning_overlock.bench.measure import inference_step, time_interleaved, training_step
from lightning_overlock.ops.depthwise import few_pixels, onednn

OWN, FEW = onednn.rules, few_pixels.is_faster


def by(rules, few, step):
    def run():
        onednn.rules, few_pixels.is_faster = rules, few
        step()

    return run


def main():
    print(f"this CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for word in sys.argv[1:]:
        name, size, batch = word.split(":")
        images = torch.randn(int(batch), 3, int(size), int(size))
        images = images.contiguous(memory_format=torch.channels_last)
        for what, make in (("training step", training_step), ("inference", inference_step)):
            model = timm.create_model(name).to(memory_format=torch.channels_last)
            step = make(model, images)
            steps = {
                f"the rules for {kind}": by(rules, FEW, step)
                for kind, rules in onednn.RULES.items()
            }
            steps["these without products"] = by(OWN, lambda *_: False, step)
            took = time_interleaved(steps, seconds=10)
            words = ", ".join(f"{took[kind]:.3f} s by {kind}" for kind in took)
            print(f"{word}, {what}: {words}", flush=True)


if __name__ == "__main__":
    main()
