"""The fused ContMix: its checks run in processes of their own, its launches are compiled here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.layers import ContMix
from lightning_overlock.ops import dispatch
from lightning_overlock.ops.contmix import operator as ops
from lightning_overlock.ops.contmix.operator import contmix, contmix_backend

CHECKS = Path(__file__).with_name("contmix_triton_checks.py")
HAS_GPU = torch.cuda.is_available()


def run_checks(interpret: bool, which: str):
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpret))}
    if interpret:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", which]
    found = subprocess.run(
        [*command, CHECKS], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-4000:]
    assert "skipped" not in found.stdout


def interpret_checks(which: str):
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("Triton 3.6 cannot interpret loops with this numpy")
    run_checks(True, which)


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    interpret_checks("not slow")


@pytest.mark.slow
def test_kernels_in_the_interpreter_on_larger_maps():
    interpret_checks("slow")


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_kernels_on_the_gpu():
    run_checks(False, "slow or not slow")


class Recorder:
    """Stands for a kernel, keeps what it is launched with and computes nothing."""

    def __init__(self, kernel):
        self.kernel, self.arg_names, self.launches = kernel, kernel.arg_names, []

    def __getitem__(self, grid):
        return lambda **arguments: self.launches.append((grid, arguments))


@pytest.fixture
def recorders(monkeypatch):
    pytest.importorskip("triton")
    from lightning_overlock.ops.contmix import triton as contmix_triton

    names = ("forward_kernel", "backward_query_kernel", "backward_value_kernel")
    found = {name: Recorder(getattr(contmix_triton, name)) for name in names}
    for name, recorder in found.items():
        monkeypatch.setattr(contmix_triton, name, recorder)
    monkeypatch.setattr(ops, "triton_obstacle", lambda device: None)
    return found


def mix(batch, groups, width, size, large, small, dtype, memory_format=torch.contiguous_format):
    """Forward and backward with undefined numbers."""
    taps = large**2 + (small or 0) ** 2
    value = torch.empty(batch, 2 * groups * width, *size, dtype=dtype)
    query = torch.empty(batch, groups * width, *size, dtype=dtype)
    value, query = (x.to(memory_format=memory_format) for x in (value, query))
    tap_weights = torch.empty(batch, groups, width, taps, dtype=dtype)
    bias = torch.empty(taps)
    tables = {
        "large_bias": torch.empty(groups, 2 * large - 1, 2 * large - 1),
        "small_bias": torch.empty(groups, 2 * small - 1, 2 * small - 1),
    }
    leaves = [x.requires_grad_() for x in (value, query, tap_weights, bias, *tables.values())]
    output = contmix(
        value, query, tap_weights, bias, small_kernel=small, **tables, backend="triton"
    )
    torch.autograd.grad(output, leaves, torch.empty_like(output))


def compile_launch(kernel, arguments, capability):
    """Compile a launch to a chip's machine code; no GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    options = {name: arguments[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    constants, aligned = {}, {}

    def kind(path, x):
        if isinstance(x, tuple):
            return tuple(kind((*path, i), part) for i, part in enumerate(x))
        if isinstance(x, Tensor):
            aligned[path] = [["tt.divisibility", 16]]
            return types[x.dtype]
        if isinstance(x, int) and x != 1 and not name.isupper():
            if x % 16 == 0:
                aligned[path] = [["tt.divisibility", 16]]
            return "i32"
        constants[path] = x
        return "constexpr"

    signature = {}
    for number, name in enumerate(kernel.arg_names):
        signature[name] = kind((number,), arguments[name])
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


LAUNCHES = [
    (torch.bfloat16, 90, 13, 5, 16, (14, 14), torch.contiguous_format),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            (torch.bfloat16, 80, 13, 5, 16, (14, 14), torch.channels_last),
            (torch.float16, 80, 7, 5, 16, (7, 7), torch.contiguous_format),
            (torch.float16, 90, 13, 5, 64, (50, 84), torch.channels_last),
            (torch.float32, 80, 13, 5, 24, (50, 84), torch.contiguous_format),
            (torch.float32, 90, 17, 5, 16, (20, 33), torch.contiguous_format),
            (torch.bfloat16, 100, 7, 5, 32, (25, 42), torch.contiguous_format),
        ]
    ),
]


@pytest.mark.parametrize(
    ("dtype", "capability", "large", "small", "width", "size", "memory_format"), LAUNCHES
)
def test_every_launch_compiles_for_the_chip(
    recorders, dtype, capability, large, small, width, size, memory_format
):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("interpreted kernels are not compiled")
    mix(2, 2, width, size, large, small, dtype, memory_format)
    for recorder in recorders.values():
        assert len(recorder.launches) == 2, "one for each kernel size"
        _, arguments = recorder.launches[0 if width == 32 else -1]
        compiled = compile_launch(recorder.kernel, arguments, capability)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 99 * 1024, "what a block may have on every chip"


class Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return, and keeps the largest."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for x in output if isinstance(output, tuple | list) else [output]:
            # Views have their base's storage, so they are counted too: an upper bound.
            if isinstance(x, Tensor):
                size = x.numel() * x.element_size()
                self.total, self.largest = self.total + size, max(self.largest, size)
        return output


@pytest.mark.parametrize(("batch", "size"), [(64, (14, 14)), (1, (50, 84))])
def test_nothing_of_the_size_of_the_kernels_is_allocated(recorders, batch, size):
    from lightning_overlock.ops.contmix import triton as contmix_triton

    value = torch.empty(batch, 128, *size, dtype=torch.bfloat16)
    tap_weights = torch.empty(batch, 8, 16, 169, dtype=torch.bfloat16)
    inputs = (value, torch.empty_like(value), tap_weights, torch.empty(169), torch.empty(8, 25, 25))
    # Below the operator, where a dispatch mode sees the operations inside.
    with Allocations() as found:
        output, log_sums = contmix_triton.forward(*inputs)
        targets = [torch.empty_like(x) for x in inputs]
        contmix_triton.backward(output, *inputs, output, log_sums, targets)
    assert all(len(recorder.launches) == 1 for recorder in recorders.values())
    pixels = size[0] * size[1]
    kernels, windows = batch * 8 * pixels * 169 * 2, batch * 128 * pixels * 169 * 2
    assert found.largest <= kernels / 3, "logits or kernels"
    assert found.total <= windows / 8, "an eighth of the unfolded values"


def test_a_backend_is_refused_where_it_cannot_run(monkeypatch):
    layer = ContMix(16, kernel_size=3, small_kernel=1, num_heads=1, context_grid=2)
    x = torch.zeros(1, 16, 4, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with contmix_backend.force("triton"):
        with pytest.raises(
            ValueError, match=r"backend 'triton' needs a GPU; on a CPU it runs with"
        ):
            layer(x)
        monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="backend 'triton' needs the package triton, which is"):
            layer(x)
        layer.double()(x.double())  # falls back


def test_triton_is_measured_on_a_gpu_for_heads_of_usual_width_and_not_taken_before(monkeypatch):
    monkeypatch.setattr(ops, "triton_obstacle", lambda device: None)
    seen, offered, known = [], [], None

    def choose(call, sizes, candidates, *_):
        offered.append(candidates())
        return known

    monkeypatch.setattr(contmix_backend, "choose", choose)

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if str(func) == "lightning_overlock.contmix_fused.default":
                seen.append(args[-1])
            return func(*args, **(kwargs or {}))

    def mixed(width, dtype, size=8):
        with FakeTensorMode(), Spy():
            value = torch.empty(1, width, size, size, device="cuda", dtype=dtype)
            contmix(value, value, value.new_empty(1, 1, width, 25))
        return offered[-1]

    assert mixed(16, torch.float32) == ["dense", "strips", "triton"]
    assert mixed(64, torch.bfloat16, 20) == ["strips", "dense", "triton"]
    assert mixed(64, torch.float32) == ["dense", "strips"]
    assert mixed(96, torch.float16, 70) == ["strips"]
    assert mixed(16, torch.float64) == ["dense", "strips"]
    assert set(seen) == {"auto"}
    known = "triton"
    mixed(16, torch.float32)
    assert seen[-1] == "triton"


def test_operation_count_is_that_of_the_other_backends():
    layer = ContMix(32, kernel_size=5, small_kernel=3, num_heads=2, context_grid=2).to("meta")
    counts = []
    for backend in ("dense", "triton"):
        x = torch.empty(2, 32, 9, 10, device="meta", requires_grad=True)
        with contmix_backend.force(backend), FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
