"""timm models side by side: cost, time and memory of each, and where its time goes."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import lightning_overlock.bench.unfold  # noqa: F401  brings its backend of ContMix
from lightning_overlock.bench.exported import ONNX, exported_row, exported_steps
from lightning_overlock.bench.measure import (
    Step,
    copy_bandwidth,
    in_mib,
    inference_step,
    interleaved_medians,
    matmul_rate,
    multiply_adds,
    parameter_count,
    peak_memory,
    second_run,
    time_interleaved,
    training_step,
)
from lightning_overlock.bench.report import Row
from lightning_overlock.bench.roofline import report
from lightning_overlock.bench.worker import Worker
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.dilated_reparam import DilatedReparamConv
from lightning_overlock.ops.contmix.operator import contmix_backend
from lightning_overlock.ops.depthwise.operator import depthwise_backend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How timm is asked for a model that lies in a folder.
LOCAL_DIR = "local-dir:"


@dataclass(frozen=True)
class Setting:
    """What models are measured with.

    Args:
        batch_size: Images in a batch.
        size: Height and width of the images.
        device: Device to run on.
        dtype: A key of `DTYPES`; other than float32, the models run under autocast to it.
        channels_last: Whether models and images have the channels last in memory.
        inference_form: Whether to merge branches and norms before inference.
        features: Whether to measure the feature maps instead of the logits.
        train: Whether to measure a training step too.
        contmix_backend: Gives models with ContMix a second row, the model as it is built (without
            `inference_form`) and with ContMix on this backend.
        depthwise_backend: Gives models with large depthwise convolutions another row, the model
            with these on this backend.
        teacher: Gives every model another row, trained with this timm model's logits.
        teacher_dtype: A key of `DTYPES`, what the teacher computes in.
    """

    batch_size: int = 1
    size: tuple[int, int] = (224, 224)
    device: str = "cpu"
    dtype: str = "float32"
    channels_last: bool = True
    inference_form: bool = False
    features: bool = False
    train: bool = True
    contmix_backend: str | None = None
    depthwise_backend: str | None = None
    teacher: str | None = None
    teacher_dtype: str = "float32"

    @property
    def memory_format(self) -> torch.memory_format:
        """What `channels_last` means."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


class Candidate(NamedTuple):
    """A row of the table: the model as it is deployed, and its steps by kind."""

    deployed: nn.Module
    steps: dict[str, Step]


def bench_models(
    names: Sequence[str],
    setting: Setting | None = None,
    seconds: float = 5.0,
    isolated: bool = False,
    exported: Sequence[Path] = (),
) -> list[Row]:
    """Measure timm models side by side; see `lightning bench --help`.

    Args:
        names: Names of timm models, or of folders with one: "local-dir:FOLDER".
        setting: What they are measured with.
        seconds: How long each figure is measured.
        isolated: Whether to run each row of the table in a process of its own. Within one, memory
            that a model has freed spares the next one fetching its own from the system.
        exported: `.onnx` and `.pt2` files of `lightning export`, whose inference is measured on the
            CPU as they are, each in a process of its own.

    Returns:
        One row per model, the same keys in each: parameters in millions, multiply-adds of one
        image in billions, images per second, and extra peak memory in MiB. What is not known of a
        file is None.

    Raises:
        InputError: timm has no model of a name, none has what a backend is asked for, or a file
            cannot be run on such images.
    """
    setting = setting or Setting()
    rows: list[Row] = []
    # Each calls a function of one step, here or in the step's process.
    asks: dict[str, dict[str, Callable[..., Any]]] = {}
    with ExitStack() as stack:
        names = _known(names)
        if setting.teacher:
            _known([setting.teacher])
        for name in names:
            for label, (deployed, steps) in _candidates(name, setting).items():
                rows.append(_costs(label, deployed, setting.size))
                if isolated:
                    process = Worker(label, _steps, name, setting, label)
                    stack.enter_context(process)
                    asks[label] = {kind: partial(process.ask, kind) for kind in steps}
                else:
                    asks[label] = {kind: partial(_call, step) for kind, step in steps.items()}
        plain = len(names) * (2 if setting.teacher else 1)
        if (setting.contmix_backend or setting.depthwise_backend) and len(rows) == plain:
            raise InputError(
                f"--contmix-backend and --depthwise-backend change nothing in {', '.join(names)}\n"
                "expected a model with ContMix, or one with large depthwise convolutions"
            )
        for path in dict.fromkeys(exported):
            rows.append(exported_row(path, setting.batch_size, setting.size))
            process = Worker(str(path), exported_steps, path, setting.batch_size, setting.size)
            stack.enter_context(process)
            kinds = ("inference", "inference, lean") if path.suffix == ONNX else ("inference",)
            asks[str(path)] = {kind: partial(process.ask, kind) for kind in kinds}
        for ask in asks.values():  # until all processes have started and built their model
            ask["inference"](callable)
        _measure(rows, asks, setting, seconds)
    return rows


def _measure(
    rows: Sequence[Row],
    asks: Mapping[str, Mapping[str, Callable[..., Any]]],
    setting: Setting,
    seconds: float,
) -> None:
    """Add times and memory to the rows, which are in the order of the steps."""
    device = setting.device
    for kind in ("inference", "training"):
        steps = {label: ask[kind] for label, ask in asks.items() if kind in ask}
        if not steps:
            continue
        again = {label: partial(step, second_run, device) for label, step in steps.items()}
        times = interleaved_medians(again, seconds)
        for row, (label, ask) in zip(rows, asks.items(), strict=True):
            row[f"{kind} images/s"] = row[f"{kind} peak MiB"] = None
            if label in steps:
                row[f"{kind} images/s"] = setting.batch_size / times[label]
                row[f"{kind} peak MiB"] = in_mib(_peak(ask, kind, device))


def _peak(ask: Mapping[str, Callable[..., Any]], kind: str, device: str) -> int | None:
    """Bytes that a step needs, by the one that gives its work space back if there is one."""
    lean = ask.get(f"{kind}, lean")
    if lean is not None:
        lean(second_run, device)  # gives back what earlier runs have kept
    found: int | None = (lean or ask[kind])(peak_memory, device)
    return found


def profile_models(
    names: Sequence[str], setting: Setting, seconds: float = 1.0
) -> dict[str, list[Row]]:
    """Profile the steps that `bench_models` times, by operation, against the device's ceilings.

    Args:
        names: Names of timm models.
        setting: What they are measured with.
        seconds: How long each of the two ceilings is measured, and each step.

    Returns:
        Rows of `lightning_overlock.bench.roofline.report` by title, which names the step's rate in
        multiply-adds a second and the ceilings.

    Raises:
        InputError: timm has no model of a name.
    """
    bandwidth = copy_bandwidth(setting.device, seconds)
    rate = matmul_rate(setting.device, DTYPES[setting.dtype], seconds)
    ceilings = f"copies at {bandwidth / 1e9:.4g} GB/s"
    ceilings += f", products at {rate / 2e9:.4g} G multiply-adds/s"
    tables = {}
    for name in _known(names):
        for label, contestant in _candidates(name, setting).items():
            for kind, step in contestant.steps.items():
                step()
                rows = report(step, setting.device, bandwidth, rate)
                # Of the whole step without the profiler, which makes it slower.
                took = time_interleaved({kind: step}, seconds, setting.device)[kind]
                reached = cast(float, rows[0]["multiply-adds G"]) / took
                share = f"{100 * reached / (rate / 2e9):.3g} % of the device's"
                title = f"{label}, {kind} by operation: {reached:.4g} G multiply-adds/s, {share}"
                tables[f"{title}; measured ceilings: {ceilings}"] = rows
    return tables


def _known(names: Sequence[str]) -> list[str]:
    """Each name once, if timm has models of all of them."""
    for name in names:
        if not (name.startswith(LOCAL_DIR) or timm.is_model(name)):
            raise InputError(
                f"timm has no model '{name}'.{did_you_mean(name, timm.list_models())}\n"
                "`timm.list_models()` after `import lightning_overlock` names them all."
            )
    return list(dict.fromkeys(names))


def _candidates(name: str, setting: Setting) -> dict[str, Candidate]:
    """Build a model and what it is compared with, by label."""
    memory_format = setting.memory_format
    images = torch.randn(setting.batch_size, 3, *setting.size, device=setting.device)
    images = images.to(memory_format=memory_format)
    candidates: dict[str, Candidate] = {}

    def enter(
        label: str,
        deployed: nn.Module,
        model: nn.Module,
        setting: Setting,
        teacher: nn.Module | None = None,
    ) -> None:
        steps = {"inference": _under(inference_step(deployed, images), setting)}
        if setting.train:
            step = training_step(model, images, teacher, DTYPES[setting.teacher_dtype])
            steps["training"] = _under(step, setting)
        candidates[label] = Candidate(deployed, steps)

    first = replace(setting, contmix_backend=None, depthwise_backend=None)
    model = _create(name, setting.features).to(setting.device).to(memory_format=memory_format)
    name = name.removeprefix(LOCAL_DIR)
    deployed = reparameterize_model(copy.deepcopy(model)) if setting.inference_form else model
    enter(name, deployed, model, first)
    if setting.contmix_backend and _has(model, ContMix):
        label = f"{name} as built, {setting.contmix_backend}"
        enter(label, model, model, replace(setting, depthwise_backend=None))
    if setting.depthwise_backend and _has(model, DilatedReparamConv):
        label = f"{name}, depthwise {setting.depthwise_backend}"
        enter(label, deployed, model, replace(setting, contmix_backend=None))
    if setting.teacher:
        teacher = timm.create_model(setting.teacher, num_classes=model.num_classes)
        teacher = teacher.to(setting.device).to(memory_format=memory_format)
        enter(f"{name}, taught by {setting.teacher}", deployed, model, first, teacher)
    return candidates


def _create(name: str, features: bool) -> nn.Module:
    """Make a model with random weights, or one that lies in a folder with its own.

    Raises:
        InputError: The folder is none that timm can load.
    """
    if not name.startswith(LOCAL_DIR):
        return timm.create_model(name, features_only=features)
    try:
        return timm.create_model(name, pretrained=True, features_only=features)
    except (RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--exported {name.removeprefix(LOCAL_DIR)}: timm cannot load this folder.\n{reason}"
        ) from error


def _steps(name: str, setting: Setting, label: str) -> dict[str, Step]:
    return _candidates(name, setting)[label].steps


def _call(step: Step, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(step, *arguments)


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def _under(step: Step, setting: Setting) -> Step:
    """Return the step in the setting's dtype and on its backends."""

    def run() -> object:
        with ExitStack() as stack:
            if setting.dtype != "float32":
                kind = torch.device(setting.device).type
                stack.enter_context(torch.autocast(kind, DTYPES[setting.dtype]))
            if setting.contmix_backend:
                stack.enter_context(contmix_backend.force(setting.contmix_backend))
            if setting.depthwise_backend:
                stack.enter_context(depthwise_backend.force(setting.depthwise_backend))
            return step()

    return run


def _costs(label: str, model: nn.Module, size: tuple[int, int]) -> Row:
    return {
        "model": label,
        "parameters M": parameter_count(model) / 1e6,
        "multiply-adds G": multiply_adds(model, (3, *size)) / 1e9,
    }
