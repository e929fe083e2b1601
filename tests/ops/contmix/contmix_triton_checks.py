"""Checks of the fused ContMix, on a GPU or in Triton's interpreter.

`test_contmix_triton.py` runs them in processes of their own: Triton decides when it is imported
whether it interprets. The interpreter takes some milliseconds for every line of a kernel, so the
maps are small.
"""

import pytest
import torch
from contmix_reference import contmix_reference, logits_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightning_overlock.bench.unfold  # noqa: F401  brings its backend
from lightning_overlock.layers import ContMix
from lightning_overlock.ops.contmix.operator import contmix, contmix_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATOR = torch.ops.lightning_overlock.contmix_fused.default


def make(batch, groups, widths, size, large, small=None, dtype=torch.float32, scale=1.0):
    """Arguments of `contmix` by name; `widths` are those of queries and values."""
    generator = torch.Generator().manual_seed(sum(size) + large)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x * scale).to(dtype).to(DEVICE)

    taps, halves = large**2 + (small or 0) ** 2, 1 if small is None else 2
    arguments = {
        "value": normal(batch, halves * groups * widths[1], *size),
        "query": normal(batch, groups * widths[0], *size),
        "tap_weights": normal(batch, groups, widths[0], taps) * widths[0] ** -0.5,
        "tap_bias": normal(taps),
        "large_bias": normal(groups, 2 * large - 1, 2 * large - 1),
    }
    if small is not None:
        arguments["small_bias"] = normal(groups, 2 * small - 1, 2 * small - 1)
    return arguments


def outcome(arguments, small=None, **options) -> list[Tensor]:
    """The output and all gradients, the incoming one being a fixed ramp."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    output = contmix(**leaves, small_kernel=small, **options)
    ramp = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)
    grad = ramp.to(output)
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), grad)]


def assert_equals_the_definition(arguments, small, tolerance):
    """Compare with plain operations of torch, in float64, by the largest number."""
    exact = {name: x.double() for name, x in arguments.items()}
    expected = outcome(exact, small, backend="unfold")
    for found, wanted in zip(outcome(arguments, small, backend="triton"), expected, strict=True):
        assert found.shape == wanted.shape
        error = (found.double() - wanted).abs().max()
        scale = wanted.abs().max().item()
        if scale < 1e-9:  # a single tap has weight one whatever its logit: its gradient is zero
            scale = 1.0
        assert error < tolerance * scale, f"{error / scale:.1e}, expected below {tolerance:.0e}"


@pytest.mark.parametrize(
    ("widths", "size", "large", "small"),
    [
        ((8, 12), (9, 18), 5, 3),  # more rows, columns and widths than fill their blocks
        ((24, 16), (7, 7), 7, 5),  # the window is the map
        ((64, 8), (5, 21), 5, None),
        pytest.param((12, 64), (14, 14), 13, None, marks=pytest.mark.slow),
        pytest.param((16, 16), (14, 14), 13, 5, marks=pytest.mark.slow),
        pytest.param((16, 16), (17, 20), 17, None, marks=pytest.mark.slow),
        pytest.param((16, 24), (21, 35), 7, 5, marks=pytest.mark.slow),
    ],
)
def test_output_and_all_gradients_equal_float64(widths, size, large, small):
    assert_equals_the_definition(make(1, 1, widths, size, large, small), small, 1e-5)


def test_the_definition_is_that_of_the_loops():
    arguments = make(1, 1, (8, 8), (5, 6), 3)
    output = contmix(**arguments, backend="triton")
    _, logits = logits_of(
        *(arguments[n].double() for n in ("query", "tap_weights", "tap_bias")), None
    )
    expected = contmix_reference(
        arguments["value"].double(), logits, large_bias=arguments["large_bias"].double()
    )
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    large=st.sampled_from([3, 5]),
    small=st.sampled_from([None, 1]),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 14)),
)
def test_any_size_equals_float64(widths, large, small, extra):
    size = (large + extra[0], large + extra[1])
    assert_equals_the_definition(make(1, 2, widths, size, large, small), small, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float64(dtype):
    arguments = make(2, 2, (8, 8), (5, 6), 3, dtype=dtype)
    for name in ("tap_bias", "large_bias"):  # as parameters stay under autocast
        arguments[name] = arguments[name].float()
    assert_equals_the_definition(arguments, None, 2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_ten_thousands_and_large_values_stay_finite(dtype):
    arguments = make(1, 1, (8, 8), (5, 6), 3, dtype=dtype)
    arguments["query"] *= 100
    arguments["tap_weights"] *= 100
    arguments["value"] *= 1000
    _, logits = logits_of(
        arguments["query"].double(), arguments["tap_weights"].double(), None, None
    )
    assert 1e4 < logits.abs().max() < 1e5
    for found in outcome(arguments, backend="triton"):
        assert found.isfinite().all()
    output = contmix(**arguments, backend="triton").double()
    exact = contmix(**{name: x.double() for name, x in arguments.items()})
    assert (output - exact).abs().max() / exact.abs().max() < 2e-2


def test_without_biases_and_of_one_wanted_gradient():
    arguments = make(1, 1, (8, 8), (5, 6), 3)
    plain = {name: arguments[name] for name in ("value", "query", "tap_weights")}
    assert_equals_the_definition(plain, None, 1e-5)
    full = outcome(arguments, backend="triton")
    for number, name in enumerate(arguments):
        if name == "query":  # comes with those that follow
            continue
        leaf = arguments[name].detach().requires_grad_()
        output = contmix(**arguments | {name: leaf}, backend="triton")
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=DEVICE)
        (found,) = torch.autograd.grad(output, leaf, grad.reshape(output.shape).to(output))
        assert torch.equal(found, full[number + 1])


def test_memory_formats_give_the_same_bits():
    arguments = make(2, 1, (8, 8), (5, 6), 3)
    expected = outcome(arguments, backend="triton")
    last = {
        name: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        for name, x in arguments.items()
    }
    found = outcome(last, backend="triton")
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_two_runs_give_the_same_bits():
    arguments = make(2, 2, (8, 8), (5, 18), 3)
    first, second = outcome(arguments, backend="triton"), outcome(arguments, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_operator_obeys_the_rules_of_torch_library():
    arguments = make(1, 1, (8, 8), (3, 4), 3)
    inputs = [x.requires_grad_() for x in arguments.values()]
    torch.library.opcheck(OPERATOR, (*inputs, "triton"))
    torch.library.opcheck(OPERATOR, (*inputs[:3], None, None, "triton"))


def small_layer() -> ContMix:
    torch.manual_seed(0)
    layer = ContMix(32, kernel_size=3, small_kernel=1, num_heads=1, context_grid=2).to(DEVICE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def test_layer_compiles_in_one_graph_and_exports():
    layer = small_layer()
    x = torch.randn(1, 32, 5, 6, device=DEVICE)
    expected = layer.double()(x.double()).float()
    layer.float()
    with contmix_backend.force("triton"):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        program = torch.export.export(layer, (x,))
        exported = program.module()(x)
    names = {str(node.target) for node in program.graph.nodes}
    assert "lightning_overlock.contmix_fused.default" in names
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)


def test_layer_trains_under_autocast():
    layer = small_layer()
    x = torch.randn(1, 32, 5, 6, device=DEVICE)
    gradients = []
    for backend, double in (("triton", False), ("unfold", True)):
        model, image = (layer.double(), x.double()) if double else (layer, x)
        with (
            contmix_backend.force(backend),
            torch.autocast(DEVICE, torch.bfloat16, enabled=not double),
        ):
            output = model(image)
        output.double().square().mean().backward()
        gradients.append([p.grad.double().clone() for p in model.parameters()])
        model.zero_grad()
    for found, wanted in zip(*gradients, strict=True):
        assert (found - wanted).abs().max() <= 0.1 * wanted.abs().max() + 1e-3
