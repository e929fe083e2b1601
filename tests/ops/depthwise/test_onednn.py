"""The depthwise convolution for CPUs, against torch's own convolution and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_overlock.layers.dilated_reparam import BRANCHES
from lightning_overlock.ops.depthwise import few_pixels, onednn
from lightning_overlock.ops.depthwise.operator import depthwise

CHANNELS = 3


def tensors(
    size: tuple[int, int], kernels: list[tuple[int, int]], dtype=torch.float64
) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(sum(size))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    return draw(2, CHANNELS, *size), [draw(CHANNELS, 1, k, k) for k, _ in kernels], draw(CHANNELS)


def torchs(x: Tensor, weights: list[Tensor], dilations: list[int], bias: Tensor) -> list[Tensor]:
    """The definition: a convolution each."""
    return [
        F.conv2d(x, w, None if i else bias, 1, d * (w.shape[-1] // 2), d, CHANNELS)
        for i, (w, d) in enumerate(zip(weights, dilations, strict=True))
    ]


def assert_equal_with_gradients(
    size: tuple[int, int], kernels: list[tuple[int, int]], memory_format: torch.memory_format
) -> None:
    x, weights, bias = tensors(size, kernels)
    x = x.contiguous(memory_format=memory_format)
    leaves = [tensor.requires_grad_() for tensor in (x, *weights, bias)]
    dilations = [dilation for _, dilation in kernels]
    outputs = [
        torchs(x, weights, dilations, bias),
        depthwise(x, weights, dilations, bias, backend="onednn"),
    ]
    factors = [torch.randn_like(output) for output in outputs[0]]
    found = []
    for maps in outputs:
        loss = sum((y * factor).sum() for y, factor in zip(maps, factors, strict=True))
        found.append([*maps, *torch.autograd.grad(loss, leaves)])
    for expected, ours in zip(*found, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", onednn.RULES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [4, 16, 17])
def test_what_each_kind_of_cpu_runs(side, memory_format, kind, monkeypatch):
    monkeypatch.setattr(onednn, "rules", onednn.RULES[kind])
    kernels = [(13, 1), (7, 1), (7, 2), (3, 3), (3, 5)]
    assert_equal_with_gradients((side, 16), kernels, memory_format)


@pytest.mark.parametrize("size", BRANCHES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_overlocks_kernels_with_their_branches_and_gradients(size, memory_format):
    assert_equal_with_gradients((9, 16), [(size, 1), *BRANCHES[size]], memory_format)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_of_a_few_pixels_are_products_with_the_same_values_and_gradients(
    size, memory_format, monkeypatch
):
    called = []
    for name in ("correlate", "input_gradient", "weight_gradients"):
        real = getattr(few_pixels, name)
        monkeypatch.setattr(
            few_pixels, name, lambda *a, name=name, real=real: called.append(name) or real(*a)
        )
    assert_equal_with_gradients(size, [(9, 1), *BRANCHES[9]], memory_format)
    assert called == ["correlate", "input_gradient", "weight_gradients"]


def test_a_kernel_that_does_not_reach_past_a_map_or_is_alone_stays_a_convolution():
    x, weights, _ = tensors((4, 4), [(9, 1), (7, 1)], torch.float32)
    assert few_pixels.is_faster(x, weights)
    assert not few_pixels.is_faster(x, weights[1:] * 2)
    assert not few_pixels.is_faster(x, weights[:1])
    assert few_pixels.is_faster(x[..., :1, :1], weights[:1])
    assert not few_pixels.is_faster(x.bfloat16(), weights)
    assert not few_pixels.is_faster(torch.zeros(1, CHANNELS, 4, 5), weights)


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernels=st.lists(
        st.tuples(st.sampled_from([1, 3, 5, 7, 9, 15]), st.integers(1, 5)), min_size=1, max_size=3
    ),
    channels_last=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_any_map_kernel_and_dilation(size, kernels, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert_equal_with_gradients(size, kernels, memory_format)


def test_gradients_agree_with_finite_differences():
    x, weights, bias = tensors((4, 5), [(3, 2)])
    leaves = [tensor.requires_grad_() for tensor in (x, *weights, bias)]

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise(x, [weight], [2], bias, backend="onednn")[0]

    torch.autograd.gradcheck(convolve, leaves)


def test_without_gradients_nothing_is_recorded_and_the_values_are_the_same():
    x, weights, bias = tensors((6, 20), [(15, 1), (3, 7)])
    x.requires_grad_()
    with torch.no_grad():
        found = depthwise(x, weights, [1, 7], bias, backend="onednn")
    for ours, expected in zip(found, torchs(x, weights, [1, 7], bias), strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_a_map_that_needs_no_gradient_gets_none():
    x, weights, bias = tensors((6, 6), [(5, 1)])
    weights[0].requires_grad_()
    depthwise(x, weights, bias=bias, backend="onednn")[0].sum().backward()
    assert x.grad is None
    assert weights[0].grad is not None


def test_the_gradient_of_a_channels_last_map_of_a_few_pixels_is_channels_last():
    x, weights, _ = tensors((4, 4), [(9, 1), (5, 1)], torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    maps = depthwise(x, weights, [1, 1], backend="onednn")
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in maps)
    (grad,) = torch.autograd.grad(sum((y**2).sum() for y in maps), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("width", [14, 40])
def test_a_channels_last_map_stays_channels_last(width):
    x, weights, bias = tensors((13, width), [(13, 1)], torch.float32)
    expected = F.conv2d(x, weights[0], bias, 1, 6, 1, CHANNELS)
    last = [t.to(memory_format=torch.channels_last) for t in (x, weights[0])]
    with torch.no_grad():
        (found,) = depthwise(last[0], [last[1]], bias=bias, backend="onednn")
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)


def test_under_autocast_it_rounds_as_torch_does():
    x, weights, bias = tensors((10, 10), [(7, 1), (3, 3)], torch.float32)
    weights = [weight.requires_grad_() for weight in weights]
    with torch.autocast("cpu", torch.bfloat16):
        expected = torchs(x, weights, [1, 3], bias)
        found = depthwise(x, weights, [1, 3], bias, backend="onednn")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    grads = [torch.autograd.grad(sum(y.sum() for y in maps), weights) for maps in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=0.2)


def test_an_exported_graph_has_torchs_convolutions():
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(CHANNELS, 1, 15, 15))

        def forward(self, x: Tensor) -> Tensor:
            return depthwise(x, [self.weight])[0]

    with torch.no_grad():
        program = torch.export.export(Network().eval(), (torch.randn(1, CHANNELS, 8, 8),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("conv2d" in target for target in targets)
    assert not any("lightning_overlock" in target for target in targets)
