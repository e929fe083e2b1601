"""What each row of a sweep costs: parameters, multiply-adds and throughput, by `bench`."""

from typing import TYPE_CHECKING, Any

import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

from lightning_overlock.bench.measure import (
    Step,
    inference_step,
    multiply_adds,
    parameter_count,
    time_interleaved,
)
from lightning_overlock.data.loading import Key
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.tasks import ClassificationTask

if TYPE_CHECKING:
    from lightning_overlock.sweep.validate import Build

BATCH_SIZE = 16


def measure(
    sweep: Sweep,
    build: "Build",
    device: str | None = None,
    seconds: float = 2.0,
) -> dict[str, dict[str, Any]]:
    """Measure the networks of all rows, in turn, at the size of the sweep's validation images.

    In inference form: branches and norms merged, without the auxiliary head. Nothing else should
    run beside it.

    Args:
        sweep: The sweep.
        build: Makes task and data of a `fit` command line on a device: `cli.build`.
        device: Where to run; a GPU if there is one.
        seconds: How long each row is timed.

    Returns:
        A dictionary per row that can be run: `params` in millions, `gmacs`, multiply-adds of one
        image in billions, `images_per_second`, and in words how it was `measured`. A row that
        cannot be measured has its `error`. Empty for tasks other than classification, whose cost
        depends on what is in the images.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for name in sweep.runnable:
        try:
            measured = _measure_row(sweep, build, name, device)
        except Exception as error:  # whatever a row's network raises, the others are measured
            lines = str(error).strip().splitlines() or [""]
            found[name] = {"error": f"{type(error).__name__}: {lines[0]}"}
            continue
        if measured is None:
            return {}
        found[name], steps[name] = measured
    for name, time in time_interleaved(steps, seconds, device).items():
        found[name]["images_per_second"] = BATCH_SIZE / time
    return found


def size_of(sweep: Sweep, build: "Build", options: dict[str, Any]) -> dict[str, float]:
    """Return parameters in millions and multiply-adds of one image in billions.

    In inference form, as `measure` has them; nothing is timed.

    Args:
        sweep: The sweep.
        build: Makes task and data of a `fit` command line.
        options: Options of a trial.

    Returns:
        `params` and `gmacs`; {} for tasks other than classification.
    """
    found = _deployed(sweep, build, options, "cpu")
    return {} if found is None else _size(*found)


def _size(network: nn.Module, image: Tensor) -> dict[str, float]:
    return {
        "params": parameter_count(network) / 1e6,
        "gmacs": multiply_adds(network, tuple(image.shape)) / 1e9,
    }


def _deployed(
    sweep: Sweep, build: "Build", options: dict[str, Any], device: str
) -> tuple[Any, Tensor] | None:
    """Return a trial's network in inference form and a validation image; None for other tasks."""
    task, data = build(sweep.arguments(options, sweep.seeds[0], "row"), device)
    if not isinstance(task, ClassificationTask):
        return None
    image, _ = data.source("val")[Key(0, 0)]  # type: ignore[attr-defined]
    network: Any = reparameterize_model(task.model.eval(), inplace=True)
    if getattr(network, "overview_head", None) is not None:
        network.overview_head = None
    return network, image


def _measure_row(
    sweep: Sweep, build: "Build", name: str, device: str
) -> tuple[dict[str, Any], Step] | None:
    """Return what a row's network costs and the step to be timed; None for other tasks."""
    found = _deployed(sweep, build, sweep.rows[name].options, device)
    if found is None:
        return None
    network, image = found
    images = image.expand(BATCH_SIZE, *image.shape).to(device)
    network = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    size = "x".join(map(str, image.shape[1:]))
    where = torch.cuda.get_device_name() if device == "cuda" else _threads()
    cost = {
        **_size(network, image),
        "measured": f"inference form, {size} px, batches of {BATCH_SIZE}, float32, {where}",
    }
    return cost, inference_step(network, images)


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} CPU thread{'s' if count > 1 else ''}"
