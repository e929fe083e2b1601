"""Timing the backends of one call on its own inputs, each compared with the safe one first."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lightning_overlock.ops.choices import Choice

# The call with a backend, given its inputs; None stands for an input that is left out.
Run = Callable[..., Tensor | Sequence[Tensor]]

# Outputs and gradients.
Results = tuple[list[Tensor], list[Tensor]]

REPETITIONS = 5
# What a backend may be wrong by, relative to the largest number and to the root mean square, beside
# so many times what the safe backend is wrong by itself. Half precision is compared with the safe
# backend in float32; sums of several kernels' gradients alone are wrong by 1e-2 in bfloat16.
LIMITS = {
    torch.bfloat16: (1.6e-2, 4e-3),
    torch.float16: (2e-3, 5e-4),
    torch.float32: (2e-3, 1e-3),
    torch.float64: (1e-9, 1e-9),
}
# Of float32, where its products may be rounded to TF32 or bfloat16.
COARSE = (2e-2, 8e-3)
OWN_ERRORS = 1.5
# A gradient so much smaller than the largest one may consist of rounding errors.
NEGLIGIBLE = 1e-3


def measure(candidates: Sequence[str], run: Run, inputs: Sequence[Tensor | None]) -> Choice | None:
    """Return the fastest of some backends that give what the first one does.

    Args:
        candidates: Names of backends, the safe one first.
        run: Called with a backend's name and the inputs.
        inputs: The call's inputs, on one device. Where gradients are enabled, those of the inputs
            that require them are compared and timed too.

    Returns:
        The choice; None where the safe backend fails on these inputs, or gives zeros or infinite
        numbers, which anything could be compared with.
    """
    gradient = torch.is_grad_enabled()
    device = next(x.device for x in inputs if x is not None)
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def work() -> Choice | None:
        with torch.set_grad_enabled(gradient), torch.cuda.stream(stream):
            return _Contest(candidates[0], run, inputs).choose(candidates)

    # A thread of its own has none of the caller's modes, hooks of saved tensors, autocast and
    # inference mode, whose accounts of the call must not have the repetitions in them.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


class _Contest:
    """Backends of one call, on its inputs; the caller's thread is not the one this runs in."""

    def __init__(self, safe: str, run: Run, inputs: Sequence[Tensor | None]) -> None:
        self.safe, self.run = safe, run
        wanted = torch.is_grad_enabled()
        self.inputs = [
            x if x is None else x.detach().requires_grad_(wanted and x.requires_grad)
            for x in inputs
        ]
        self.device = next(x.device for x in self.inputs if x is not None)
        self.grads: list[Tensor] = []

    def choose(self, candidates: Sequence[str]) -> Choice | None:
        # The coarsest one: under autocast parameters stay in float32.
        dtype = max(
            (x.dtype for x in self.inputs if x is not None), key=lambda kind: torch.finfo(kind).eps
        )
        try:
            safe = self.results(self.safe)
            telling = all(x.isfinite().all() for part in safe for x in part)
            if not telling or not all(x.any() for x in safe[0]):
                return None
            truth = self.results(self.safe, wide=True) if dtype.itemsize == 2 else safe
            own = _errors(safe, truth)
        except Exception:  # the call itself will raise it
            self.release()
            return None
        coarse = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        limits = COARSE if coarse else LIMITS[dtype]
        times: dict[str, list[float]] = {self.safe: []}
        dropped: dict[str, str] = {}
        for name in candidates[1:]:
            try:
                reason = _difference(self.results(name), truth, own, limits)
            except Exception as error:  # whatever compilers and drivers raise
                reason = _raised(error)
                self.release()
            if reason is None:
                times[name] = []
            else:
                dropped[name] = reason
        del safe, truth
        self.time(times, dropped)
        medians = {name: statistics.median(found) for name, found in times.items() if found}
        if self.safe not in medians:
            return None
        return Choice(min(medians, key=medians.__getitem__), medians, dropped)

    def time(self, times: dict[str, list[float]], dropped: dict[str, str]) -> None:
        """Add milliseconds to `times`, in turns; the first turn warms up and does not count."""
        for turn in range(REPETITIONS + 1):
            for name in list(times):
                try:
                    took = self.milliseconds(name)
                except Exception as error:
                    del times[name]
                    dropped[name] = _raised(error)
                    self.release()
                else:
                    times[name] += [took] if turn else []

    def results(self, name: str, *, wide: bool = False) -> Results:
        """Outputs, and the gradients of all inputs that require them; in float32 if `wide`."""
        inputs = [self.widened(x) if wide else x for x in self.inputs]
        found = self.run(name, *inputs)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        leaves = [x for x in inputs if x is not None and x.requires_grad]
        if not leaves:
            return outputs, []
        if not self.grads:
            # A generator of its own: the draws of a training go on as if nothing had been.
            draw = torch.Generator(self.device).manual_seed(0)
            self.grads = [torch.empty_like(x).normal_(generator=draw) for x in outputs]
        grads = [grad.to(x.dtype) for grad, x in zip(self.grads, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, leaves, grads, materialize_grads=True)
        return [x.detach() for x in outputs], list(gradients)

    def widened(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return x.detach().to(_wide(x.dtype)).requires_grad_(x.requires_grad)

    def milliseconds(self, name: str) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            self.results(name)
            return (time.perf_counter() - begin) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        start.record()
        self.results(name)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def release(self) -> None:
        """Give memory back after an error, which may have been for want of it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _errors(found: Results, truth: Results) -> list[tuple[float, float]]:
    """Largest and root mean square difference of each tensor."""
    pairs = zip((*found[0], *found[1]), (*truth[0], *truth[1]), strict=True)
    differences = ((x.to(_wide(exact.dtype)) - exact) for x, exact in pairs)
    return [(x.abs().max().item(), x.square().mean().sqrt().item()) for x in differences]


def _difference(
    found: Results,
    truth: Results,
    own: list[tuple[float, float]],
    limits: tuple[float, float],
) -> str | None:
    """Say what is wrong by more than rounding explains; None where nothing is.

    Args:
        found: What a backend gave.
        truth: What is right.
        own: Errors of the safe backend.
        limits: An entry of `LIMITS`.
    """
    shapes, expected = ([x.shape for part in side for x in part] for side in (found, truth))
    if shapes != expected:
        return f"it gives the shapes {shapes}, expected {expected}"
    errors = iter(zip(_errors(found, truth), own, strict=True))
    for kind, part in zip(("output", "gradient"), truth, strict=True):
        negligible = NEGLIGIBLE * max((x.abs().max().item() for x in part), default=0.0)
        for exact in part:
            (most, mean), (own_most, own_mean) = next(errors)
            wide = exact.to(_wide(exact.dtype))
            scale = max(wide.abs().max().item(), negligible)
            average = max(wide.square().mean().sqrt().item(), negligible)
            # Not the other way round: what is not a number is not below.
            right = most <= limits[0] * scale + OWN_ERRORS * own_most
            if not (right and mean <= limits[1] * average + OWN_ERRORS * own_mean):
                return f"its {kind} is wrong by {most:.2g}, where {scale:.2g} is the largest number"
    return None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _raised(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"it raises {type(error).__name__}: {line}"
