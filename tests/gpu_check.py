"""What a machine with a GPU says of this package, in at most eight minutes: `make gpu-check`.

Tests of every backend, a training step of each task, then the tables of the benchmarks, as one
Markdown file for the docs. Each part is a process with a limit, so that one that hangs, crashes or
meets an error of the device costs the report nothing else. Without a GPU the parts that a CPU has
run on small work, and the report says what was skipped. Nothing is fetched from a network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_overlock import __version__
from lightning_overlock.ops.choices import choices
from lightning_overlock.tables import markdown

ROOT = Path(__file__).parents[1]
SECONDS = 8 * 60
# A part is not begun with less than this left.
LEAST_SECONDS = 15
LIGHTNING = ("-m", "lightning_overlock")
FEW = (
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--model.reestimate_bn=0",
)
SCENES = ("--data.scenes.train_images=16", "--data.scenes.eval_images=4", "--data.num_workers=0")
TASKS = {
    "classification": ("quickstart", ()),
    "detection": ("detection_quickstart", SCENES),
    "segmentation": ("segmentation_quickstart", SCENES),
}
# Relative to ConvNeXt-T's images a second, and to the least time of what is read and multiplied.
TRAINING_GOAL, CEILING_GOAL = 0.7, 100 / 3


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Args:
        name: Its name in the report.
        arguments: Arguments of Python.
        seconds: Its limit.
        needs_gpu: Whether it is skipped without one.
        table: Whether `lightning bench` writes tables for the report.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: int
    needs_gpu: bool = False
    table: bool = False


def parts(gpu: bool) -> list[Part]:
    """Return all parts in order: what is wrong first, figures last."""
    found = [Part("backends against float64", ("-m", "pytest", "-q", *backend_tests(gpu)), 150)]
    small = () if gpu else ("--model.backbone=test_overlock", "--data.batch_size=4")
    for precision in ("bf16-mixed", "16-mixed"):
        for task, (config, options) in TASKS.items():
            name = f"{task}, {precision}"
            only_gpu = precision == "16-mixed"
            fit = (*LIGHTNING, "fit", "--config", config, f"--name={name.replace(', ', '_')}")
            fit = (*fit, f"--trainer.precision={precision}", *FEW, *options, *small)
            found.append(Part(name, fit, 120, needs_gpu=only_gpu))
    quick = (*LIGHTNING, "fit", "--config", "quickstart", *FEW, *small)
    compiled = (*quick, "--name=compiled", "--model.compile=true", "--trainer.precision=bf16-mixed")
    ddp = (*quick, "--name=ddp", "--trainer.strategy=ddp", "--trainer.devices=1")
    found += [
        Part("compile", compiled, 90, needs_gpu=True),
        Part("ddp, one process", ddp, 120),
    ]
    bench, bf16 = (*LIGHTNING, "bench"), ("--dtype", "bfloat16")
    size = ("--batch-size", "64", *bf16) if gpu else ("--batch-size", "2", "--size", "32")
    ours, theirs = ("overlock_t", "convnext_tiny") if gpu else ("test_overlock", "test_convnext")
    many = (ours, theirs, "convneur_m3", "resnet50") if gpu else (ours, theirs)
    maps = ("64x14x14x13", "64x14x14x5", "64x7x7x7", "1x50x84x13") if gpu else ("1x9x9x5",)
    tables = {
        "ContMix": ("--ops", "--sizes", *maps, *bf16),
        "depthwise convolutions": (
            "--depthwise",
            *(bf16 if gpu else ("--depthwise-sizes", "1x4x7x7x5")),
        ),
        "models": (*many, *size, "--contmix-backend", "unfold"),
        "profile": (ours, theirs, *size, "--profile"),
    }
    seconds = "0.3" if gpu else "0.001"
    return found + [
        Part(name, (*bench, *options, "--seconds", seconds), 120, table=True)
        for name, options in tables.items()
    ]


def backend_tests(gpu: bool) -> list[str]:
    """Return the tests that run kernels on this machine's device."""
    ops = ROOT / "tests" / "ops"
    of_a_gpu = [
        f"{ops / 'depthwise/test_depthwise.py'}::"
        "test_triton_agrees_with_float64_on_a_gpu_and_repeats_itself",
        f"{ops / 'contmix/test_contmix_triton.py'}::test_kernels_on_the_gpu",
    ]
    # What is written while they run stays out of the checkout.
    config = f"--config-file={ROOT / 'pyproject.toml'}"
    cache = ["-p", "no:cacheprovider", f"--rootdir={ROOT}", config]
    return [*cache, str(ops / "test_every_backend.py"), *(of_a_gpu if gpu else [])]


def run(part: Part, folder: Path, seconds: float) -> tuple[str, str]:
    """Run a part; return its outcome, and the last lines of what it said if it failed."""
    arguments = list(part.arguments)
    if part.table:
        name = part.name.replace(" ", "_")
        arguments += ["--json", f"{folder / name}.json", "--markdown", f"{folder / name}.md"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LIGHTNING_OVERLOCK_CACHE": str(folder / "backends"),
        "OVERLOCK_CACHE": str(folder / "scenes"),
    }
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        return f"stopped after {seconds:.0f} s", said[-2000:]
    return ("passed", "") if done.returncode == 0 else ("FAILED", done.stdout[-2000:])


def goals(folder: Path) -> list[dict[str, str | float]]:
    """Return what was aimed at beside what was reached, for the tables that were written."""
    rows: list[dict[str, str | float]] = []
    if (path := folder / "models.json").is_file():
        (models,) = json.loads(path.read_text()).values()
        ours, theirs = models[0], next(row for row in models if "convnext" in row["model"])
        for kind in ("inference", "training"):
            ratio = ours[f"{kind} images/s"] / theirs[f"{kind} images/s"]
            name = f"{kind}, {ours['model']} to {theirs['model']}"
            goal = TRAINING_GOAL if kind == "training" else "-"
            rows.append({"figure": name, "reached": ratio, "goal": goal})
    if (path := folder / "profile.json").is_file():
        for title, profile in json.loads(path.read_text()).items():
            for row in profile:
                if "contmix_fused" in str(row.get("operation")):
                    name = f"{title.split(' by ')[0]}: {row['operation']}, % of the ceiling"
                    reached = row["of the ceiling %"]
                    rows.append({"figure": name, "reached": reached, "goal": CEILING_GOAL})
    return rows


def report(outcomes: list[dict[str, str]], failures: dict[str, str], folder: Path) -> str:
    """Return the Markdown of all that was found."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ["LIGHTNING_OVERLOCK_CACHE"] = str(folder / "backends")
    made = choices(device)
    identity = {"python": sys.version.split()[0], **made.identity}
    lines = [f"# GPU check of lightning_overlock {__version__}", ""]
    lines += [f"- {name}: {value}" for name, value in identity.items()]
    lines += ["", markdown(outcomes)]
    for name, said in failures.items():
        lines += ["", f"**{name}**", "", "```text", said.strip(), "```"]
    if aims := goals(folder):
        lines += ["", "## Goals", "", markdown(aims)]
    rows = [
        {
            "operation": operation,
            "call": call,
            "auto": choice.backend,
            "ms": ", ".join(f"{name} {ms:.3g}" for name, ms in choice.milliseconds.items()),
            "dropped": "; ".join(f"{name}: {why}" for name, why in choice.dropped.items()) or "-",
        }
        for operation, call, choice in made.items()
    ]
    lines += ["", "## What auto takes", "", markdown(rows) if rows else "Nothing was measured."]
    for part in parts(device.type == "cuda"):
        path = folder / f"{part.name.replace(' ', '_')}.md"
        if part.table and path.is_file():
            lines += ["", f"## {part.name[0].upper()}{part.name[1:]}", "", path.read_text().strip()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all parts, write the report after each, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu_check")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob("*.json"), *folder.glob("*.md")):  # of an earlier check
        left.unlink()
    for left in ("runs", "backends"):
        shutil.rmtree(folder / left, ignore_errors=True)
    gpu, started = torch.cuda.is_available(), time.monotonic()
    outcomes: list[dict[str, str]] = []
    failures: dict[str, str] = {}
    for part in parts(gpu):
        begun, said = time.monotonic(), ""
        left_over = SECONDS - (begun - started)
        if options.only and part.name not in options.only:
            outcome = "skipped: not asked for"
        elif part.needs_gpu and not gpu:
            outcome = "skipped: there is no GPU"
        elif left_over < LEAST_SECONDS:
            outcome = "skipped: the time is over"
        else:
            outcome, said = run(part, folder, min(part.seconds, left_over))
        took = f"{time.monotonic() - begun:.0f}"
        print(f"{part.name}: {outcome} ({took} s)", flush=True)
        outcomes.append({"part": part.name, "outcome": outcome, "s": took})
        if said:
            failures[part.name] = said
        (folder / "report.md").write_text(report(outcomes, failures, folder))
    print(folder / "report.md")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
