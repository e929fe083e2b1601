import pytest
import torch
from contmix_reference import as_queries, contmix_reference, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.bench.unfold import unfold
from lightning_overlock.ops.contmix import blocks, windows
from lightning_overlock.ops.contmix import operator as ops
from lightning_overlock.ops.contmix.logits import Logits
from lightning_overlock.ops.contmix.operator import contmix_backend

BACKENDS = ("dense", "strips", "unfold")
CHOICES = (*BACKENDS, "auto")


def contmix(value, large, small=None, *, large_bias=None, small_bias=None, backend="auto"):
    """The operation on logits that are given."""
    size = None if small is None else round(small.shape[3] ** 0.5)
    query, tap_weights = as_queries(value, small, large)
    return ops.contmix(
        value,
        query,
        tap_weights,
        small_kernel=size,
        large_bias=large_bias,
        small_bias=small_bias,
        backend=backend,
    )


def make(batch, groups, channels, height, width, large, small=None, bias=True, dtype=torch.float64):
    """Random arguments of `contmix` with `channels` per group, as (args, kwargs)."""
    generator = torch.Generator().manual_seed(height * width + large)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    halves = 1 if small is None else 2
    args = [normal(batch, halves * groups * channels, height, width)]
    args.append(normal(batch, groups, height * width, large**2))
    args.append(None if small is None else normal(batch, groups, height * width, small**2))
    tables = {}
    if bias:
        tables["large_bias"] = normal(groups, 2 * large - 1, 2 * large - 1)
        if small is not None:
            tables["small_bias"] = normal(groups, 2 * small - 1, 2 * small - 1)
    return args, tables


def grads(output: Tensor, args, tables) -> list[Tensor]:
    leaves = [x for x in (*args, *tables.values()) if x is not None]
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return list(torch.autograd.grad(output, leaves, weight))


def test_reference_is_a_softmax_weighted_mean_over_the_clamped_window():
    value = torch.arange(20.0, dtype=torch.float64).reshape(1, 1, 4, 5)
    logits = torch.zeros(1, 1, 20, 9, dtype=torch.float64)
    means = torch.nn.functional.avg_pool2d(value, 3, 1)  # the centres of all windows
    expected = means[:, :, [0, 0, 1, 1]][:, :, :, [0, 0, 1, 2, 2]]
    torch.testing.assert_close(contmix_reference(value, logits), expected)


def test_reference_takes_the_bias_of_a_tap_by_relative_position():
    value, logits = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 25, 9)
    table = torch.full((1, 5, 5), -100.0)
    table[0, 2 - 1, 2 + 1] = 100  # one row up, one column right
    value[0, 0, 1, 3] = 7
    output = contmix_reference(value, logits, large_bias=table)
    assert output[0, 0, 2, 2] == 7
    # A corner pixel whose window has no such tap spreads evenly.
    torch.testing.assert_close(output[0, 0, 0, 0], torch.tensor(0.0))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    channels=st.integers(1, 2),
    large=st.sampled_from([3, 5, 7]),
    small=st.sampled_from([None, 1, 3]),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    bias=st.booleans(),
)
def test_every_backend_equals_the_reference(batch, groups, channels, large, small, extra, bias):
    height, width = large + extra[0], large + extra[1]
    args, tables = make(batch, groups, channels, height, width, large, small, bias)
    expected = contmix_reference(*args, **tables)
    expected_grads = grads(expected, args, tables)
    for backend in CHOICES:
        output = contmix(*args, **tables, backend=backend)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for found, wanted in zip(grads(output, args, tables), expected_grads, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["dense", "strips"])
def test_blocks_of_images_and_groups_give_the_same_as_one(backend, monkeypatch):
    args, tables = make(3, 4, 2, 12, 11, 5, 3)
    whole = contmix(*args, **tables, backend=backend)
    expected = [whole, *grads(whole, args, tables)]
    one = {"dense": (12 * 11) ** 2, "strips": 12 * 11 * 5 * 2}[backend] * 8
    for limit in (1, 3 * one, 8 * one):  # one group, a part of an image, two of three images
        monkeypatch.setattr(blocks, "BLOCK_BYTES", limit)
        output = contmix(*args, **tables, backend=backend)
        for found, wanted in zip([output, *grads(output, args, tables)], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(backend):
    args, tables = make(1, 2, 1, 8, 6, 5, 3)
    names = list(tables)

    def call(value, large, small, *biases):
        return contmix(
            value, large, small, **dict(zip(names, biases, strict=True)), backend=backend
        )

    assert torch.autograd.gradcheck(call, (*args, *tables.values()), fast_mode=True)


@pytest.mark.parametrize("backend", CHOICES)
def test_compiles_without_a_graph_break(backend):
    args, tables = make(2, 2, 2, 8, 9, 5, 3)
    compiled = torch.compile(contmix, backend="aot_eager", fullgraph=True)
    expected = contmix(*args, **tables, backend=backend)
    output = compiled(*args, **tables, backend=backend)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    for found, wanted in zip(
        grads(output, args, tables), grads(expected, args, tables), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


class Mixer(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, value, large, small, large_bias, small_bias):
        return contmix(
            value, large, small, large_bias=large_bias, small_bias=small_bias, backend=self.backend
        )


@pytest.mark.parametrize("backend", CHOICES)
def test_exports_and_leaves_no_traced_tensor_in_the_caches(backend):
    args, tables = make(1, 2, 2, 10, 11, 5, 3)
    inputs = tuple(x.detach() for x in (*args, *tables.values()))
    for cache in (windows.starts, windows.window_index, windows.offsets):
        cache.cache_clear()
    program = torch.export.export(Mixer(backend), inputs)
    expected = contmix_reference(*inputs[:3], large_bias=inputs[3], small_bias=inputs[4])
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(Mixer(backend)(*inputs), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_first_call_in_inference_mode_does_not_spoil_later_training(backend):
    args, tables = make(1, 1, 2, 13, 9, 5)
    for cache in (windows.starts, windows.window_index, windows.offsets):
        cache.cache_clear()
    with torch.inference_mode():
        expected = contmix(*args, **tables, backend=backend)
    output = contmix(*args, **tables, backend=backend)
    grads(output, args, tables)
    torch.testing.assert_close(output, expected)


class IntegersFromNothing(TorchDispatchMode):
    """Names the operations that make an integer tensor out of no tensor."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        made = isinstance(output, Tensor) and not output.is_floating_point()
        if made and not any(isinstance(x, Tensor) for x in args):
            self.found.append(str(func))
        return output


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_second_forward_builds_no_index(backend):
    (value, logits, _), tables = make(1, 2, 2, 17, 9, 5)
    for cache in (windows.starts, windows.window_index, windows.offsets):
        cache.cache_clear()

    def run():
        # Below the operator, where a dispatch mode sees the operations inside.
        with torch.no_grad(), IntegersFromNothing() as integers:
            arguments = (*as_queries(value, logits), None)
            if backend == "unfold":
                unfold(value, *arguments, None, tables["large_bias"], None)
            else:
                blocks.forward(value, Logits(*arguments, tables["large_bias"]), backend)
        return integers.found

    assert run(), "the first forward builds its indices"
    assert not run()


@pytest.mark.parametrize("backend", CHOICES)
def test_any_memory_layout_gives_the_same(backend):
    args, tables = make(2, 2, 3, 9, 10, 5, 3)
    expected = contmix_reference(*args, **tables)
    value, large, small = args
    last = contmix(
        value.to(memory_format=torch.channels_last), large, small, **tables, backend=backend
    )
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-10)
    if backend != "unfold":
        assert last.is_contiguous(memory_format=torch.channels_last)
    taps_first = [x.mT.contiguous().mT for x in (large, small)]
    packed = torch.cat((large, small), -1)
    split = packed.split([25, 9], -1)
    wide = torch.cat((value, value), 3)[..., :10]
    for pair in (taps_first, split):
        output = contmix(wide, *pair, **tables, backend=backend)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    incoming = torch.randn_like(expected).transpose(2, 3).contiguous().transpose(2, 3)
    found = torch.autograd.grad(last, args, incoming)
    wanted = torch.autograd.grad(expected, args, incoming)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", CHOICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_kernels_and_products(backend, dtype):
    args, tables = make(1, 2, 2, 12, 9, 5, 3)
    rounded = [x.detach().to(dtype) for x in args]
    tables = {name: table.detach().float() for name, table in tables.items()}
    expected = contmix_reference(
        *(x.double() for x in rounded), **{name: t.double() for name, t in tables.items()}
    )
    output = contmix(*rounded, **tables, backend=backend)
    assert output.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("backend", ["dense", "strips"])
def test_autocast_does_not_narrow_the_products(backend):
    (value, logits, _), tables = make(1, 2, 2, 12, 9, 5, dtype=torch.float32)
    expected = contmix(value, logits, **tables, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = contmix(value, logits, **tables, backend=backend)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


# Two operations a multiply-add; images, pixels, taps; channels of values and of queries.
BY_HAND = 2 * 2 * 90 * ((6 + 8) * (49 + 25))


@pytest.mark.parametrize("backend", CHOICES)
def test_operation_count_does_not_depend_on_the_backend(backend):
    args, tables = make_queries(2, 2, (9, 10), 7, 5)
    with FlopCounterMode(display=False) as forward:
        output = ops.contmix(*args, small_kernel=5, **tables, backend=backend)
    with FlopCounterMode(display=False) as backward:
        grads(output, args, tables)
    assert forward.get_total_flops() == BY_HAND
    assert backward.get_total_flops() == 2 * BY_HAND


def test_meta_tensors_pass_and_are_counted():
    args, tables = make_queries(2, 2, (9, 10), 7, 5)
    args, tables = [x.to("meta") for x in args], {k: x.to("meta") for k, x in tables.items()}
    with FlopCounterMode(display=False) as counter:
        output = ops.contmix(*args, small_kernel=5, **tables)
    assert output.shape == (2, 12, 9, 10)
    assert counter.get_total_flops() == BY_HAND


def test_a_forced_backend_holds_inside_the_block_only():
    (value, logits, _), _ = make(1, 1, 1, 9, 9, 3)
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def uses_operator():
        seen.clear()
        with Spy():
            contmix(value, logits)
        return "lightning_overlock.contmix_fused.default" in seen

    with contmix_backend.force("unfold"):
        assert not uses_operator()
        with contmix_backend.force("dense"):
            assert uses_operator()
        assert not uses_operator()
    assert uses_operator()


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self.bytes = max(self.bytes, output.untyped_storage().nbytes())
        return output


def test_from_queries_not_even_the_logits_of_a_large_map_exist():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 64, 40, 40, generator=generator)
    tap_weights = torch.randn(1, 8, 8, 169, generator=generator)
    logits = Logits(value, tap_weights, None, None)
    logits.query_grad = torch.empty_like(logits.query)
    logits.tap_weights_grad = torch.zeros_like(tap_weights)
    with Largest() as largest:
        blocks.forward(value, logits, "auto")
        blocks.backward(value, value, logits, "auto", torch.empty_like(value), True, False)
    assert largest.bytes <= 8 * 1600 * 169 * 4 // 2


def test_a_float64_kernel_of_one_tap_copies_the_value():
    value = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    logits = torch.randn(1, 2, 12, 1, dtype=torch.float64)
    for backend in CHOICES:
        torch.testing.assert_close(contmix(value, logits, backend=backend), value)


def make_queries(batch, groups, size, large, small=None, dtype=torch.float64):
    """Random arguments of `contmix`: 3 values and 4 query numbers per group."""
    (value, _, _), tables = make(batch, groups, 3, *size, large, small)
    generator = torch.Generator().manual_seed(0)
    taps = large**2 + (small or 0) ** 2
    shapes = ((batch, 4 * groups, *size), (batch, groups, 4, taps), (taps,))
    normal = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    args = [x.detach().to(dtype).requires_grad_() for x in (value, *normal)]
    return args, {name: x.detach().to(dtype).requires_grad_() for name, x in tables.items()}


def reference_from_queries(value, query, tap_weights, tap_bias, small_kernel, **tables):
    small, large = logits_of(query, tap_weights, tap_bias, small_kernel)
    return contmix_reference(value, large, small, **tables)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    large=st.sampled_from([3, 5]),
    small=st.sampled_from([None, 1]),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    channels_last=st.booleans(),
)
def test_queries_and_tap_weights_make_the_logits(batch, groups, large, small, extra, channels_last):
    size = (large + extra[0], large + extra[1])
    args, tables = make_queries(batch, groups, size, large, small)
    expected = reference_from_queries(*args, small, **tables)
    expected_grads = grads(expected, args, tables)
    given = list(args)
    if channels_last:
        given[:2] = (x.to(memory_format=torch.channels_last) for x in args[:2])
    for backend in CHOICES:
        output = ops.contmix(*given, small_kernel=small, **tables, backend=backend)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for found, wanted in zip(grads(output, args, tables), expected_grads, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["dense", "strips"])
def test_from_queries_blocks_give_the_same_as_one(backend, monkeypatch):
    args, tables = make_queries(5, 4, (12, 11), 5, 3)

    def run():
        output = ops.contmix(*args, small_kernel=3, **tables, backend=backend)
        return [output, *grads(output, args, tables)]

    expected = run()
    one = {"dense": (12 * 11) ** 2, "strips": 12 * 11 * 5 * 3}[backend] * 8
    for limit in (1, 3 * one, 8 * one):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", limit)
        for found, wanted in zip(run(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["dense", "strips"])
@pytest.mark.parametrize("biased", [True, False])
def test_operator_from_queries_obeys_the_rules_of_torch_library(backend, biased):
    args, tables = make_queries(2, 2, (8, 9), 3)
    table = tables["large_bias"] if biased else None
    operator = torch.ops.lightning_overlock.contmix_fused.default
    torch.library.opcheck(operator, (*args[:3], args[3] if biased else None, table, backend))
    last = [x.to(memory_format=torch.channels_last) for x in args[:2]]
    torch.library.opcheck(operator, (*last, args[2], None, table, backend))


@pytest.mark.parametrize("backend", ["dense", "strips"])
@pytest.mark.parametrize("wanted", range(5))
def test_from_queries_a_single_wanted_gradient_is_computed_alone(backend, wanted):
    args, tables = make_queries(2, 2, (9, 8), 5)
    tensors = [*args, tables["large_bias"]]
    full = grads(ops.contmix(*args, **tables, backend=backend), tensors, {})
    alone = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(tensors)]
    output = ops.contmix(*alone[:4], large_bias=alone[4], backend=backend)
    with FlopCounterMode(display=False) as counter:
        (found,) = grads(output, [alone[wanted]], {})
    torch.testing.assert_close(found, full[wanted], rtol=0, atol=1e-12)
    with_values, with_queries = args[0].numel(), args[1].numel() if wanted in (1, 2) else 0
    assert counter.get_total_flops() == 2 * 25 * (with_values + with_queries)


@pytest.mark.parametrize("backend", CHOICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_queries_a_float32_bias_is_added_unrounded(backend, dtype):
    args, tables = make_queries(1, 2, (12, 9), 5, 3)
    args = [x.detach().to(dtype) for x in args]
    args[1].zero_()  # the logits are the biases alone
    args[3] = args[3].float() + 100
    tables = {name: x.detach().float() for name, x in tables.items()}
    exact = {name: x.double() for name, x in tables.items()}
    expected = reference_from_queries(*(x.double() for x in args), 3, **exact)
    output = ops.contmix(*args, small_kernel=3, **tables, backend=backend)
    assert output.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("backend", ["dense", "strips"])
def test_from_queries_autocast_does_not_narrow_the_products(backend):
    args, tables = make_queries(1, 2, (12, 9), 5, dtype=torch.float32)
    expected = ops.contmix(*args, **tables, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ops.contmix(*args, **tables, backend=backend)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": (8, 9, 9)}, r"value is torch.float32 of shape \(8, 9, 9\), expected \(B, C, H"),
        ({"tap_weights": (2, 4, 34)}, r"tap_weights has shape .* expected \(B, G, d, taps\)"),
        ({"value": (2, 8, 9, 9)}, "tap_weights has shape"),
        ({"query": (1, 7, 9, 9)}, r"query has shape .* expected \(1, 8, 9, 9\) for tap_weights"),
        ({"query": (1, 8, 9, 8)}, "query has shape"),
        ({"tap_bias": (33,)}, r"tap_bias has shape \(33,\), expected \(34,\)"),
        ({"small_kernel": 6}, "small_kernel is 6, tap_weights has 34 taps in all"),
        ({"small_kernel": 4}, "gives the large kernel 18 taps, expected an odd number"),
        ({"small_kernel": None}, "gives the large kernel 34 taps, expected an odd"),
        ({"value": (1, 6, 9, 9)}, "value has 6 channels, expected a multiple of 4"),
        ({"value": (1, 8, 4, 4), "query": (1, 8, 4, 4)}, "a map of 4x4, expected at least 5x5"),
        ({"large_bias": (2, 9, 8)}, r"large_bias has shape \(2, 9, 8\), expected \(2, 9, 9\)"),
        ({"small_bias": (1, 5, 5)}, r"small_bias has shape \(1, 5, 5\), expected \(2, 5, 5\)"),
        (
            {"small_kernel": None, "tap_weights": (1, 2, 4, 25), "tap_bias": (25,)},
            "small_bias is given without small_kernel",
        ),
        ({"backend": "shifts"}, "backend is 'shifts', expected 'auto' or one of"),
        ({"value": torch.zeros(1, 8, 9, 9, dtype=torch.long)}, "value is torch.int64 of shape"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(change, message):
    given = {
        "value": (1, 8, 9, 9),
        "query": (1, 8, 9, 9),
        "tap_weights": (1, 2, 4, 34),
        "tap_bias": (34,),
        "small_kernel": 3,
        "large_bias": (2, 9, 9),
        "small_bias": (2, 5, 5),
    } | change
    given = {n: torch.zeros(x) if isinstance(x, tuple) else x for n, x in given.items()}
    with pytest.raises(ValueError, match=message):
        ops.contmix(**given)


def test_only_a_known_backend_can_be_forced():
    with (
        pytest.raises(ValueError, match="backend is 'auto', expected one of"),
        contmix_backend.force("auto"),
    ):
        pass
