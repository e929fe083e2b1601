"""Where a step's time goes, by operation, and how far each is from what the device can do.

Operations are those that torch dispatches below autograd: a convolution, its gradient, a layer
norm. For each, the least time is the larger of its bytes at the device's copy bandwidth and its
multiply-adds at the device's matrix rate (Williams et al., "Roofline", CACM 2009). Bytes are those
of its inputs and outputs, each moved once, so that fusing operations shows as going beyond 100 %.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

OUTSIDE = "outside of operations"
# They move nothing, though torch does not call them views.
FREE = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
SHOWN = 12


@dataclass
class Work:
    """What the calls of one operation did, or would take.

    Args:
        calls: Number of calls.
        bytes: Bytes of all inputs and outputs.
        flops: Floating-point operations, two for each multiply-add.
        least_seconds: Least seconds of all calls, each at the ceiling that binds it.
    """

    calls: int = 0
    bytes: int = 0
    flops: int = 0
    least_seconds: float = 0.0


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *arguments: Any, **_: Any
) -> int:
    """What the forward takes, for each gradient; torch 2.15's own count passes over groups."""
    transposed, wanted = arguments[4], arguments[7]
    return sum(wanted[:2]) * 2 * (x if transposed else grad).numel() * weight[0].numel()


def _formula(packet: Any) -> Callable[..., int] | None:
    """What counts the operations of an operator's call; None where there are no products."""
    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    return own.get(packet) or flop_registry.get(packet)


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the work of every operation that runs inside the block; `work` has it by name.

    Args:
        bandwidth: Bytes per second that the device copies, read and written both counted.
        rate: Operations per second of its matrix products, two for each multiply-add.
    """

    def __init__(self, bandwidth: float, rate: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bandwidth = bandwidth
        self.rate = rate
        self.work: dict[str, Work] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        count = _formula(packet)
        if count is None:
            # Inference mode hands composite operations over whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        name = packet._qualified_op_name
        if func.is_view or name.removeprefix("aten::") in FREE:
            return out
        moved = sum(_bytes(x) for x in tree_leaves((args, kwargs, out)))
        flops = count(*args, **kwargs, out_val=out) if count else 0
        work = self.work.setdefault(name, Work())
        work.calls += 1
        work.bytes += moved
        work.flops += flops
        work.least_seconds += max(moved / self.bandwidth, flops / self.rate)
        return out


def seconds_by_operation(
    step: Callable[[], object], names: Iterable[str], device: torch.device | str
) -> dict[str, float]:
    """Seconds that the device works for each operation in one run of `step`.

    Args:
        step: A function of no argument that has run once before.
        names: Names of operations, as in `WorkCounter.work`. What an operation calls counts as its
            own.
        device: Device whose time is measured: that of kernels on a GPU.

    Returns:
        By name, longest first; what belongs to none of them under `OUTSIDE`.
    """
    on_gpu = torch.device(device).type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it prints a line for every start and stop
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as found:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    known = set(names)
    seconds: dict[str, float] = {}
    for event in found.events() or ():
        if event.device_type != DeviceType.CPU:  # kernels, which their operations have as well
            continue
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = _operation(event, known)
        seconds[name] = seconds.get(name, 0.0) + own * 1e-6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def report(
    step: Callable[[], object], device: torch.device | str, bandwidth: float, rate: float
) -> list[dict[str, str | float | None]]:
    """Profile of a step beside its least times, as rows of a table.

    Args:
        step: A function of no argument that has run once before.
        device: Device that it runs on.
        bandwidth: Measured bytes per second.
        rate: Measured operations per second.

    Returns:
        One row for all operations, then the longest ones, the others and what is outside.
    """
    with WorkCounter(bandwidth, rate) as counter:
        step()
    work = counter.work
    seconds = seconds_by_operation(step, work, device)
    outside = seconds.pop(OUTSIDE, 0.0)
    whole = sum(seconds.values()) + outside
    named = [name for name in seconds if seconds[name]]
    groups = {"all": named} | {name: [name] for name in named[:SHOWN]}
    if named[SHOWN:]:
        groups["the others"] = named[SHOWN:]
    rows: list[dict[str, str | float | None]] = []
    for title, members in groups.items():
        parts = [work[name] for name in members]
        took = sum(seconds[name] for name in members)
        least = sum(part.least_seconds for part in parts)
        rows.append(
            {
                "operation": title,
                "calls": float(sum(part.calls for part in parts)),
                "ms": took * 1e3,
                "share %": 100 * took / whole,
                "GB": sum(part.bytes for part in parts) / 1e9,
                "multiply-adds G": sum(part.flops for part in parts) / 2e9,
                "multiply-adds G/s": sum(part.flops for part in parts) / 2e9 / took,
                "least ms": least * 1e3,
                "of the ceiling %": 100 * least / took,
            }
        )
    empty = dict.fromkeys(list(rows[0])[4:])
    share = {"ms": outside * 1e3, "share %": 100 * outside / whole}
    return [*rows, {"operation": OUTSIDE, "calls": None, **share, **empty}]


def _bytes(x: object) -> int:
    """Bytes of a tensor; repeats that take no memory do not count."""
    if not isinstance(x, Tensor):
        return 0
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _operation(event: FunctionEvent, known: set[str]) -> str:
    """Name of the outermost known operation that an event is a part of."""
    name = OUTSIDE
    part: FunctionEvent | None = event
    while part is not None:
        if part.name in known:
            name = part.name
        part = part.cpu_parent
    return name
