"""What a model or an operation costs: parameters, multiply-adds, time and memory.

`lightning bench NAME...` compares timm models, `--ops`, `--depthwise` and `--memory` the forms of
the package's operations. All contestants are taken in turn, round after round, and medians are
shown, so that a disturbance of the machine hits all of them; models that are compared on a CPU run
in a process each. `--profile` says where the time goes.
"""

import argparse
import copy
import ctypes
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.bench.roofline import report
from lightning_overlock.bench.worker import Step, StepProcess
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.dilated_reparam import BRANCHES, DilatedReparamConv
from lightning_overlock.ops.contmix.operator import FORMS, contmix_form, contmix_from_queries
from lightning_overlock.ops.depthwise.operator import FORMS as DEPTHWISE_FORMS
from lightning_overlock.ops.depthwise.operator import depthwise, depthwise_form
from lightning_overlock.ops.dispatch import triton_obstacle
from lightning_overlock.ops.neural_memory import neural_memory, neural_memory_vmap

MIB = 2**20
PEAK_RSS_RESET = Path("/proc/self/clear_refs")

# Batch, height, width and window of ContMix: the maps of a 224 px image, of a COCO image of
# 800x1344, and both kernels of a stage.
CONTMIX_SIZES = ("4x7x7x7", "4x14x14x5", "4x14x14x13", "1x25x42x7", "1x50x84x5", "1x50x84x13")
# Batch, tokens, channels and chunk of the neural memory: ConvNeur's first stage at 112, 224 and
# 448 px, so that the growth with the number of tokens shows.
MEMORY_SIZES = ("4x784x128x196", "4x3136x128x196", "4x12544x128x196")
# Batch, channels, height, width and kernel of the large depthwise convolutions: OverLoCK-T's four
# stages at 224 px.
DEPTHWISE_SIZES = ("4x64x56x56x17", "4x128x28x28x15", "4x256x14x14x13", "4x512x7x7x7")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Row = dict[str, str | float | None]


# Measuring ---------------------------------------------------------------------------------------


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> int:
    """Multiply-adds of one image in evaluation mode, every convolution and product counted.

    The model runs on the meta device, whatever its own: nothing is computed and nothing changes.

    Args:
        model: takes (1, C, H, W).
        input_size: (C, H, W).
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: x.detach().to("meta") for name, x in tensors.items()}
    image = torch.empty(1, *input_size, device="meta")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, weights, (image,))
    finally:
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def time_in_turn(
    steps: dict[str, Step], seconds: float, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Median seconds of each step, all taken in turn.

    Each turn runs the step twice and times the second run, so that none starts with the caches
    that another left behind.

    Args:
        steps: named functions of no argument.
        seconds: how long each of them runs; at least three rounds.
        device: the device whose work is waited for.
    """
    turns = {name: partial(second_run, step, device) for name, step in steps.items()}
    return medians_in_turn(turns, seconds)


def second_run(step: Step, device: torch.device | str) -> float:
    """Run a step twice and return the seconds of the second run, the device's work included."""
    device = torch.device(device)
    step()
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def medians_in_turn(turns: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """Median of what each of some functions returns, called in turn; see `time_in_turn`."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    rounds, started = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < seconds * len(turns):
        for name, turn in turns.items():
            found[name].append(turn())
        rounds += 1
    return {name: statistics.median(values) for name, values in found.items()}


def peak_memory(step: Step, device: torch.device | str = "cpu") -> int | None:
    """Bytes that `step` needs beyond what is held before it, at its highest.

    On CUDA by the allocator's own account. On a CPU by the peak of the process's resident set,
    which the work space of libraries enters too; None where the system (other than Linux) cannot
    reset that peak. The step should have run once before.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not PEAK_RSS_RESET.exists():
        return None
    # Give freed memory back first, or the step would be served from it unseen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    PEAK_RSS_RESET.write_text("5")
    before = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - before)


def copy_bandwidth(device: torch.device | str, seconds: float = 1.0) -> float:
    """Bytes per second that a copy within the device moves, those read and written both counted."""
    device = torch.device(device)
    source = torch.ones(2**22 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    took = time_in_turn({"copy": lambda: target.copy_(source)}, seconds, device)["copy"]
    return 2 * source.numel() * source.element_size() / took


def matmul_rate(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second, two per multiply-add, of a large product of random square matrices.

    float32 runs as `torch.get_float32_matmul_precision` says; convolutions on a GPU may be faster,
    because cuDNN rounds to TF32 by default.
    """
    device = torch.device(device)
    size = 512 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_in_turn({"product": lambda: a @ b}, seconds, device)["product"]


def inference_step(model: nn.Module, images: Tensor) -> Step:
    """A forward pass in evaluation mode."""

    def step() -> object:
        model.eval()
        with torch.inference_mode():
            return model(images)

    return step


def training_step(model: nn.Module, images: Tensor) -> Step:
    """Forward and backward pass in training mode with a cross-entropy loss, no optimizer."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> object:
        model.train()
        loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)
        return loss

    return step


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status(key: str) -> int:
    """A memory figure of this process in bytes."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    assert found is not None, f"no {key} in /proc/self/status"
    return int(found[1]) * 1024


# Tables ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What models are measured with.

    Args:
        batch_size: images in a batch.
        size: height and width of the images.
        device: where to run.
        dtype: a key of `DTYPES`; other than float32, the models run under autocast to it.
        channels_last: memory format of models and images.
        inference_form: whether to merge branches and norms before inference.
        features: whether to measure the feature maps instead of the logits.
        train: whether to measure a training step too.
        contmix_form: gives models with ContMix a second row, the model as it is built (without
            `inference_form`) and with ContMix in this form.
        depthwise_form: gives models with large depthwise convolutions another row, the model with
            these in this form.
    """

    batch_size: int = 1
    size: tuple[int, int] = (224, 224)
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = True
    inference_form: bool = False
    features: bool = False
    train: bool = True
    contmix_form: str | None = None
    depthwise_form: str | None = None

    @property
    def memory_format(self) -> torch.memory_format:
        """What `channels_last` means."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Contestant(NamedTuple):
    """A row of the table: the model as it is deployed, and its steps by kind."""

    deployed: nn.Module
    steps: dict[str, Step]


def bench_models(
    names: Sequence[str],
    setting: Setting | None = None,
    seconds: float = 5.0,
    isolated: bool = False,
) -> list[Row]:
    """Measure timm models side by side; see `lightning bench --help`.

    Args:
        names: any timm models.
        setting: what they are measured with.
        seconds: how long each figure is measured.
        isolated: run each row of the table in a process of its own. Within one, memory that a
            model has freed spares the next one fetching its own from the system.

    Returns:
        One row per model, the same keys in each: parameters in millions, multiply-adds of one
        image in billions, images per second, and extra peak memory in MiB.

    Raises:
        InputError: timm has no model of a name.
    """
    setting = setting or Setting()
    device = setting.device
    rows: list[Row] = []
    # Each calls a function of one step, here or in the step's process.
    asks: dict[str, dict[str, Callable[..., Any]]] = {}
    with ExitStack() as stack:
        for name in _known(names):
            for label, (deployed, steps) in _contestants(name, setting).items():
                rows.append(_costs(label, deployed, setting.size))
                if isolated:
                    process = StepProcess(label, _steps, name, setting, label)
                    stack.enter_context(process)
                    asks[label] = {kind: partial(process.ask, kind) for kind in steps}
                else:
                    asks[label] = {kind: partial(_call, step) for kind, step in steps.items()}
        for ask in asks.values():  # until all processes have started and built their model
            ask["inference"](callable)
        for kind in ("inference", "training") if setting.train else ("inference",):
            turns = {label: partial(ask[kind], second_run, device) for label, ask in asks.items()}
            times = medians_in_turn(turns, seconds)
            for row, (label, ask) in zip(rows, asks.items(), strict=True):
                row[f"{kind} images/s"] = setting.batch_size / times[label]
                row[f"{kind} peak MiB"] = _mib(ask[kind](peak_memory, device))
    return rows


def profile_models(
    names: Sequence[str], setting: Setting, seconds: float = 1.0
) -> dict[str, list[Row]]:
    """Profile the steps that `bench_models` times, by operation, against the device's ceilings.

    Args:
        names: any timm models.
        setting: what they are measured with.
        seconds: how long each of the two ceilings is measured.

    Returns:
        Rows of `lightning_overlock.bench.roofline.report` by title, which names the ceilings.

    Raises:
        InputError: timm has no model of a name.
    """
    bandwidth = copy_bandwidth(setting.device, seconds)
    rate = matmul_rate(setting.device, DTYPES[setting.dtype], seconds)
    ceilings = f"copies at {bandwidth / 1e9:.4g} GB/s, products at {rate / 1e9:.4g} GFLOP/s"
    tables = {}
    for name in _known(names):
        for label, contestant in _contestants(name, setting).items():
            for kind, step in contestant.steps.items():
                step()
                rows = report(step, setting.device, bandwidth, rate)
                tables[f"{label}, {kind} by operation; measured ceilings: {ceilings}"] = rows
    return tables


def _known(names: Sequence[str]) -> list[str]:
    """Each name once, if timm has models of all of them."""
    for name in names:
        if not timm.is_model(name):
            raise InputError(
                f"timm has no model '{name}'.{did_you_mean(name, timm.list_models())}\n"
                "`timm.list_models()` after `import lightning_overlock` names them all."
            )
    return list(dict.fromkeys(names))


def _contestants(name: str, setting: Setting) -> dict[str, Contestant]:
    """Build a model and what it is compared with, by label."""
    memory_format = setting.memory_format
    images = torch.randn(setting.batch_size, 3, *setting.size, device=setting.device)
    images = images.to(memory_format=memory_format)
    contestants: dict[str, Contestant] = {}

    def enter(label: str, deployed: nn.Module, model: nn.Module, setting: Setting) -> None:
        steps = {"inference": _under(inference_step(deployed, images), setting)}
        if setting.train:
            steps["training"] = _under(training_step(model, images), setting)
        contestants[label] = Contestant(deployed, steps)

    first = replace(setting, contmix_form=None, depthwise_form=None)
    model = timm.create_model(name, features_only=setting.features).to(setting.device)
    model = model.to(memory_format=memory_format)
    deployed = reparameterize_model(copy.deepcopy(model)) if setting.inference_form else model
    enter(name, deployed, model, first)
    if setting.contmix_form and _has(model, ContMix):
        label = f"{name} as built, {setting.contmix_form}"
        enter(label, model, model, replace(setting, depthwise_form=None))
    if setting.depthwise_form and _has(model, DilatedReparamConv):
        label = f"{name}, depthwise {setting.depthwise_form}"
        enter(label, deployed, model, replace(setting, contmix_form=None))
    return contestants


def _steps(name: str, setting: Setting, label: str) -> dict[str, Step]:
    return _contestants(name, setting)[label].steps


def _call(step: Step, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(step, *arguments)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _under(step: Step, setting: Setting) -> Step:
    """The step in the setting's dtype and forms."""

    def run() -> object:
        with ExitStack() as stack:
            if setting.dtype != "float32":
                kind = torch.device(setting.device).type
                stack.enter_context(torch.autocast(kind, DTYPES[setting.dtype]))
            if setting.contmix_form:
                stack.enter_context(contmix_form(setting.contmix_form))
            if setting.depthwise_form:
                stack.enter_context(depthwise_form(setting.depthwise_form))
            return step()

    return run


def _costs(label: str, model: nn.Module, size: tuple[int, int]) -> Row:
    return {
        "model": label,
        "parameters M": parameter_count(model) / 1e6,
        "multiply-adds G": multiply_adds(model, (3, *size)) / 1e9,
    }


def _mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


Call = Callable[..., Tensor | Sequence[Tensor]]
Form = tuple[Call, Sequence[Tensor]]


def _form_rows(size: str, forms: dict[str, Form], seconds: float, device: str) -> list[Row]:
    """Measure forms of one operation, forward and with the gradient of all their inputs."""

    def forward(call: Call, inputs: Sequence[Tensor]) -> object:
        with torch.no_grad():
            return call(*inputs)

    def both(call: Call, inputs: Sequence[Tensor]) -> object:
        leaves = [x.detach().requires_grad_() for x in inputs]
        found = call(*leaves)
        outputs = [found] if isinstance(found, Tensor) else found
        return torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])

    rows: list[Row] = [{"size": size, "form": name} for name in forms]
    kinds: dict[str, Callable[..., object]] = {"forward": forward, "forward + backward": both}
    for kind, run in kinds.items():
        steps: dict[str, Step] = {name: partial(run, *form) for name, form in forms.items()}
        times = time_in_turn(steps, seconds, device)
        for row, (name, step) in zip(rows, steps.items(), strict=True):
            row[f"{kind} ms"] = times[name] * 1e3
            row[f"{kind} peak MiB"] = _mib(peak_memory(step, device))
    return rows


def bench_contmix(
    sizes: Sequence[str] = CONTMIX_SIZES,
    *,
    groups: int = 8,
    channels: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: float = 2.0,
) -> list[Row]:
    """Measure the forms of ContMix with one kernel size, from queries to mixed values.

    Queries have as many channels as values; there are no bias tables.

    Args:
        sizes: "BxHxWxK": images, height, width, window.
        groups: G.
        channels: channels of a group.
        device: where to run; "triton" is measured where it can run.
        dtype: a key of `DTYPES`, of values, queries and prototypes.
        seconds: how long each form is measured.

    Returns:
        One row per size and form, unfold first: milliseconds and extra peak memory in MiB.
    """
    names = ["unfold", "dense", "strips", "auto"]
    if triton_obstacle(torch.device(device)) is None:
        names.insert(3, "triton")
    rows = []
    for size in sizes:
        batch, height, width, window = _numbers(size, "BxHxWxK, such as 4x14x14x13")
        if window % 2 == 0 or window > min(height, width):
            raise InputError(f"--sizes {size}: the window must be odd and fit into the map")
        draw = partial(torch.randn, device=device, dtype=DTYPES[dtype])
        value, query = (draw(batch, groups * channels, height, width) for _ in range(2))
        prototypes = draw(batch, groups, channels, window**2) * channels**-0.5
        forms: dict[str, Form] = {
            form: (partial(contmix_from_queries, form=form), (value, query, prototypes))
            for form in names
        }
        rows += _form_rows(size, forms, seconds, device)
    return rows


def bench_depthwise(
    sizes: Sequence[str] = DEPTHWISE_SIZES,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    compiled: bool = False,
    seconds: float = 2.0,
) -> list[Row]:
    """Measure large depthwise convolutions: with their branches as in training, and merged.

    Args:
        sizes: "BxCxHxWxK": images, channels, height, width, and kernel, a key of `BRANCHES`.
        device: where to run; "onednn" is measured on a CPU, "triton" on a GPU only.
        dtype: a key of `DTYPES`, of maps and kernels.
        compiled: whether to measure torch.compile of "conv" too.
        seconds: how long each form is measured.

    Returns:
        Rows per size, once with branches and once merged, and for each memory format and form,
        torch's convolution in NCHW first: milliseconds and extra peak memory in MiB.
    """
    own_form = "onednn" if torch.device(device).type == "cpu" else "triton"
    rows = []
    for size in sizes:
        batch, channels, height, width, kernel = _numbers(size, "BxCxHxWxK, such as 4x64x56x56x17")
        if kernel not in BRANCHES:
            raise InputError(f"--depthwise-sizes {size}: the kernel must be one of {[*BRANCHES]}")
        x = torch.randn(batch, channels, height, width, device=device, dtype=DTYPES[dtype])
        maps = {"NCHW": x, "channels-last": x.contiguous(memory_format=torch.channels_last)}
        for kind, branches in {"branches": BRANCHES[kernel], "merged": ()}.items():
            weights = [
                torch.randn(channels, 1, k, k, device=device, dtype=x.dtype)
                for k, _ in ((kernel, 1), *branches)
            ]
            dilations = [1, *(dilation for _, dilation in branches)]

            def run(
                x: Tensor, *weights: Tensor, form: str, dilations: Sequence[int] = dilations
            ) -> list[Tensor]:
                return depthwise(x, weights, dilations, form=form)

            calls: dict[str, Call] = {form: partial(run, form=form) for form in ("conv", own_form)}
            if compiled:
                calls["conv compiled"] = torch.compile(partial(run, form="conv"))
            forms: dict[str, Form] = {
                f"{form}, {layout}": (call, (found, *weights))
                for layout, found in maps.items()
                for form, call in calls.items()
            }
            rows += _form_rows(f"{size} {kind}", forms, seconds, device)
    return rows


def bench_memory(
    sizes: Sequence[str] = MEMORY_SIZES, *, device: str = "cpu", seconds: float = 2.0
) -> list[Row]:
    """Measure the neural memory against `torch.func.vmap(grad)`, float32, expansion 4.

    "one segment" takes all gradients at the initial memory, as the baseline does; "sequential" is
    the papers' formula, for which the baseline has no form.

    Args:
        sizes: "BxNxDxC": sequences, tokens, channels, tokens of a chunk.
        device: where to run.
        seconds: how long each form is measured.

    Returns:
        One row per size and form, vmap first: milliseconds and extra peak memory in MiB.
    """
    rows = []
    for size in sizes:
        batch, tokens, dim, chunk = _numbers(size, "BxNxDxC, such as 4x196x64x14")
        if tokens % chunk:
            raise InputError(f"--memory-sizes {size}: {tokens} tokens are no whole chunks")
        q, k, v = (torch.randn(batch, tokens, dim, device=device) for _ in range(3))
        step = torch.rand(batch, tokens, device=device) / dim
        momentum, decay = (torch.rand(batch, tokens // chunk, device=device) / 2 for _ in range(2))
        weights = (
            torch.randn(dim, 4 * dim, device=device) * dim**-0.5,
            torch.randn(4 * dim, dim, device=device) * (4 * dim) ** -0.5,
            torch.zeros(dim, device=device),
        )

        def run(
            operation: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
            *x: Tensor,
            chunk: int = chunk,
        ) -> Tensor:
            q, k, v, step, momentum, decay, *weights = x
            output, _ = operation(
                q, k, v, step, tuple(weights), chunk_size=chunk, momentum=momentum, decay=decay
            )
            return output

        inputs = (q, k, v, step, momentum, decay, *weights)
        forms: dict[str, Form] = {
            "vmap": (partial(run, neural_memory_vmap), inputs),
            "one segment": (partial(run, partial(neural_memory, segment_chunks="all")), inputs),
            "sequential": (partial(run, partial(neural_memory, segment_chunks=1)), inputs),
        }
        rows += _form_rows(size, forms, seconds, device)
    return rows


def _numbers(size: str, expected: str) -> list[int]:
    count = expected.partition(",")[0].count("x")
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{count}}}", size):
        raise InputError(f"'{size}' is no size; expected {expected}")
    return [int(number) for number in size.split("x")]


# Printing ----------------------------------------------------------------------------------------


def digits(value: float) -> str:
    """A number with three significant digits, or all those before its point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Figures to print, each with its ratio to that of the first row of the same size.

    Different operations are not compared.
    """
    first: dict[object, Row] = {}
    cells = []
    for row in rows:
        base = first.setdefault(row.get("operation", row.get("size")), row)
        line = []
        for key, value in row.items():
            if not isinstance(value, float):
                line.append("-" if value is None else value)
                continue
            text = digits(value)
            reference = base[key]
            if row is not base and isinstance(reference, float) and value and reference:
                # A time's ratio is turned round: how many times as fast.
                ratio = reference / value if key.endswith(" ms") else value / reference
                text += f" ({ratio:.3g}x)"
            line.append(text)
        cells.append(line)
    return cells


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *_cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _print(rows: Sequence[Row], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for key, value in rows[0].items():
        heading = re.sub(r" (peak MiB|\S+)$", r"\n\1", key)  # the unit below the quantity
        side: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    for line in _cells(rows):
        table.add_row(*line)
    # A pipe or a narrow window gets the whole table too: cut figures are of no use.
    width = Console(width=1000).measure(table).maximum
    Console(width=max(width, Console().width)).print(table)


def _size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise InputError(f"--size {text}: expected pixels, such as 224 or 800x1344 (HxW)")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (\S+)", message)
        near = did_you_mean(wrong[1].partition("=")[0], known) if wrong else ""
        raise InputError(f"bench: {message}.{near}\n`lightning bench --help` lists all options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightning bench",
        allow_abbrev=False,
        description="Parameters, multiply-adds, time and extra peak memory of timm models side by "
        "side, or of the package's operations. All are taken in turn, several models on a CPU in "
        "a process each; medians. In brackets: relative to the first row; of a time, how many "
        "times as fast. --profile adds where the time goes, against the device's measured "
        "ceilings.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="timm models, those of this package included")
    add("--batch-size", type=int, default=4, help="images in a batch (default: %(default)s)")
    add("--size", default="224", help="pixels, N or HxW (default: %(default)s)")
    add("--device", default=None, help="cpu, cuda, ... (default: cuda if there is one)")
    add("--threads", type=int, help="CPU threads (default: torch's own choice)")
    add(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="other than float32: models under autocast to it (default: %(default)s)",
    )
    add(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory format (default: channels-last)",
    )
    add(
        "--inference-form",
        action="store_true",
        help="merge branches and norms (timm's reparameterize_model) before inference; training "
        "is measured in the training form",
    )
    add("--features", action="store_true", help="the four feature maps instead of the logits")
    add(
        "--train",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure a training step too (default: yes, unless --features)",
    )
    add(
        "--contmix-form",
        choices=FORMS,
        help="add a second row for models with ContMix: as built, with ContMix in this form",
    )
    add(
        "--depthwise-form",
        choices=DEPTHWISE_FORMS,
        help="add a row for models with large depthwise convolutions: with these in this form",
    )
    add(
        "--profile",
        action="store_true",
        help="profile every model by operation: time, bytes and multiply-adds, and the least time "
        "at the copy bandwidth and matrix rate measured here (roofline)",
    )
    add("--seconds", type=float, help="time for each figure (default: 5; operations: 2)")
    add("--ops", action="store_true", help="the forms of ContMix, relative to unfold")
    add(
        "--sizes",
        nargs="+",
        metavar="BxHxWxK",
        help=f"images, map and window of --ops (default: {' '.join(CONTMIX_SIZES)})",
    )
    add("--groups", type=int, default=8, help="groups of --ops (default: %(default)s)")
    add("--group-channels", type=int, default=16, help="channels of each (default: %(default)s)")
    add(
        "--depthwise",
        action="store_true",
        help="the forms of large depthwise convolutions, relative to torch's in NCHW; Triton's is "
        "measured on a GPU only",
    )
    add(
        "--depthwise-sizes",
        nargs="+",
        metavar="BxCxHxWxK",
        help="images, channels, map and kernel of --depthwise "
        f"(default: {' '.join(DEPTHWISE_SIZES)})",
    )
    add("--compile", action="store_true", help="torch.compile as another form of --depthwise")
    add("--memory", action="store_true", help="the neural memory, relative to vmap(grad)")
    add(
        "--memory-sizes",
        nargs="+",
        metavar="BxNxDxC",
        help="sequences, tokens, channels and tokens of a chunk of --memory "
        f"(default: {' '.join(MEMORY_SIZES)})",
    )
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if not (args.names or args.ops or args.depthwise or args.memory):
        raise InputError(
            "nothing to measure: name timm models, or give --ops, --depthwise or --memory"
        )
    for option in ("batch_size", "threads", "groups", "group_channels", "seconds"):
        found = getattr(args, option)
        if found is not None and found <= 0:
            raise InputError(f"--{option.replace('_', '-')} {found}: expected more than zero")
    for option, needed in (
        ("sizes", "ops"),
        ("depthwise_sizes", "depthwise"),
        ("compile", "depthwise"),
        ("memory_sizes", "memory"),
        ("contmix_form", "names"),
        ("depthwise_form", "names"),
        ("profile", "names"),
    ):
        if getattr(args, option) and not getattr(args, needed):
            needed = "NAME" if needed == "names" else f"--{needed}"
            raise InputError(f"--{option.replace('_', '-')} is of use with {needed} only")
    for path in (args.json, args.markdown):
        if path and not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder to write {path.name} into")
    if args.features and args.train:
        raise InputError("--train needs logits, --features gives none")


def _where(device: str) -> str:
    """Where figures come from, for a title."""
    if torch.device(device).type == "cpu":
        return f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return f"torch {torch.__version__}, Triton {triton}, {name}"


def main(arguments: list[str]) -> int:
    """Run `lightning bench` and print its tables.

    Args:
        arguments: what was typed after `bench`.

    Returns:
        The exit code 0.

    Raises:
        InputError: a mistake in what was typed.
    """
    args = _parser().parse_args(arguments)
    _check_arguments(args)
    size = _size(args.size)
    try:
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {args.device} cannot be used: {reason}") from error
    obstacle = triton_obstacle(torch.device(device))
    for option in ("contmix_form", "depthwise_form"):
        if getattr(args, option) == "triton" and obstacle is not None:
            raise InputError(f"--{option.replace('_', '-')} triton: this form {obstacle}")
    if args.depthwise_form == "onednn" and torch.device(device).type != "cpu":
        raise InputError(f"--depthwise-form onednn is for CPUs, --device is {device}")
    if args.threads:
        torch.set_num_threads(args.threads)
    where = _where(device)
    timing = {} if args.seconds is None else {"seconds": args.seconds}
    tables: dict[str, list[Row]] = {}
    if args.names:
        setting = Setting(
            batch_size=args.batch_size,
            size=size,
            device=device,
            dtype=args.dtype,
            channels_last=args.channels_last,
            inference_form=args.inference_form,
            features=args.features,
            train=not args.features if args.train is None else args.train,
            contmix_form=args.contmix_form,
            depthwise_form=args.depthwise_form,
        )
        shape = f"batch {args.batch_size}, {size[0]}x{size[1]} px, {args.dtype}"
        shape += ", channels-last" if args.channels_last else ""
        shape += ", inference form" if args.inference_form else ""
        shape += ", features" if args.features else ""
        forms = args.contmix_form is not None or args.depthwise_form is not None
        isolated = torch.device(device).type == "cpu" and (forms or len(args.names) > 1)
        shape += ", a process each" if isolated else ""
        tables[f"Models: {shape}; {where}"] = bench_models(
            args.names, setting, isolated=isolated, **timing
        )
        if args.profile:
            tables |= profile_models(args.names, setting, **timing)
    if args.ops:
        title = f"ContMix: size BxHxWxK, {args.groups} groups of {args.group_channels} channels"
        tables[f"{title}, {args.dtype}; {where}"] = bench_contmix(
            args.sizes or CONTMIX_SIZES,
            groups=args.groups,
            channels=args.group_channels,
            device=device,
            dtype=args.dtype,
            **timing,
        )
    if args.depthwise:
        title = f"Depthwise convolutions: size BxCxHxWxK, {args.dtype}; {where}"
        title += "; Triton: not measured, it needs a GPU" if device == "cpu" else ""
        tables[title] = bench_depthwise(
            args.depthwise_sizes or DEPTHWISE_SIZES,
            device=device,
            dtype=args.dtype,
            compiled=args.compile,
            **timing,
        )
    if args.memory:
        tables[f"Neural memory: size BxNxDxC, float32; {where}"] = bench_memory(
            args.memory_sizes or MEMORY_SIZES, device=device, **timing
        )
    for title, rows in tables.items():
        _print(rows, title)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=2) + "\n")
    if args.markdown:
        args.markdown.write_text("\n".join(f"{t}\n\n{markdown(r)}" for t, r in tables.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
