import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.ops.contmix import operator as ops
from lightning_overlock.ops.contmix.operator import (
    LOGIT_FORMS,
    contmix,
    contmix_form,
    contmix_from_queries,
    contmix_reference,
)

CHOICES = (*LOGIT_FORMS, "auto")


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
def test_every_form_equals_the_reference(batch, groups, channels, large, small, extra, bias):
    height, width = large + extra[0], large + extra[1]
    args, tables = make(batch, groups, channels, height, width, large, small, bias)
    expected = contmix_reference(*args, **tables)
    expected_grads = grads(expected, args, tables)
    for form in CHOICES:
        output = contmix(*args, **tables, form=form)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for found, wanted in zip(grads(output, args, tables), expected_grads, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["dense", "strips"])
def test_blocks_of_images_and_groups_give_the_same_as_one(form, monkeypatch):
    args, tables = make(3, 4, 2, 12, 11, 5, 3)
    whole = contmix(*args, **tables, form=form)
    expected = [whole, *grads(whole, args, tables)]
    one = {"dense": (12 * 11) ** 2, "strips": 12 * 11 * 5 * 2}[form] * 8
    for limit in (1, 3 * one, 8 * one):  # one group, a part of an image, two of three images
        monkeypatch.setattr(ops, "BLOCK_BYTES", limit)
        output = contmix(*args, **tables, form=form)
        for found, wanted in zip([output, *grads(output, args, tables)], expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", LOGIT_FORMS)
def test_gradients_equal_finite_differences(form):
    args, tables = make(1, 2, 1, 8, 6, 5, 3)
    names = list(tables)

    def call(value, large, small, *biases):
        return contmix(value, large, small, **dict(zip(names, biases, strict=True)), form=form)

    assert torch.autograd.gradcheck(call, (*args, *tables.values()), fast_mode=True)


@pytest.mark.parametrize("form", ["dense", "strips"])
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_single_wanted_gradient_is_computed_alone(form, wanted):
    (value, logits, _), tables = make(2, 2, 2, 9, 8, 5)
    tensors = [value, logits, tables["large_bias"]]
    full = grads(contmix(value, logits, large_bias=tensors[2], form=form), tensors, {})
    alone = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(tensors)]
    output = contmix(alone[0], alone[1], large_bias=alone[2], form=form)
    with FlopCounterMode(display=False) as counter:
        (found,) = grads(output, [alone[wanted]], {})
    torch.testing.assert_close(found, full[wanted], rtol=0, atol=1e-12)
    assert counter.get_total_flops() == 2 * 2 * 4 * 72 * 25  # one product, not two


@pytest.mark.parametrize("form", ["dense", "strips"])
@pytest.mark.parametrize("bias", [True, False])
def test_operator_obeys_the_rules_of_torch_library(form, bias):
    (value, logits, _), tables = make(2, 2, 2, 8, 9, 3)
    table = tables["large_bias"] if bias else None
    operator = torch.ops.lightning_overlock.contmix.default
    torch.library.opcheck(operator, (value, logits, table, form))
    torch.library.opcheck(
        operator, (value.to(memory_format=torch.channels_last), logits, table, form)
    )


@pytest.mark.parametrize("form", CHOICES)
def test_compiles_without_a_graph_break(form):
    args, tables = make(2, 2, 2, 8, 9, 5, 3)
    compiled = torch.compile(contmix, backend="aot_eager", fullgraph=True)
    expected = contmix(*args, **tables, form=form)
    output = compiled(*args, **tables, form=form)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    for found, wanted in zip(
        grads(output, args, tables), grads(expected, args, tables), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


class Mixer(torch.nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, value, large, small, large_bias, small_bias):
        return contmix(
            value, large, small, large_bias=large_bias, small_bias=small_bias, form=self.form
        )


@pytest.mark.parametrize("form", CHOICES)
def test_exports_and_leaves_no_traced_tensor_in_the_caches(form):
    args, tables = make(1, 2, 2, 10, 11, 5, 3)
    inputs = tuple(x.detach() for x in (*args, *tables.values()))
    for cache in (ops._starts, ops._window_index, ops._offsets):
        cache.cache_clear()
    program = torch.export.export(Mixer(form), inputs)
    expected = contmix_reference(*inputs[:3], large_bias=inputs[3], small_bias=inputs[4])
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(Mixer(form)(*inputs), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", LOGIT_FORMS)
def test_a_first_call_in_inference_mode_does_not_spoil_later_training(form):
    args, tables = make(1, 1, 2, 13, 9, 5)
    for cache in (ops._starts, ops._window_index, ops._offsets):
        cache.cache_clear()
    with torch.inference_mode():
        expected = contmix(*args, **tables, form=form)
    output = contmix(*args, **tables, form=form)
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


@pytest.mark.parametrize("form", LOGIT_FORMS)
def test_the_second_forward_builds_no_index(form):
    (value, logits, _), tables = make(1, 2, 2, 17, 9, 5)
    for cache in (ops._starts, ops._window_index, ops._offsets):
        cache.cache_clear()

    def run():
        # Below the operator, where a dispatch mode sees the operations inside.
        with torch.no_grad(), IntegersFromNothing() as integers:
            if form == "unfold":
                ops._unfold(value, logits, tables["large_bias"])
            else:
                ops._forward(value, ops._Given(logits, tables["large_bias"], (17, 9)), form)
        return integers.found

    assert run(), "the first forward builds its indices"
    assert not run()


@pytest.mark.parametrize("form", CHOICES)
def test_any_memory_layout_gives_the_same(form):
    args, tables = make(2, 2, 3, 9, 10, 5, 3)
    expected = contmix_reference(*args, **tables)
    value, large, small = args
    last = contmix(value.to(memory_format=torch.channels_last), large, small, **tables, form=form)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-10)
    if form != "unfold":
        assert last.is_contiguous(memory_format=torch.channels_last)
    taps_first = [x.mT.contiguous().mT for x in (large, small)]
    packed = torch.cat((large, small), -1)
    split = packed.split([25, 9], -1)
    wide = torch.cat((value, value), 3)[..., :10]
    for pair in (taps_first, split):
        output = contmix(wide, *pair, **tables, form=form)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    incoming = torch.randn_like(expected).transpose(2, 3).contiguous().transpose(2, 3)
    found = torch.autograd.grad(last, args, incoming)
    wanted = torch.autograd.grad(expected, args, incoming)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", CHOICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_kernels_and_products(form, dtype):
    args, tables = make(1, 2, 2, 12, 9, 5, 3)
    rounded = [x.detach().to(dtype) for x in args]
    tables = {name: table.detach().float() for name, table in tables.items()}
    expected = contmix_reference(
        *(x.double() for x in rounded), **{name: t.double() for name, t in tables.items()}
    )
    output = contmix(*rounded, **tables, form=form)
    assert output.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("form", ["dense", "strips"])
def test_autocast_does_not_narrow_the_products(form):
    (value, logits, _), tables = make(1, 2, 2, 12, 9, 5, dtype=torch.float32)
    expected = contmix(value, logits, **tables, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = contmix(value, logits, **tables, form=form)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", CHOICES)
def test_operation_count_does_not_depend_on_the_form(form):
    args, tables = make(2, 2, 3, 9, 10, 7, 5)
    by_hand = 2 * 2 * 6 * 90 * (49 + 25)  # two operations, images, channels, pixels, taps
    with FlopCounterMode(display=False) as forward:
        output = contmix(*args, **tables, form=form)
    with FlopCounterMode(display=False) as backward:
        grads(output, args, tables)
    assert forward.get_total_flops() == by_hand
    assert backward.get_total_flops() == 2 * by_hand


def test_meta_tensors_pass_and_are_counted():
    args, tables = make(2, 2, 3, 9, 10, 7, 5)
    args, tables = [x.to("meta") for x in args], {k: x.to("meta") for k, x in tables.items()}
    with FlopCounterMode(display=False) as counter:
        output = contmix(*args, **tables)
    assert output.shape == (2, 12, 9, 10)
    assert counter.get_total_flops() == 2 * 2 * 6 * 90 * (49 + 25)


def test_forced_form_holds_inside_the_block_only():
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
        return "lightning_overlock.contmix.default" in seen

    with contmix_form("unfold"):
        assert not uses_operator()
        with contmix_form("dense"):
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


def test_large_maps_take_strips_and_keep_nothing_of_the_size_of_all_windows():
    value = torch.randn(1, 16, 40, 40)
    logits = torch.randn(1, 1, 1600, 169)
    given = ops._Given(logits, None, (40, 40))
    given.grad = torch.empty_like(given.logits)
    with Largest() as largest:
        ops._forward(value, given, "auto")
        ops._backward(value, value, given, "auto", torch.empty_like(value), True, False)
    windows = 16 * 1600 * 169 * 4
    assert largest.bytes <= max(windows // 13, logits.numel() * 4)


def test_from_queries_not_even_the_logits_of_a_large_map_exist():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 64, 40, 40, generator=generator)
    prototypes = torch.randn(1, 8, 8, 169, generator=generator)
    products = ops._Products(value, prototypes, None, None)
    products.query_grad = torch.empty_like(products.query)
    products.prototypes_grad = torch.zeros_like(prototypes)
    with Largest() as largest:
        ops._forward(value, products, "auto")
        ops._backward(value, value, products, "auto", torch.empty_like(value), True, False)
    assert largest.bytes <= 8 * 1600 * 169 * 4 // 2


def test_a_float64_kernel_of_one_tap_copies_the_value():
    value = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    logits = torch.randn(1, 2, 12, 1, dtype=torch.float64)
    for form in CHOICES:
        torch.testing.assert_close(contmix(value, logits, form=form), value)


def make_queries(batch, groups, size, large, small=None, dtype=torch.float64):
    """Random arguments of `contmix_from_queries`: 3 values and 4 query numbers per group."""
    (value, _, _), tables = make(batch, groups, 3, *size, large, small)
    generator = torch.Generator().manual_seed(0)
    taps = large**2 + (small or 0) ** 2
    shapes = ((batch, 4 * groups, *size), (batch, groups, 4, taps), (taps,))
    normal = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    args = [x.detach().to(dtype).requires_grad_() for x in (value, *normal)]
    return args, {name: x.detach().to(dtype).requires_grad_() for name, x in tables.items()}


def reference_from_queries(value, query, prototypes, tap_bias, small, **tables):
    batch, groups, width = prototypes.shape[:3]
    rows = query.reshape(batch, groups, width, -1)
    logits = torch.einsum("bgdn,bgdt->bgnt", rows, prototypes) + tap_bias
    split = (small or 0) ** 2
    first = logits[..., :split] if small else None
    return contmix_reference(value, logits[..., split:], first, **tables)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    large=st.sampled_from([3, 5]),
    small=st.sampled_from([None, 1]),
    extra=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    channels_last=st.booleans(),
)
def test_queries_and_prototypes_make_the_logits(batch, groups, large, small, extra, channels_last):
    size = (large + extra[0], large + extra[1])
    args, tables = make_queries(batch, groups, size, large, small)
    expected = reference_from_queries(*args, small, **tables)
    expected_grads = grads(expected, args, tables)
    given = list(args)
    if channels_last:
        given[:2] = (x.to(memory_format=torch.channels_last) for x in args[:2])
    for form in CHOICES:
        output = contmix_from_queries(*given, small_kernel=small, **tables, form=form)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
        for found, wanted in zip(grads(output, args, tables), expected_grads, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["dense", "strips"])
def test_from_queries_blocks_give_the_same_as_one(form, monkeypatch):
    args, tables = make_queries(5, 4, (12, 11), 5, 3)

    def run():
        output = contmix_from_queries(*args, small_kernel=3, **tables, form=form)
        return [output, *grads(output, args, tables)]

    expected = run()
    one = {"dense": (12 * 11) ** 2, "strips": 12 * 11 * 5 * 3}[form] * 8
    for limit in (1, 3 * one, 8 * one):
        monkeypatch.setattr(ops, "BLOCK_BYTES", limit)
        for found, wanted in zip(run(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["dense", "strips"])
@pytest.mark.parametrize("biased", [True, False])
def test_operator_from_queries_obeys_the_rules_of_torch_library(form, biased):
    args, tables = make_queries(2, 2, (8, 9), 3)
    table = tables["large_bias"] if biased else None
    operator = torch.ops.lightning_overlock.contmix_fused.default
    torch.library.opcheck(operator, (*args[:3], args[3] if biased else None, table, form))
    last = [x.to(memory_format=torch.channels_last) for x in args[:2]]
    torch.library.opcheck(operator, (*last, args[2], None, table, form))


@pytest.mark.parametrize("form", ["dense", "strips"])
@pytest.mark.parametrize("wanted", range(5))
def test_from_queries_a_single_wanted_gradient_is_computed_alone(form, wanted):
    args, tables = make_queries(2, 2, (9, 8), 5)
    tensors = [*args, tables["large_bias"]]
    full = grads(contmix_from_queries(*args, **tables, form=form), tensors, {})
    alone = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(tensors)]
    output = contmix_from_queries(*alone[:4], large_bias=alone[4], form=form)
    with FlopCounterMode(display=False) as counter:
        (found,) = grads(output, [alone[wanted]], {})
    torch.testing.assert_close(found, full[wanted], rtol=0, atol=1e-12)
    with_values, with_queries = args[0].numel(), args[1].numel() if wanted in (1, 2) else 0
    assert counter.get_total_flops() == 2 * 25 * (with_values + with_queries)


@pytest.mark.parametrize("form", CHOICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_queries_a_float32_bias_is_added_unrounded(form, dtype):
    args, tables = make_queries(1, 2, (12, 9), 5, 3)
    args = [x.detach().to(dtype) for x in args]
    args[1].zero_()  # the logits are the biases alone
    args[3] = args[3].float() + 100
    tables = {name: x.detach().float() for name, x in tables.items()}
    exact = {name: x.double() for name, x in tables.items()}
    expected = reference_from_queries(*(x.double() for x in args), 3, **exact)
    output = contmix_from_queries(*args, small_kernel=3, **tables, form=form)
    assert output.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("form", ["dense", "strips"])
def test_from_queries_autocast_does_not_narrow_the_products(form):
    args, tables = make_queries(1, 2, (12, 9), 5, dtype=torch.float32)
    expected = contmix_from_queries(*args, **tables, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = contmix_from_queries(*args, **tables, form=form)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prototypes": (2, 4, 34)}, r"prototypes has shape .* expected \(B, G, d, taps\)"),
        ({"query": (1, 7, 9, 9)}, r"query has shape .* expected \(1, 8, 9, 9\) for prototypes"),
        ({"query": (1, 8, 9, 8)}, "query has shape"),
        ({"value": (2, 8, 9, 9)}, "large_logits has shape"),
        ({"tap_bias": (33,)}, r"tap_bias has shape \(33,\), expected \(34,\)"),
        ({"small_kernel": 6}, "small_kernel is 6, prototypes has 34 taps in all"),
        ({"small_kernel": 4}, "large_logits has 18 taps"),
        ({"small_kernel": None}, "large_logits has 34 taps, expected the square"),
        ({"form": "shifts"}, "form is 'shifts', expected 'auto' or one of"),
    ],
)
def test_a_shape_of_queries_that_does_not_fit_is_named(change, message):
    given = {
        "value": (1, 8, 9, 9),
        "query": (1, 8, 9, 9),
        "prototypes": (1, 2, 4, 34),
        "tap_bias": (34,),
        "small_kernel": 3,
    } | change
    given = {n: torch.zeros(x) if isinstance(x, tuple) else x for n, x in given.items()}
    with pytest.raises(ValueError, match=message):
        contmix_from_queries(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": (8, 9, 9)}, r"value has shape \(8, 9, 9\), expected \(B, C, H, W\)"),
        ({"large_logits": (1, 2, 80, 25)}, r"large_logits has shape .* \(1, groups, 81, taps\)"),
        ({"large_logits": (2, 2, 81, 25)}, "large_logits has shape"),
        ({"large_logits": (1, 2, 81, 24)}, "large_logits has 24 taps, expected the square of an"),
        ({"large_logits": (1, 2, 81, 16)}, "large_logits has 16 taps"),
        ({"large_logits": (1, 2, 81, 121)}, "value is a map of 9x9, expected at least 11x11"),
        ({"small_logits": (1, 2, 9, 9)}, "small_logits has shape"),
        ({"small_logits": (1, 4, 81, 9), "small_bias": None}, "small_logits has 4 groups, large"),
        ({"value": (1, 6, 9, 9)}, "value has 6 channels, expected a multiple of 4"),
        ({"large_bias": (2, 9, 8)}, r"large_bias has shape \(2, 9, 8\), expected \(2, 9, 9\)"),
        ({"small_bias": (1, 5, 5)}, r"small_bias has shape \(1, 5, 5\), expected \(2, 5, 5\)"),
        ({"small_logits": None}, "small_bias is given without small_logits"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(change, message):
    shapes = {
        "value": (1, 8, 9, 9),
        "large_logits": (1, 2, 81, 25),
        "small_logits": (1, 2, 81, 9),
        "large_bias": (2, 9, 9),
        "small_bias": (2, 5, 5),
    }
    tensors = {
        name: None if shape is None else torch.zeros(shape)
        for name, shape in (shapes | change).items()
    }
    with pytest.raises(ValueError, match=message):
        contmix(**tensors)


def test_an_unknown_form_and_an_integer_value_are_named():
    value, logits = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 9, 9)
    with pytest.raises(ValueError, match="form is 'shifts', expected 'auto' or one of"):
        contmix(value, logits, form="shifts")
    with pytest.raises(ValueError, match="form is 'auto', expected one of"), contmix_form("auto"):
        pass
    with pytest.raises(ValueError, match=r"value is torch.int64, expected a floating type"):
        contmix(value.long(), logits)
