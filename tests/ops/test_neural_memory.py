import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_overlock.ops.neural_memory import (
    neural_memory,
    neural_memory_vmap,
    read_memory,
)

DIM, HIDDEN, BATCH = 6, 9, 2


def memory_sizes(depth, dim=DIM, hidden=HIDDEN):
    sizes = [dim, *[hidden] * (depth - 1), dim]
    return list(itertools.pairwise(sizes))


def random_memory(depth, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [*memory_sizes(depth), (DIM,)]
    return tuple(
        (torch.randn(s, generator=generator, dtype=torch.float64) * 0.4).requires_grad_()
        for s in shapes
    )


def random_tokens(tokens, updates, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype).requires_grad_()

    q, k, v = (normal(BATCH, tokens, DIM) for _ in range(3))
    return q, k, v, uniform(BATCH, tokens), uniform(BATCH, updates), uniform(BATCH, updates)


def slow_read(x: Tensor, weights):
    """One sample, one memory, written out: nothing shared with the operation."""
    *matrices, gamma = weights
    h = x
    for i, matrix in enumerate(matrices):
        if i > 0:
            h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
        h = h @ matrix
    mean = h.mean(-1, keepdim=True)
    variance = ((h - mean) ** 2).mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(variance + 1e-5) * (gamma + 1) + x


def slow_memory(q, k, v, step, weights, chunk, momentum, decay, segment, write_remainder):
    """Every chunk's gradient by autograd, sample by sample and chunk by chunk."""
    outputs, finals = [], []
    for b in range(q.shape[0]):
        memory = list(weights)
        velocity = [torch.zeros_like(w) for w in memory]
        anchor = memory
        reads = []
        whole = k.shape[1] // chunk
        starts = [t * chunk for t in range(whole)]
        rest = k.shape[1] - whole * chunk
        for t, start in enumerate(
            [*starts, *([whole * chunk] if rest and write_remainder else [])]
        ):
            if t == whole:
                reads.append(slow_read(q[b, start:], memory))
            stop = min(start + chunk, k.shape[1])
            if t % segment == 0:
                anchor = memory
            if t < whole:
                reads.append(slow_read(q[b, start:stop], memory))
            error = (slow_read(k[b, start:stop], anchor) - v[b, start:stop]) ** 2
            loss = (step[b, start:stop] * error.mean(-1)).sum()
            gradients = torch.autograd.grad(loss, anchor, create_graph=True)
            eta = 0 if momentum is None else momentum[b, t]
            alpha = 0 if decay is None else decay[b, t]
            velocity = [eta * s - g for s, g in zip(velocity, gradients, strict=True)]
            memory = [(1 - alpha) * m + s for m, s in zip(memory, velocity, strict=True)]
        if not (rest and write_remainder):
            reads.append(slow_read(q[b, whole * chunk :], memory))
        outputs.append(torch.cat(reads))
        finals.append(memory)
    return torch.stack(outputs), [torch.stack(w) for w in zip(*finals, strict=True)]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("segment", [1, 2, 3, "all"])
@pytest.mark.parametrize("write_remainder", [False, True])
def test_reads_weights_and_outer_gradient_equal_the_autograd_reference(
    depth, segment, write_remainder
):
    # 7 whole chunks in runs of 2 (so runs and segments of 3 overlap) and a remainder of 2.
    chunk, tokens = 3, 23
    updates = 7 + write_remainder
    weights = random_memory(depth)
    q, k, v, step, momentum, decay = random_tokens(tokens, updates)
    read, final = neural_memory(
        q,
        k,
        v,
        step,
        weights,
        chunk_size=chunk,
        momentum=momentum,
        decay=decay,
        segment_chunks=segment,
        write_remainder=write_remainder,
    )
    expected, expected_final = slow_memory(
        q,
        k,
        v,
        step,
        weights,
        chunk,
        momentum,
        decay,
        updates if segment == "all" else segment,
        write_remainder,
    )
    torch.testing.assert_close(read, expected, atol=1e-8, rtol=0)
    for w, e in zip(final, expected_final, strict=True):
        torch.testing.assert_close(w, e, atol=1e-8, rtol=1e-10)

    inputs = (q, k, v, step, momentum, decay, *weights)
    cotangent = torch.randn(read.shape, dtype=read.dtype, generator=torch.Generator())

    def gradient(y, w):
        objective = (y * cotangent).sum() + sum(x.square().sum() for x in w)
        return torch.autograd.grad(objective, inputs)

    for g, e in zip(gradient(read, final), gradient(expected, expected_final), strict=True):
        torch.testing.assert_close(g, e, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("use_momentum", [False, True])
@pytest.mark.parametrize("use_decay", [False, True])
@pytest.mark.parametrize("segment", [1, "all"])
def test_momentum_and_decay_can_be_left_out(use_momentum, use_decay, segment):
    weights = random_memory(2)
    q, k, v, step, momentum, decay = random_tokens(20, 5)
    momentum = momentum if use_momentum else None
    decay = decay if use_decay else None
    read, _ = neural_memory(
        q, k, v, step, weights, chunk_size=4, momentum=momentum, decay=decay, segment_chunks=segment
    )
    expected, _ = slow_memory(
        q,
        k,
        v,
        step,
        weights,
        4,
        momentum,
        decay,
        5 if segment == "all" else segment,
        write_remainder=False,
    )
    torch.testing.assert_close(read, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("segment", [1, 2, "all"])
def test_gradcheck_of_the_outer_gradient(depth, segment):
    weights = random_memory(depth)
    tokens = random_tokens(9, 4)

    def operation(q, k, v, step, momentum, decay, *weights):
        read, final = neural_memory(
            q,
            k,
            v,
            step,
            weights,
            chunk_size=2,
            momentum=momentum,
            decay=decay,
            segment_chunks=segment,
        )
        return read, *final

    assert torch.autograd.gradcheck(operation, (*tokens, *weights), fast_mode=True)


def test_two_implementations_agree_in_one_segment():
    weights = random_memory(2)
    q, k, v, step, momentum, decay = random_tokens(24, 6)
    options = {"chunk_size": 4, "momentum": momentum, "decay": decay}
    read, final = neural_memory(q, k, v, step, weights, segment_chunks="all", **options)
    expected, expected_final = neural_memory_vmap(q, k, v, step, weights, **options)
    torch.testing.assert_close(read, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(final, expected_final, atol=1e-10, rtol=1e-10)


def test_tokens_before_the_first_update_read_the_initial_memory():
    weights = random_memory(2)
    q, k, v, step, *_ = random_tokens(5, 0)
    read, final = neural_memory(q, k, v, step, weights, chunk_size=8)
    torch.testing.assert_close(read, torch.stack([slow_read(x, weights) for x in q]))
    torch.testing.assert_close(final[0], weights[0].expand(BATCH, -1, -1))


@pytest.mark.parametrize("segment", [1, "all"])
def test_a_chunk_does_not_see_itself_or_what_follows(segment):
    weights = random_memory(2)
    q, k, v, step, momentum, decay = random_tokens(20, 5)

    def reads(keys, values):
        return neural_memory(
            q,
            keys,
            values,
            step,
            weights,
            chunk_size=4,
            momentum=momentum,
            decay=decay,
            segment_chunks=segment,
        )[0]

    changed_k, changed_v = k.detach().clone(), v.detach().clone()
    changed_k[:, 8:12] += 1
    changed_v[:, 8:12] -= 1
    before, after = reads(k, v), reads(changed_k, changed_v)
    torch.testing.assert_close(before[:, :12], after[:, :12], atol=0, rtol=0)
    assert ((before - after)[:, 12:].abs().amax(-1) > 1e-6).all()


def test_keys_that_nobody_reads_may_be_left_out():
    weights = random_memory(2)
    q, k, v, step, momentum, decay = random_tokens(20, 5)
    full, _ = neural_memory(q, k, v, step, weights, chunk_size=4, momentum=momentum, decay=decay)
    short, _ = neural_memory(
        q,
        k[:, :16],
        v[:, :16],
        step[:, :16],
        weights,
        chunk_size=4,
        momentum=momentum[:, :4],
        decay=decay[:, :4],
    )
    torch.testing.assert_close(short, full, atol=1e-12, rtol=0)


@pytest.mark.parametrize("segment", [1, 2, "all"])
def test_read_final_writes_everything_and_then_reads(segment):
    weights = random_memory(2)
    q, k, v, step, momentum, decay = random_tokens(22, 6)
    q = q[:, :5]
    read, final = neural_memory(
        q,
        k,
        v,
        step,
        weights,
        chunk_size=4,
        momentum=momentum,
        decay=decay,
        segment_chunks=segment,
        write_remainder=True,
        read_final=True,
    )
    _, expected = slow_memory(
        k, k, v, step, weights, 4, momentum, decay, 6 if segment == "all" else segment, True
    )
    torch.testing.assert_close(final, tuple(expected), atol=1e-8, rtol=0)
    for b in range(BATCH):
        torch.testing.assert_close(read[b], slow_read(q[b], [w[b] for w in expected]))


def test_every_sample_may_start_from_its_own_memory():
    q, k, v, step, momentum, decay = random_tokens(12, 3)
    both = [random_memory(2, seed) for seed in range(BATCH)]
    stacked = tuple(torch.stack(w) for w in zip(*both, strict=True))
    options = {"chunk_size": 4, "segment_chunks": 2}
    read, _ = neural_memory(q, k, v, step, stacked, momentum=momentum, decay=decay, **options)
    for b in range(BATCH):
        part = slice(b, b + 1)
        alone, _ = neural_memory(
            q[part],
            k[part],
            v[part],
            step[part],
            both[b],
            momentum=momentum[part],
            decay=decay[part],
            **options,
        )
        torch.testing.assert_close(read[part], alone, atol=1e-10, rtol=0)


def test_read_memory_broadcasts_the_weights():
    weights = random_memory(3)
    x = torch.randn(2, 4, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(read_memory(x, weights), slow_read(x, weights))


def test_state_is_float32_under_bf16_autocast():
    weights = tuple(w.detach().float() for w in random_memory(2))
    q, k, v, step, momentum, decay = (x.detach().float() for x in random_tokens(20, 5))
    options = {"chunk_size": 4, "momentum": momentum, "decay": decay}
    expected, _ = neural_memory(q, k, v, step, weights, **options)
    with torch.autocast("cpu", torch.bfloat16):
        read, final = neural_memory(q, k, v, step, weights, **options)
        rounded, _ = neural_memory(
            q.bfloat16(), k.bfloat16(), v.bfloat16(), step, weights, **options
        )
    assert all(w.dtype == torch.float32 for w in final)
    torch.testing.assert_close(read, expected, atol=1e-6, rtol=1e-6)
    assert rounded.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "segment",
    [2, pytest.param(1, marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.slow)],
)
def test_compiles_without_a_graph_break(segment):
    weights = random_memory(2)
    tokens = random_tokens(17, 4)

    def operation(q, k, v, step, momentum, decay, *weights):
        return neural_memory(
            q,
            k,
            v,
            step,
            weights,
            chunk_size=4,
            momentum=momentum,
            decay=decay,
            segment_chunks=segment,
        )[0]

    compiled = torch.compile(operation, backend="aot_eager", fullgraph=True)
    inputs = (*tokens, *weights)
    expected = operation(*inputs)
    read = compiled(*inputs)
    torch.testing.assert_close(read, expected, atol=1e-10, rtol=0)
    for g, e in zip(
        torch.autograd.grad(read.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(g, e, atol=1e-8, rtol=1e-8)


class Memory(torch.nn.Module):
    def forward(self, q, k, v, step, weights):
        return neural_memory(q, k, v, step, weights, chunk_size=4, segment_chunks=2)[0]


def test_exports_with_any_batch_size():
    weights = tuple(w.detach() for w in random_memory(2))
    q, k, v, step, *_ = (x.detach() for x in random_tokens(17, 4))
    batch = torch.export.Dim("batch", min=2)
    dynamic = ({0: batch}, {0: batch}, {0: batch}, {0: batch}, (None,) * len(weights))
    program = torch.export.export(Memory(), (q, k, v, step, weights), dynamic_shapes=dynamic)
    twice = [torch.cat((x, x.flip(1), x)) for x in (q, k, v, step)]
    torch.testing.assert_close(
        program.module()(*twice, weights), Memory()(*twice, weights), atol=1e-12, rtol=0
    )


def test_flop_counter_sees_every_product():
    # Per token: read 2 products of D x H; write 2 forward, 1 back to the hidden layer and 2 for
    # the weights. Per chunk, the scan is one product over the weights: counted apart.
    dim, hidden, tokens, chunk = 16, 64, 64, 16
    weights = tuple(torch.randn(s) for s in [*memory_sizes(2, dim, hidden), (dim,)])
    q, k, v = (torch.randn(1, tokens, dim) for _ in range(3))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        neural_memory(q, k, v, torch.rand(1, tokens), weights, chunk_size=chunk)
    assert counter.get_total_flops() == 2 * 7 * tokens * dim * hidden


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "at least 1, found 0"),
        ({"segment_chunks": 0}, "at least 1, found 4 and 0"),
        ({"q": torch.zeros(2, 3, DIM)}, r"\(2, 3, 6\).*\(2, 20, 6\)"),
        ({"v": torch.zeros(2, 19, DIM)}, r"found .*\(2, 19, 6\)"),
        ({"momentum": torch.zeros(2, 4)}, r"momentum must be \(2, 5\), found \(2, 4\)"),
        ({"weights": (torch.zeros(DIM, 5), torch.zeros(4, DIM), torch.zeros(DIM))}, "found shapes"),
        ({"weights": (torch.zeros(DIM),)}, "found shapes"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    q, k, v, step, *_ = random_tokens(20, 5)
    arguments = {"q": q, "k": k, "v": v, "step": step, "weights": random_memory(2), "chunk_size": 4}
    with pytest.raises(ValueError, match=message):
        neural_memory(**(arguments | change))
