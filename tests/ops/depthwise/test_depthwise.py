import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_overlock.layers.dilated_reparam import BRANCHES, DilatedReparamConv
from lightning_overlock.ops.depthwise import operator
from lightning_overlock.ops.depthwise.operator import depthwise, depthwise_backend

HERE = Path(__file__)


def arguments(kernels, channels=2, height=5, width=6, batch=1, bias=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weights = [torch.randn(channels, 1, k, k, generator=generator) for k, _ in kernels]
    dilations = [dilation for _, dilation in kernels]
    return x, weights, dilations, torch.randn(channels, generator=generator) if bias else None


def by_definition(x, weights, dilations, bias):
    """Plain loops over taps."""
    outputs = []
    for index, (weight, dilation) in enumerate(zip(weights, dilations, strict=True)):
        size = weight.shape[-1]
        reach = dilation * (size // 2)
        padded = F.pad(x, (reach,) * 4)
        total = torch.zeros_like(x)
        for r in range(size):
            for c in range(size):
                shifted = padded[:, :, r * dilation :, c * dilation :]
                shifted = shifted[:, :, : x.shape[2], : x.shape[3]]
                total = total + weight[:, 0, r, c].view(-1, 1, 1) * shifted
        if bias is not None and not index:
            total = total + bias.view(-1, 1, 1)
        outputs.append(total)
    return outputs


def all_gradients(call, x, weights, bias):
    """Outputs, then the gradients of x, the weights and the bias, for fixed random gradients."""
    leaves = [y.detach().requires_grad_() for y in (x, *weights, *([] if bias is None else [bias]))]
    found = call(leaves[0], leaves[1 : len(weights) + 1], None if bias is None else leaves[-1])
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y) for y in found]
    return [*found, *torch.autograd.grad(found, leaves, grads)]


def compare(backend, case, dtype, layout, tolerance):
    """Hold a backend against the definition in float64, with inputs that are rounded to `dtype`."""
    x, weights, dilations, bias = arguments(**case)
    x, *rest = [y.to(dtype) for y in (x, *weights, *([] if bias is None else [bias]))]
    weights, bias = rest[: len(weights)], rest[-1] if bias is not None else None
    x = x.contiguous(memory_format=layout)

    def formed(x, weights, bias):
        return depthwise(x, weights, dilations, bias, backend=backend)

    def defined(x, weights, bias):
        return by_definition(x, weights, dilations, bias)

    found = all_gradients(formed, x, weights, bias)
    wide = [y.double() for y in weights]
    expected = all_gradients(defined, x.double(), wide, None if bias is None else bias.double())
    assert all(y.is_contiguous(memory_format=layout) for y in found[: len(weights) + 1])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error < tolerance, (backend, case, dtype, layout, error)


LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Every path of the kernels: dilations, a kernel wider than the map, more than a block of channels,
# more than a tile of pixels.
CASES = [
    ({"kernels": [(3, 1), (3, 2)], "channels": 1, "height": 5, "width": 3, "bias": True}, LAYOUTS),
    ({"kernels": [(5, 1)], "channels": 33, "height": 3, "width": 2, "bias": True}, LAYOUTS[1:]),
    ({"kernels": [(3, 1)], "channels": 1, "height": 5, "width": 9, "batch": 2}, LAYOUTS[1:]),
    ({"kernels": BRANCHES[17], "channels": 1, "height": 4, "width": 3}, LAYOUTS[1:]),
]


def interpreted():
    """What the child process runs, in Triton's interpreter."""
    for case, layouts in CASES:
        for layout in layouts:
            compare("triton", case, torch.float32, layout, 1e-5)
    case = {"kernels": [(3, 1), (3, 2)], "channels": 2, "height": 4, "width": 3, "bias": True}
    compare("triton", case, torch.bfloat16, torch.channels_last, 1e-2)
    compare("triton", case, torch.float16, torch.contiguous_format, 2e-3)
    unused_output_autocast_and_checks()


def unused_output_autocast_and_checks():
    x, weights, dilations, bias = arguments([(3, 1), (3, 2)], channels=1, height=3, width=3)
    weights = [weight.requires_grad_() for weight in weights]
    depthwise(x, weights, dilations, bias, backend="triton")[0].sum().backward()
    assert weights[0].grad.abs().sum() > 0
    assert weights[1].grad.abs().sum() == 0
    with torch.autocast("cpu", torch.bfloat16), depthwise_backend.force("triton"):
        found = depthwise(x, weights, dilations)
    assert {y.dtype for y in found} == {torch.bfloat16}
    operator = torch.ops.lightning_overlock.depthwise.default
    torch.library.opcheck(operator, (x, weights, dilations, None, "triton"))


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.slow
@needs_triton
def test_triton_kernels_follow_the_definition_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parents[3])}
    # Triton reads the variable when it is imported, so this takes a process of its own.
    done = subprocess.run(
        [sys.executable, HERE], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_kernels_compile_for_a_gpu_without_one(dtype, capability, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lightning_overlock.ops.depthwise import triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes, dilations = zip((5, 1), *BRANCHES[5], strict=True)
    maps = (f"*{dtype}",) * len(sizes)
    numbers = dict.fromkeys(("channels", "height", "width"), "i32")
    common = {"SIZES": sizes, "DILATIONS": dilations, "CHANNELS_LAST": dtype != "fp16"}
    common["CHANNELS"] = 32 if common["CHANNELS_LAST"] else 1
    correlate = {"ROWS": kernels.ROWS, "COLUMNS": 8, **common}
    forward = {"sources": maps, "targets": maps, "weights": "*fp32", "bias": "*fp32"}
    backward = {"sources": maps, "targets": maps[:1], "weights": "*fp32"}
    weight = {"x": maps[0], "grads": maps, "parts": "*fp32", "tiles": "i32", "tiles_of_part": "i32"}
    taps = {"ALL_TAPS": sum(k * k for k in sizes), "TAPS": kernels.TAPS, "PIXELS": 8, **common}
    for function, pointers, constants in (
        (kernels._correlate, forward, {"SUM": False, **correlate}),
        (kernels._correlate, backward, {"SUM": True, "bias": None, **correlate}),
        (kernels._weight_gradient, weight, taps),
    ):
        signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
        compiled = triton.compile(
            ASTSource(function, signature, constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 1, "enable_fp_fusion": True},
        )
        assert compiled.asm["cubin"]
        if common["CHANNELS_LAST"] and function is kernels._correlate:
            assert compiled.metadata.shared == 0  # sums stay in registers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel", "side"), [(17, 56), (15, 28), (13, 14), (7, 7)])
def test_triton_agrees_with_float64_on_a_gpu_and_repeats_itself(kernel, side, dtype, layout):
    kernels = [(kernel, 1), *BRANCHES[kernel]]
    x, weights, dilations, bias = arguments(kernels, 40, side, side, batch=3, bias=True)
    x, bias, *weights = (y.to("cuda", dtype) for y in (x, bias, *weights))
    x = x.contiguous(memory_format=layout)

    def run(backend, *inputs):
        return all_gradients(
            lambda x, weights, bias: depthwise(x, weights, dilations, bias, backend=backend),
            *inputs,
        )

    found, again = (run("triton", x, weights, bias) for _ in range(2))
    expected = run("conv", x.double(), [weight.double() for weight in weights], bias.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for one, same, other in zip(found, again, expected, strict=True):
        assert torch.equal(one, same)
        assert (one.double() - other).abs().max() < tolerance * other.abs().max()


@pytest.mark.parametrize(
    ("cudnn", "expected"),
    [(92300, ["aten", "conv", "triton"]), (92400, ["conv", "triton"])],
)
def test_on_a_gpu_triton_is_measured_and_an_old_cudnn_compared(cudnn, expected, monkeypatch):
    monkeypatch.setattr(operator, "triton_obstacle", lambda device: None)
    monkeypatch.setattr(operator, "_cudnn", lambda: cudnn)
    offered, seen = [], []
    monkeypatch.setattr(
        depthwise_backend, "choose", lambda call, sizes, found, *_: offered.append(found())
    )

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append("aten" if "aten" in args else str(func))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Spy():
        x = torch.empty(1, 4, 8, 8, device="cuda")
        depthwise(x, [torch.empty(4, 1, 3, 3, device="cuda")])
    assert offered == [expected]
    safe = "aten" if expected[0] == "aten" else "aten.convolution.default"
    assert safe in seen
    assert not any("triton" in name for name in seen)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_kernels_without_cudnn_follow_the_definition(dtype, tolerance, layout):
    case = {"kernels": [(5, 1), (3, 2)], "channels": 3, "height": 6, "width": 4, "bias": True}
    compare("aten", case, dtype, layout, tolerance)
    assert torch.backends.cudnn.enabled


@settings(deadline=None, max_examples=15)
@given(
    kernels=st.lists(
        st.sampled_from([(3, 1), (3, 2), (3, 7), (5, 1), (7, 2), (9, 1)]), min_size=1, max_size=3
    ),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    backend=st.sampled_from(["conv", "auto", "aten"]),
    layout=st.sampled_from(LAYOUTS),
)
def test_forms_for_a_cpu_follow_the_definition(backend, layout, **case):
    compare(backend, case, torch.float32, layout, 1e-5)


def test_layer_takes_the_forced_form_in_training_and_inference(monkeypatch):
    from lightning_overlock.layers import depthwise_conv, dilated_reparam

    layer, x, counts = DilatedReparamConv(2, 5), torch.randn(2, 2, 5, 5), []

    def counted(x, weights, *rest, **options):
        counts.append(len(weights))
        return depthwise(x, weights, *rest, **options)

    for module in (depthwise_conv, dilated_reparam):
        monkeypatch.setattr(module, "depthwise", counted)
    layer(x)
    layer.eval()
    fused = layer.fuse()
    torch.testing.assert_close(fused(x), layer(x))
    assert counts == [3, 1, 1]
    with depthwise_backend.force("triton"), pytest.raises(ValueError, match="needs a GPU"):
        layer(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(backend="fast"), "backend is 'fast', expected 'auto' or one of"),
        (dict(x=torch.zeros(2, 5, 5)), r"x has shape \(2, 5, 5\)"),
        (dict(dilations=[1, 2]), "1 weights and 2 dilations"),
        (dict(weights=[torch.zeros(2, 1, 4, 4)]), r"expected \(2, 1, k, k\), k odd"),
        (dict(weights=[torch.zeros(3, 1, 3, 3)]), r"expected \(2, 1, k, k\), k odd"),
        (dict(backend="triton"), "needs a GPU|not installed"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    fitting = dict(x=torch.zeros(1, 2, 5, 5), weights=[torch.zeros(2, 1, 3, 3)], dilations=[1])
    with pytest.raises(ValueError, match=message):
        depthwise(**fitting | change)


def test_an_unknown_form_cannot_be_forced():
    assert "conv" in depthwise_backend.names
    with pytest.raises(ValueError, match="backend is 'fast'"), depthwise_backend.force("fast"):
        pass


if __name__ == "__main__":
    interpreted()
