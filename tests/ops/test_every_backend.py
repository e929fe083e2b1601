"""Every backend that this machine's device can run, against float64: also on a GPU."""

import pytest
import torch
import torch.nn.functional as F

import lightning_overlock.bench.unfold  # noqa: F401  brings its backend
from lightning_overlock.ops.contmix.operator import contmix, contmix_backend
from lightning_overlock.ops.depthwise.operator import depthwise, depthwise_backend

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
OF_A_GPU, OF_A_CPU = {"triton"}, {"onednn"}
# By the largest number of each tensor; several kernels' gradients are added in the call's type.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}

dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def backends(names):
    found = set(names) - (OF_A_CPU if GPU else OF_A_GPU) - {"unfold"}
    return pytest.mark.parametrize("backend", sorted(found))


def outcome(call, inputs):
    """Outputs and gradients for fixed random gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = call(*leaves)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).bfloat16().to(y) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def assert_near(found, expected, dtype):
    for number, (x, exact) in enumerate(zip(found, expected, strict=True)):
        assert x.dtype == dtype
        error = (x.double().cpu() - exact.cpu()).abs().max()
        assert error < TOLERANCES[dtype] * exact.abs().max(), number


@dtypes
@layouts
@backends(contmix_backend.names)
@pytest.mark.parametrize(
    ("batch", "groups", "widths", "size", "window"),
    [(2, 1, (16, 16), (7, 9), 5), (1, 2, (8, 12), (7, 11), 7), (1, 1, (16, 8), (15, 17), 13)],
)
def test_contmix(batch, groups, widths, size, window, backend, layout, dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    inputs = [
        normal(batch, groups * widths[1], *size).to(memory_format=layout),
        normal(batch, groups * widths[0], *size).to(memory_format=layout),
        normal(batch, groups, widths[0], window**2) / 4,
        normal(window**2),
        normal(groups, 2 * window - 1, 2 * window - 1),
    ]

    def call(backend):
        return lambda *x: [contmix(*x[:4], large_bias=x[4], backend=backend)]

    exact = outcome(call("unfold"), [x.double() for x in inputs])
    assert_near(outcome(call(backend), inputs), exact, dtype)


@dtypes
@layouts
@backends(depthwise_backend.names)
@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((2, 3, 9, 11), [(17, 1), (5, 1), (9, 2), (3, 3), (3, 4), (3, 5)]),
        ((1, 5, 7, 5), [(7, 1), (5, 1), (3, 2), (3, 3)]),
        ((3, 2, 1, 9), [(3, 1)]),
    ],
)
def test_depthwise(shape, kernels, backend, layout, dtype):
    if GPU:  # more than a block of channels; oneDNN's plain loops would take minutes
        shape = (shape[0], 13 * shape[1], *shape[2:])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype).to(memory_format=layout)
    dilations = [dilation for _, dilation in kernels]
    weights = [
        (torch.randn(shape[1], 1, k, k, generator=generator) / k).to(DEVICE, dtype)
        for k, _ in kernels
    ]
    bias = torch.randn(shape[1], generator=generator).to(DEVICE, dtype)

    def call(x, bias, *weights):
        return depthwise(x, weights, dilations, bias, backend=backend)

    def exact(x, bias, *weights):
        return [
            F.conv2d(x, w, None if number else bias, 1, w.shape[-1] // 2 * d, d, shape[1])
            for number, (w, d) in enumerate(zip(weights, dilations, strict=True))
        ]

    inputs = [x, bias, *weights]
    assert_near(outcome(call, inputs), outcome(exact, [y.double().cpu() for y in inputs]), dtype)
