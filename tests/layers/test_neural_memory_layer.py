import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers import NeuralMemory
from lightning_overlock.layers.neural_memory import largest_step
from lightning_overlock.layers.tap import capture
from lightning_overlock.ops.neural_memory import read_memory
from lightning_overlock.ops.shuffled_order import shuffled_order

DIM = 16


def make(**options):
    torch.manual_seed(0)
    return NeuralMemory(DIM, **({"chunk_size": 8} | options))


def image(height=8, width=8, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, DIM, height, width, generator=generator)


def formula(memory, tokens, length, written, *, read_final=False):
    """The layer of one image, token by token and gradient by autograd, from its parameters."""
    normed = memory.write_norm(tokens)
    k, v = memory.key_value(normed).split(DIM, -1)
    q = k if memory.query is None else memory.query(memory.read_norm(tokens))
    uphill = -1 if memory.write == "ascent" else 1
    theta = uphill * torch.sigmoid(memory.step(normed))[:, 0] * memory.max_step
    initial = [*memory.memory, memory.gamma]
    weights = [w.detach().clone().requires_grad_() for w in initial]
    velocity = [torch.zeros_like(w) for w in weights]
    reads = []
    for start in range(0, len(tokens), length):
        chunk = slice(start, start + length)
        reads.append(read_memory(q[chunk], tuple(weights)))
        if start < written:
            error = (read_memory(k[chunk], tuple(weights)) - v[chunk]) ** 2
            gradients = torch.autograd.grad((theta[chunk] * error.mean(-1)).sum(), weights)
            pooled = (torch.softmax(memory.pool(normed[chunk]), 0) * normed[chunk]).sum(0)
            eta = torch.sigmoid(memory.momentum(pooled))
            alpha = torch.sigmoid(memory.decay(pooled))
            velocity = [eta * s - g for s, g in zip(velocity, gradients, strict=True)]
            weights = [(1 - alpha) * w + s for w, s in zip(weights, velocity, strict=True)]
            weights = [w.detach().requires_grad_() for w in weights]
    return read_memory(q, tuple(weights)) if read_final else torch.cat(reads)


def scramble(memory):
    """Gates away from their even start, so that a wrong summary shows."""
    with torch.no_grad():
        for linear in (memory.step, memory.momentum, memory.decay, memory.pool):
            linear.weight.normal_()
    return memory


@pytest.mark.parametrize(
    ("size", "length"),
    [
        ((8, 8), 8),  # whole chunks
        ((7, 5), 8),  # a remainder of 3, read only
        ((3, 5), 7),  # fewer than two chunks of 8: two of 15 // 2 and a remainder
    ],
)
def test_raster_scan_is_the_formula_of_the_paper(size, length):
    memory = scramble(make()).double()
    x = image(*size).double()
    read = memory(x)
    for sample, expected in zip(x, read, strict=True):
        tokens = sample.flatten(1).T
        slow = formula(memory, tokens, length, len(tokens) // length * length)
        torch.testing.assert_close(expected.flatten(1).T, slow, atol=1e-8, rtol=0)


def test_bidirectional_scan_is_the_mean_of_both_directions():
    memory = scramble(make(scan="bidirectional")).double()
    x = image(7, 5).double()
    read = memory(x)
    tokens = x[0].flatten(1).T
    there = formula(memory, tokens, 8, 32)
    back = formula(memory, tokens.flip(0), 8, 32).flip(0)
    torch.testing.assert_close(read[0].flatten(1).T, (there + back) / 2, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("size", "length"), [((7, 5), 8), ((1, 1), 1)])
def test_whole_map_is_written_before_it_is_read(size, length):
    # A single token is handled like that by every scan.
    memory = scramble(make(scan="whole" if size != (1, 1) else "raster")).double()
    x = image(*size).double()
    tokens = x[0].flatten(1).T
    slow = formula(memory, tokens, length, len(tokens), read_final=True)
    torch.testing.assert_close(memory(x)[0].flatten(1).T, slow, atol=1e-8, rtol=0)


@pytest.mark.parametrize("write", ["descent", "ascent"])
@pytest.mark.parametrize("readout_from", ["query", "key"])
def test_controls_of_writing_and_reading_follow_the_formula(write, readout_from):
    memory = scramble(make(write=write, readout_from=readout_from)).double()
    x = image(7, 5).double()
    tokens = x[0].flatten(1).T
    slow = formula(memory, tokens, 8, 32)
    torch.testing.assert_close(memory(x)[0].flatten(1).T, slow, atol=1e-8, rtol=0)
    names = {n.split(".")[0] for n, _ in memory.named_parameters()}
    assert ({"query", "read_norm"} <= names) == (readout_from == "query")


def test_a_memory_that_is_never_written_is_its_initial_mlp_and_nothing_else():
    memory = make(write="none")
    assert {n.split(".")[0] for n, _ in memory.named_parameters()} == {
        "query",
        "read_norm",
        "memory",
        "gamma",
    }
    for size in ((8, 8), (3, 5), (1, 1)):
        x = image(*size)
        queries = memory.query(memory.read_norm(x.flatten(2).mT))
        expected = read_memory(queries, (*memory.memory, memory.gamma))
        torch.testing.assert_close(memory(x).flatten(2).mT, expected)
    memory(image()).square().sum().backward()
    assert [n for n, p in memory.named_parameters() if p.grad is None or not p.grad.any()] == []
    with pytest.raises(ValueError, match="never written"):
        next(memory.states(image()))
    memory.gamma.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="initial memory"):
        memory(image())


def test_a_shuffled_scan_is_the_raster_scan_of_shuffled_tokens():
    memory, raster = scramble(make(scan="shuffled")), make()
    raster.load_state_dict(memory.state_dict())
    x = image(7, 5)
    order = shuffled_order(35)
    moved = x.flatten(2)[:, :, order].reshape(x.shape)
    with capture(memory, "surprise") as ours, capture(raster, "surprise") as theirs:
        read, expected = memory(x).flatten(2)[:, :, order], raster(moved).flatten(2)
    torch.testing.assert_close(read, expected)
    torch.testing.assert_close(ours["surprise"], theirs["surprise"])
    for state, other in zip(memory.states(x), raster.states(moved), strict=True):
        torch.testing.assert_close(state, other)


@pytest.mark.parametrize("count", [1, 2, 36, 576, 1024])
def test_the_shuffled_order_is_a_fixed_permutation_without_a_trend(count):
    order = shuffled_order(count)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, shuffled_order(count))
    if count > 100:
        ranks = torch.stack((torch.arange(count), order)).double()
        steps = torch.stack((order[1:], order[:-1])).double()
        assert abs(torch.corrcoef(ranks)[0, 1]) < 0.1
        assert abs(torch.corrcoef(steps)[0, 1]) < 0.1


@pytest.mark.parametrize("size", [4, 16])
def test_evaluation_may_cut_other_chunks_with_the_same_weights(size):
    memory, plain, other = make(eval_chunk_size=size), make(), make(chunk_size=size)
    # Steps keep their range, but not beyond what is stable.
    other.max_step = min(plain.max_step, other.max_step)
    for model in (plain, other):
        model.load_state_dict(memory.state_dict())
    x = image()
    torch.testing.assert_close(memory(x), plain(x))
    torch.testing.assert_close(memory.eval()(x), other(x))
    assert not torch.allclose(other(x), plain(x))


@pytest.mark.parametrize("scan", ["raster", "bidirectional", "whole", "shuffled"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("segment_chunks", [1, "all"])
def test_every_parameter_gets_a_gradient_at_every_size(scan, size, segment_chunks):
    memory = make(scan=scan, segment_chunks=segment_chunks)
    memory(image(*size)).square().sum().backward()
    assert [n for n, p in memory.named_parameters() if p.grad is None] == []


def test_with_three_chunks_no_gradient_is_zero():
    memory = make()
    memory(image(5, 5)).square().sum().backward()
    assert [n for n, p in memory.named_parameters() if not p.grad.any()] == []


def test_min_chunks_of_one_reads_the_initial_memory_only():
    memory = make(chunk_size=64, min_chunks=1)
    x = image()
    tokens = x.flatten(2).mT
    expected = read_memory(memory.query(memory.read_norm(tokens)), (*memory.memory, memory.gamma))
    read = memory(x)
    torch.testing.assert_close(read.flatten(2).mT, expected)
    read.sum().backward()
    assert memory.key_value.weight.grad is None


@pytest.mark.parametrize("idea", ["step", "momentum", "decay"])
def test_what_is_switched_off_has_no_parameters_and_no_effect(idea):
    full, without = make(), make(**{idea: False})
    names = {n for n, _ in full.named_parameters()} - {n for n, _ in without.named_parameters()}
    assert names == {f"{idea}.weight", f"{idea}.bias"}
    # The same numbers as a gate that is held where "off" puts it.
    with torch.no_grad():
        getattr(full, idea).weight.zero_()
        getattr(full, idea).bias.fill_(0.0 if idea == "step" else -100.0)
    full.load_state_dict(without.state_dict(), strict=False)
    torch.testing.assert_close(full(image()), without(image()))


def test_without_momentum_and_decay_there_is_no_summary():
    names = {n for n, _ in make(momentum=False, decay=False).named_parameters()}
    assert not any(n.startswith("pool") for n in names)


def test_mean_summary_equals_attention_at_its_even_start():
    even, mean = make(), make(summary="mean")
    assert not hasattr(mean.pool, "weight")
    with torch.no_grad():
        even.pool.weight.zero_()
    mean.load_state_dict(even.state_dict(), strict=False)
    torch.testing.assert_close(even(image()), mean(image()))


def test_surprise_is_the_error_before_each_chunk_is_written():
    memory = scramble(make()).double()
    x = image(7, 5).double()
    with capture(memory, "surprise") as found:
        memory(x)
    tokens = x[0].flatten(1).T
    k, v = memory.key_value(memory.write_norm(tokens)).split(DIM, -1)
    # Reading the keys instead of the queries gives M_{t-1}(k_t).
    reader = scramble(make()).double()
    reader.query.weight.data = memory.key_value.weight.data[:DIM]
    reader.read_norm.load_state_dict(memory.write_norm.state_dict())
    predicted = formula(reader, tokens, 8, 32)
    error = (predicted - v).square().mean(-1)
    expected = torch.stack([error[i : i + 8].mean() for i in range(0, 35, 8)])
    assert found["surprise"].shape == (2, 5)
    torch.testing.assert_close(found["surprise"][0], expected, atol=1e-8, rtol=0)
    assert k.shape == v.shape


def test_nobody_pays_for_a_surprise_that_nobody_reads(monkeypatch):
    memory = make()
    monkeypatch.setattr(memory, "_surprise", lambda _: pytest.fail("computed"))
    memory(image())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("write", "segment_chunks"),
    [("descent", 1), ("descent", 10), ("descent", "all"), ("ascent", "all")],
)
@pytest.mark.parametrize("gates", ["as drawn", "step wide open", "step and momentum wide open"])
def test_a_hundred_chunks_stay_finite_in_the_default_step_range(
    depth, segment_chunks, gates, write
):
    memory = make(chunk_size=16, depth=depth, segment_chunks=segment_chunks, write=write)
    with torch.no_grad():
        if gates != "as drawn":
            memory.step.bias.fill_(20.0)
        if "momentum" in gates:
            memory.momentum.bias.fill_(3.0)
    x = image(40, 40, batch=1).requires_grad_()
    read = memory(x)
    read.square().mean().backward()
    assert read.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in memory.parameters())


def test_a_memory_that_is_not_finite_raises_with_its_name_and_chunk():
    memory = make(label="neural memory of stages.2")
    with torch.no_grad():
        memory.key_value.weight[DIM:] *= 1e30  # values overflow the squared error's gradient
    x = image()
    x[:, :, :3] = 0  # the first three chunks of a row each have nothing to write
    with pytest.raises(FloatingPointError, match=r"stages\.2: .* not finite after chunk 4 of 7"):
        memory(x * torch.tensor(1.0))


def test_an_initial_memory_that_is_not_finite_is_told_apart():
    memory = make()
    memory.gamma.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="initial memory"):
        memory(image())


def test_bf16_autocast_agrees_with_float32_and_trains():
    memory = make()
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        read = memory(x)
    torch.testing.assert_close(read.float(), memory(x), atol=0.1, rtol=0.1)
    read.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("scan", ["raster", "bidirectional", "whole", "shuffled"])
def test_compiles_and_exports(scan):
    memory = make(scan=scan).eval()
    x = image()
    expected = memory(x)
    compiled = torch.compile(memory, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, atol=1e-5, rtol=1e-5)
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(memory, (x,), dynamic_shapes=dynamic)
    x3 = image(batch=3)
    torch.testing.assert_close(program.module()(x3), memory(x3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, "depth of the memory must be 1, 2 or 3, found 4"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, found 0"),
        ({"min_chunks": 0}, "min_chunks must be at least 1, found 0"),
        ({"segment_chunks": 0}, "segment_chunks must be at least 1, found 0"),
        ({"max_step": 1.0}, r"max_step must be in \(0, 0.2\] .* found 1.0"),
        ({"max_step": 0.0}, "max_step must be in"),
        ({"scan": "spiral"}, "scan must be one of .* found 'spiral'"),
        ({"summary": "max"}, "summary must be one of .* found 'max'"),
        ({"write": "up"}, "write must be one of .* found 'up'"),
        ({"readout_from": "value"}, "readout_from must be one of .* found 'value'"),
        ({"eval_chunk_size": 0}, "eval_chunk_size must be at least 1, found 0"),
        ({"write": "none", "scan": "whole"}, "scan='whole' needs a memory that is written"),
        ({"write": "none", "readout_from": "key"}, "readout_from='key' needs a memory"),
        ({"write": "none", "eval_chunk_size": 4}, "eval_chunk_size=4 needs a memory"),
    ],
)
def test_arguments_outside_their_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_longer_chunks_and_segments_narrow_the_step_in_proportion():
    assert largest_step(128, 4096, 1) == pytest.approx(largest_step(128, 1024, 4))
    assert largest_step(256, 196, "all") == pytest.approx(2 * largest_step(128, 196, 1))


def _train_two_processes(rank, port, gradients):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = DistributedDataParallel(make())
    for size in ((8, 8), (1, 1), (3, 5)):  # raises at the next step if a parameter was unused
        model.zero_grad()
        model(image(*size)[rank : rank + 1]).square().sum().backward()
    gradients[rank] = model.module.memory[0].grad.clone().tolist()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_it_without_unused_parameters():
    with mp.Manager() as manager:
        gradients = manager.dict()
        port = 20000 + os.getpid() % 20000
        mp.spawn(_train_two_processes, (port, gradients), nprocs=2)
        both = [torch.tensor(gradients[r]) for r in range(2)]
    torch.testing.assert_close(both[0], both[1])
    memory = make()
    sum(memory(image(3, 5)[r : r + 1]).square().sum() for r in range(2)).backward()
    torch.testing.assert_close(both[0], memory.memory[0].grad / 2, atol=1e-5, rtol=1e-4)
