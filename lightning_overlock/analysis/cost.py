"""What a network costs stage by stage, and how its cost grows with the image.

Built on `lightning_overlock.bench`; the sums over stages are its figures for the whole model.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.analysis.hooks import evaluation
from lightning_overlock.analysis.style import panels, style
from lightning_overlock.bench import measure
from lightning_overlock.bench.measure import Step
from lightning_overlock.layers.tap import Tap

Row = dict[str, Any]
COSTS = ("parameters M", "multiply-adds G", "activations MiB", "inference ms")


def stages_of(model: Any) -> dict[str, nn.Module]:
    """Return the modules that a model's cost is shared out among, by name.

    Its children; a container of stages (by timm's `feature_info`) is opened.

    Example:
        >>> import timm
        >>> list(stages_of(timm.create_model("test_convneur")))
        ['stem', 'stages.0', 'stages.1', 'stages.2', 'stages.3', 'head']
    """
    infos = getattr(model, "feature_info", [])
    containers = {info["module"].rpartition(".")[0] for info in infos} if infos else set()
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name in containers:
            found |= {f"{name}.{place}": stage for place, stage in child.named_children()}
        elif not isinstance(child, Tap | nn.Identity):
            found[name] = child
    return found


def stage_costs(
    model: nn.Module,
    size: tuple[int, int] = (224, 224),
    batch_size: int = 2,
    seconds: float = 1.0,
) -> list[Row]:
    """Measure parameters, multiply-adds, activation memory and time of every stage.

    Activations are the tensors that a training step's forward pass keeps for its backward pass,
    each counted once, at the stage that keeps it first; what a stage recomputes instead is not
    kept. Times are medians of the forward pass in inference mode. The model itself stays as it
    is: a copy is measured, on the model's device.

    Args:
        model: A timm model, or any module that takes (B, 3, H, W).
        size: Height and width of the images.
        batch_size: Images in a batch; two or more for networks with batch norms.
        seconds: Seconds that times are measured for.

    Returns:
        One row per stage, one "(other)" for what lies outside of them, and "total", which is
        `bench`'s figure: "stage", "parameters M", "multiply-adds G" (of one image), "activations
        MiB" and "inference ms" (both of the batch).

    Example:
        >>> import timm
        >>> rows = stage_costs(timm.create_model("test_convneur"), (64, 64), seconds=0)
        >>> rows[0]["stage"], rows[-1]["stage"]
        ('stem', 'total')
    """
    model = copy.deepcopy(model)
    weight = next(model.parameters())
    images = torch.randn(batch_size, 3, *size, device=weight.device, dtype=weight.dtype)
    stages = stages_of(model)
    costs = {
        "parameters M": _parameters(stages),
        "multiply-adds G": _multiply_adds(model, stages, size),
        "activations MiB": _activations(model, stages, images),
        "inference ms": _times(model, stages, images, seconds),
    }
    totals = {
        "parameters M": measure.parameter_count(model) / 1e6,
        "multiply-adds G": costs["multiply-adds G"].pop("total"),
        "activations MiB": costs["activations MiB"].pop("total"),
        "inference ms": costs["inference ms"].pop("total"),
    }
    rows: list[Row] = [
        {"stage": name, **{cost: costs[cost].get(name, 0.0) for cost in COSTS}} for name in stages
    ]
    other = {cost: totals[cost] - sum(row[cost] for row in rows) for cost in COSTS}
    return [*rows, {"stage": "(other)", **other}, {"stage": "total", **totals}]


def _parameters(stages: dict[str, nn.Module]) -> dict[str, float]:
    """Millions; a parameter that stages share counts for the first."""
    seen: set[int] = set()
    found = {}
    for name, stage in stages.items():
        own = {id(p): p.numel() for p in stage.parameters() if id(p) not in seen}
        seen |= own.keys()
        found[name] = sum(own.values()) / 1e6
    return found


def _multiply_adds(
    model: nn.Module, stages: dict[str, nn.Module], size: tuple[int, int]
) -> dict[str, float]:
    """Billions, of one image, by stage and in total."""
    with FlopCounterMode(display=False) as counter:
        total = measure.multiply_adds(model, (3, *size))
    by_module = counter.get_flop_counts()
    root = type(model).__name__
    flops = {name: sum(by_module.get(f"{root}.{name}", {}).values()) for name in stages}
    return {name: count / 2e9 for name, count in flops.items()} | {"total": total / 1e9}


def _activations(
    model: nn.Module, stages: dict[str, nn.Module], images: Tensor
) -> dict[str, float]:
    """MiB that the graph keeps, by the stage that keeps it first, and their total."""
    weights = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[str, int]] = {}
    within: list[str] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            place = within[-1] if within else ""
            kept.setdefault(storage.data_ptr(), (place, storage.nbytes()))
        return x

    model.train()
    with (
        _watched(stages, within.append, lambda _name: within.pop()),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        output = model(images)
    del output  # held until now: what is freed could lend its address to what comes after
    found = dict.fromkeys(stages, 0.0)
    for name, size in kept.values():
        if name:
            found[name] += size / measure.MIB
    return found | {"total": sum(size for _, size in kept.values()) / measure.MIB}


def _times(
    model: nn.Module, stages: dict[str, nn.Module], images: Tensor, seconds: float
) -> dict[str, float]:
    """Median milliseconds of each stage and of the whole, from the same passes."""
    device = images.device
    passes: list[dict[str, float]] = []
    started: dict[str, float] = {}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def enter(name: str) -> None:
        started[name] = now()

    def leave(name: str) -> None:
        spent = passes[-1]
        spent[name] = spent.get(name, 0.0) + now() - started[name]

    forward = measure.inference_step(model, images)

    def step() -> None:
        passes.append({})
        forward()

    with _watched(stages, enter, leave):
        whole = measure.time_interleaved({"model": step}, seconds, device)["model"]
    # `time_interleaved` runs everything twice and takes the second.
    second = passes[1::2]
    found = {name: statistics.median(p.get(name, 0.0) for p in second) for name in stages}
    return {name: 1e3 * value for name, value in (found | {"total": whole}).items()}


@contextmanager
def _watched(
    stages: dict[str, nn.Module], enter: Callable[[str], object], leave: Callable[[str], object]
) -> Iterator[None]:
    """Call `enter(name)` before and `leave(name)` after the forward pass of every stage."""

    def call(function: Callable[[str], object], name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            function(name)

        return hook

    handles = []
    for name, stage in stages.items():
        handles.append(stage.register_forward_pre_hook(call(enter, name)))
        handles.append(stage.register_forward_hook(call(leave, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plot_stage_costs(costs: dict[str, list[Row]]) -> Figure:
    """Draw the stages' shares of every cost as stacked bars, one bar per model.

    Args:
        costs: Rows by model, as `stage_costs` returns them.

    Example:
        >>> row = {"parameters M": 1.0, "multiply-adds G": 1.0, "activations MiB": 1.0}
        >>> rows = [{"stage": name, **row, "inference ms": 1.0} for name in ("stem", "total")]
        >>> figure = plot_stage_costs({"a model": rows})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['parameters M', 'multiply-adds G', 'activations MiB', 'inference ms']
    """
    with style():
        figure, axes = panels(1, len(COSTS), width=1.2 + 0.9 * len(costs), height=3.6)
        for panel, cost in zip(axes[0], COSTS, strict=True):
            tallest = max(row[cost] for rows in costs.values() for row in rows)
            for place, rows in enumerate(costs.values()):
                bottom = 0.0
                parts = [row for row in rows if row["stage"] != "total" and row[cost] > 0]
                for number, row in enumerate(parts):
                    # Neighbours differ in lightness, so that a grey print shows the borders.
                    shade = "#dddddd" if number % 2 else "#aaaaaa"
                    panel.bar(place, row[cost], 0.9, bottom, color=shade, edgecolor="black")
                    if row[cost] > 0.05 * tallest:
                        middle = bottom + row[cost] / 2
                        panel.text(place, middle, row["stage"], ha="center", va="center", size=7)
                    bottom += row[cost]
            panel.set_xticks(range(len(costs)), list(costs), rotation=30, ha="right")
            panel.set_ylabel(cost)
            panel.grid(False, axis="x")
            panel.set_axisbelow(True)
    return figure


GROWTH = ("multiply-adds G", "inference ms", "inference peak MiB")


def growth_rows(
    models: dict[str, nn.Module],
    sides: Sequence[int] = (128, 224, 320, 448),
    batch_size: int = 1,
    seconds: float = 1.0,
) -> list[Row]:
    """Measure how multiply-adds, time and memory grow with the image, models taken in turn.

    Args:
        models: Models by label, all on one device; each must take images of every side (a ViT needs
            `dynamic_img_size=True`).
        sides: Sides of the square images in pixels.
        batch_size: Images in a batch.
        seconds: Seconds that each model is timed for at each size.

    Returns:
        Rows with "model", "side px", "multiply-adds G" (of one image), "inference ms" and
        "inference peak MiB" (both of the batch; the latter as `measure.peak_memory` measures it,
        None where the system cannot tell).

    Example:
        >>> import timm
        >>> rows = growth_rows({"tiny": timm.create_model("test_convnext")}, [32, 64], seconds=0)
        >>> [row["side px"] for row in rows]
        [32, 64]
    """
    rows: list[Row] = []
    for side in sides:
        steps = {}
        for name, model in models.items():
            weight = next(model.parameters())
            images = torch.randn(batch_size, 3, side, side, device=weight.device)
            steps[name] = _in_evaluation(model, images.to(weight.dtype))
        device = next(next(iter(models.values())).parameters()).device
        times = measure.time_interleaved(steps, seconds, device)
        for name, model in models.items():
            peak = measure.peak_memory(steps[name], device)
            rows.append(
                {
                    "model": name,
                    "side px": side,
                    "multiply-adds G": measure.multiply_adds(model, (3, side, side)) / 1e9,
                    "inference ms": 1e3 * times[name],
                    "inference peak MiB": None if peak is None else peak / measure.MIB,
                }
            )
    return rows


def _in_evaluation(model: nn.Module, images: Tensor) -> Step:
    forward = measure.inference_step(model, images)

    def step() -> object:
        with evaluation(model):
            return forward()

    return step


def growth_exponents(rows: Sequence[Row]) -> list[Row]:
    """Return with which power of the number of pixels each cost grows: 1 is linear, 2 quadratic.

    The least-squares slope of log(cost) over log(pixels) through all sizes. Small images bend it
    down in time and memory, where fixed costs weigh.

    Args:
        rows: What `growth_rows` returns, of two sizes or more.

    Returns:
        Rows with "model" and an exponent for every cost; None where a cost was not measured.

    Example:
        >>> measured = [{"model": "m", "side px": s, "inference ms": s**4.0} for s in (8, 16, 32)]
        >>> round(growth_exponents(measured)[0]["inference ms"], 6)
        2.0
    """
    found = []
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        pixels = [float(row["side px"]) ** 2 for row in own]
        exponents: Row = {"model": name}
        for cost in GROWTH:
            values = [row.get(cost) for row in own]
            known = len(values) > 1 and all(value for value in values)
            exponents[cost] = (
                float(np.polyfit(np.log(pixels), np.log(np.array(values, float)), 1)[0])
                if known
                else None
            )
        found.append(exponents)
    return found


def plot_growth(rows: Sequence[Row]) -> Figure:
    """Draw costs of several models over the side of the image, with linear and quadratic growth.

    Args:
        rows: What `growth_rows` returns.

    Example:
        >>> row = {"model": "m", "multiply-adds G": 1.0, "inference ms": 2.0}
        >>> measured = [{**row, "side px": s, "inference peak MiB": 3.0} for s in (32, 64)]
        >>> figure = plot_growth(measured)
        >>> figure.axes[0].get_xlabel()
        'side of the image (px)'
    """
    names = list(dict.fromkeys(row["model"] for row in rows))
    exponents = {row["model"]: row for row in growth_exponents(rows)}
    with style():
        figure, axes = panels(1, len(GROWTH), width=3.0, height=3.6)
        for panel, cost in zip(axes[0], GROWTH, strict=True):
            for name in names:
                own = [row for row in rows if row["model"] == name and row[cost]]
                if not own:
                    continue
                power = exponents[name][cost]
                label = name if power is None else f"{name} (pixels^{power:.2f})"
                panel.plot([row["side px"] for row in own], [row[cost] for row in own], label=label)
            known = [row for row in rows if row[cost]]
            if known:
                sides = np.array(sorted({float(row["side px"]) for row in known}))
                start = min(row[cost] for row in known if row["side px"] == sides[0])
                for power, name in ((1, "linear"), (2, "quadratic")):
                    # Half of the lowest, to lie free of the curves.
                    guide = start / 2 * (sides / sides[0]) ** (2 * power)
                    panel.plot(sides, guide, color="#999999", linewidth=0.8, marker="", ls="-")
                    panel.annotate(name, (sides[-1], guide[-1]), color="#777777", size=7)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sorted({row["side px"] for row in rows}))
            panel.xaxis.set_major_formatter("{x:.0f}")
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xlabel("side of the image (px)")
            panel.set_ylabel(cost)
            if known:
                # Above the curves, which fill a panel of two straight guides.
                panel.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=7)
    return figure
