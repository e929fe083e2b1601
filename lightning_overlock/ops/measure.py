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
# What two right backends may differ by, relative to the largest number and to the norm. In half
# precision two results of one rounding each differ by half of this at most. TF32, which cuDNN
# takes for float32 unless told otherwise, rounds as float16 does.
LARGEST = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 2e-3, torch.float64: 1e-9}
NORM = {torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float32: 1e-3, torch.float64: 1e-9}
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
        self.leaves = [x for x in self.inputs if x is not None and x.requires_grad]
        self.device = next(x.device for x in self.inputs if x is not None)
        self.grads: list[Tensor] = []

    def choose(self, candidates: Sequence[str]) -> Choice | None:
        try:
            outputs, gradients = self.results(self.safe)
            telling = all(x.isfinite().all() for x in (*outputs, *gradients))
            if not telling or not all(x.any() for x in outputs):
                return None
        except Exception:  # the call itself will raise it
            self.release()
            return None
        # The coarsest one: under autocast parameters stay in float32.
        dtype = max((x.dtype for x in self.inputs if x is not None), key=NORM.__getitem__)
        times: dict[str, list[float]] = {self.safe: []}
        dropped: dict[str, str] = {}
        for name in candidates[1:]:
            try:
                reason = _difference(self.results(name), (outputs, gradients), self.safe, dtype)
            except Exception as error:  # whatever compilers and drivers raise
                reason = _raised(error)
                self.release()
            if reason is None:
                times[name] = []
            else:
                dropped[name] = reason
        del outputs, gradients
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

    def results(self, name: str) -> Results:
        """Outputs, and the gradients of all inputs that require them."""
        found = self.run(name, *self.inputs)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        if not self.leaves:
            return outputs, []
        if not self.grads:
            # A generator of its own: the draws of a training go on as if nothing had been.
            draw = torch.Generator(self.device).manual_seed(0)
            self.grads = [torch.empty_like(x).normal_(generator=draw) for x in outputs]
        gradients = torch.autograd.grad(outputs, self.leaves, self.grads, materialize_grads=True)
        return [x.detach() for x in outputs], list(gradients)

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


def _difference(found: Results, expected: Results, safe: str, dtype: torch.dtype) -> str | None:
    """Say what differs by more than `dtype` rounds; None where nothing does."""
    for kind, some, others in zip(("output", "gradient"), found, expected, strict=True):
        if [x.shape for x in some] != [x.shape for x in others]:
            return f"its {kind}s have other shapes than those of '{safe}'"
        negligible = NEGLIGIBLE * max((x.abs().max().item() for x in others), default=0.0)
        for x, other in zip(some, others, strict=True):
            wide = torch.promote_types(other.dtype, torch.float32)
            error, exact = x.to(wide) - other, other.to(wide)
            most, mean = exact.abs().max().item(), exact.square().mean().sqrt().item()
            off, rms = error.abs().max().item(), error.square().mean().sqrt().item()
            # Not the other way round: what is not a number is not below.
            if not (
                off <= LARGEST[dtype] * max(most, negligible)
                and rms <= NORM[dtype] * max(mean, negligible)
            ):
                return f"its {kind} differs from that of '{safe}' by {off:.2g} of {most:.2g}"
    return None


def _raised(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"it raises {type(error).__name__}: {line}"
