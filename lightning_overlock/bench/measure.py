"""Measuring one model or function: parameters, multiply-adds, time, memory, a device's ceilings."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.backbones.create import fitted
from lightning_overlock.errors import InputError

Step = Callable[[], object]

MIB = 2**20
PEAK_RSS_RESET = Path("/proc/self/clear_refs")


def usable_device(typed: str | None) -> str:
    """Return the device to run on, a GPU if there is one and nothing was typed.

    Raises:
        InputError: It cannot be used here.
    """
    device = typed or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used: {reason}") from error
    return device


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> int:
    """Multiply-adds of one image in evaluation mode, every convolution and product counted.

    The model runs on the meta device, whatever its own: nothing is computed and nothing changes.

    Args:
        model: A network that takes images (1, C, H, W).
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


def time_interleaved(
    steps: dict[str, Step], seconds: float, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Median seconds of each step, all taken in turn.

    Each turn runs the step twice and times the second run, so that none starts with the caches
    that another left behind.

    Args:
        steps: Named functions of no argument.
        seconds: Seconds that each of them runs for; at least three rounds.
        device: The device whose work is waited for.
    """
    candidates = {name: partial(second_run, step, device) for name, step in steps.items()}
    return interleaved_medians(candidates, seconds)


def second_run(step: Step, device: torch.device | str) -> float:
    """Run a step twice and return the seconds of the second run, the device's work included."""
    device = torch.device(device)
    step()
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved_medians(
    candidates: Mapping[str, Callable[[], float]], seconds: float
) -> dict[str, float]:
    """Median of what each of some functions returns, called in turn; see `time_interleaved`."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    rounds, started = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < seconds * len(candidates):
        for name, candidate in candidates.items():
            found[name].append(candidate())
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
    took = time_interleaved({"copy": lambda: target.copy_(source)}, seconds, device)["copy"]
    return 2 * source.numel() * source.element_size() / took


def matmul_rate(device: torch.device | str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second, two per multiply-add, of a large product of random square matrices.

    float32 runs as `torch.get_float32_matmul_precision` says; convolutions on a GPU may be faster,
    because cuDNN rounds to TF32 by default.
    """
    device = torch.device(device)
    size = 512 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / time_interleaved({"product": lambda: a @ b}, seconds, device)["product"]


def inference_step(model: nn.Module, images: Tensor) -> Step:
    """A forward pass in evaluation mode."""

    def step() -> object:
        model.eval()
        with torch.inference_mode():
            return model(images)

    return step


def training_step(
    model: nn.Module,
    images: Tensor,
    teacher: nn.Module | None = None,
    teacher_dtype: torch.dtype = torch.float32,
) -> Step:
    """Forward and backward pass in training mode with a cross-entropy loss, no optimizer.

    Args:
        model: The model.
        images: (B, 3, H, W).
        teacher: A timm model of as many classes, whose logits make half of the loss, as
            `model.teacher` trains; it is frozen and run in evaluation mode, once a step.
        teacher_dtype: What it computes in, outside of autocast.
    """
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    if teacher is not None:
        teacher = teacher.eval().requires_grad_(False).to(teacher_dtype)

    def step() -> object:
        model.train()
        logits = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        if teacher is not None:
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                wanted = teacher(fitted(teacher, images).to(teacher_dtype)).float()
            own, wanted = (x.log_softmax(dim=1) for x in (logits.float(), wanted))
            divergence = nn.functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
            loss = (loss + divergence) / 2
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


def in_mib(count: int | None) -> float | None:
    """Return bytes in MiB; None stays None."""
    return None if count is None else count / MIB
