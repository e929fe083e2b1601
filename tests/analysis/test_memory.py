"""Memories that must store one pair, and their way against autograd in float64."""

import numpy as np
import pytest
import timm
import torch

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.memory import (
    memory_rows,
    memory_settings,
    memory_traces,
    plot_surprise,
    plot_trajectory,
    surprise_map,
)
from lightning_overlock.layers import NeuralMemory
from lightning_overlock.layers.neural_memory import largest_step


def one_pair(repeats_of_rows=8):
    """A map whose every pixel is the same token."""
    torch.manual_seed(0)
    return torch.randn(1, 8, 1, 1, dtype=torch.float64).expand(1, 8, repeats_of_rows, 4)


def test_surprise_falls_while_one_pair_is_repeated():
    torch.manual_seed(0)
    memory = NeuralMemory(8, chunk_size=4, momentum=False, decay=False).double()
    trace = memory_traces(memory, one_pair())[""]
    assert trace.surprise.shape == (1, 8)
    assert (np.diff(trace.surprise) < 0).all()
    assert trace.surprise[0, -1] < 0.6 * trace.surprise[0, 0]
    # The steps get smaller as less is left to learn, and the way is never short of the distance.
    assert (np.diff(trace.step_length) < 0).all()
    assert (trace.step_length.cumsum(1) >= trace.distance - 1e-6).all()


def test_a_memory_that_knows_the_pair_is_not_surprised_and_stays():
    torch.manual_seed(0)
    memory = NeuralMemory(8, chunk_size=4, decay=False).double()
    with torch.no_grad():
        # Values equal keys, and a norm scaled by gamma + 1 = 0 leaves f(x) = x.
        memory.key_value.weight[8:] = memory.key_value.weight[:8]
        memory.gamma.fill_(-1)
    trace = memory_traces(memory, one_pair())[""]
    np.testing.assert_allclose(trace.surprise, 0, atol=1e-12)
    np.testing.assert_allclose(trace.distance, 0, atol=1e-12)


def test_way_of_the_weights_is_that_of_gradient_descent_by_autograd():
    torch.manual_seed(0)
    memory = NeuralMemory(4, chunk_size=5, expansion=2, step=False, decay=False).double()
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64)  # chunks of 5, 5 and 2
    trace = memory_traces(memory, x)[""]

    tokens = memory.write_norm(x.flatten(2).mT[0]).detach()
    keys, values = memory.key_value(tokens).detach().chunk(2, dim=-1)
    weights = [p.detach().clone().requires_grad_() for p in (*memory.memory, memory.gamma)]
    start = torch.cat([w.detach().flatten() for w in weights])
    last, velocity = start, torch.zeros_like(start)
    pieces = zip(tokens.split(5), keys.split(5), values.split(5), strict=True)
    for t, (chunk, k, v) in enumerate(pieces):
        hidden = torch.nn.functional.gelu(k @ weights[0]) @ weights[1]
        normed = torch.nn.functional.layer_norm(hidden, (4,), eps=1e-5)
        error = (normed * (weights[2] + 1) + k - v).square().mean(-1)
        assert trace.surprise[0, t] == pytest.approx(error.mean().item(), rel=1e-5)
        slopes = torch.autograd.grad((memory.max_step / 2 * error).sum(), weights)
        summary = (memory.pool(chunk).softmax(0) * chunk).sum(0)
        momentum = memory.momentum(summary).sigmoid().detach()
        velocity = momentum * velocity - torch.cat([slope.flatten() for slope in slopes])
        now = last + velocity
        assert trace.distance[0, t] == pytest.approx(
            ((now - start).norm() / start.norm()).item(), rel=1e-5
        )
        assert trace.step_length[0, t] == pytest.approx(
            (velocity.norm() / start.norm()).item(), rel=1e-5
        )
        sizes = [w.numel() for w in weights]
        weights = [
            part.reshape(w.shape).requires_grad_()
            for part, w in zip(now.split(sizes), weights, strict=True)
        ]
        last = now


def test_surprise_lies_where_its_chunk_does():
    torch.manual_seed(0)
    memory = NeuralMemory(4, chunk_size=6)
    trace = memory_traces(memory, torch.randn(2, 4, 3, 5))[""]  # 15 tokens: 6, 6, 3
    assert trace.chunk_of.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [1, 1, 2, 2, 2]]
    found = surprise_map(trace)
    assert found.shape == (2, 3, 5)
    np.testing.assert_array_equal(found[1, 2], trace.surprise[1, [1, 1, 2, 2, 2]])


def test_rows_say_what_changes_and_the_model_does_not():
    torch.manual_seed(0)
    model = timm.create_model("test_convneur", chunk_size=16)
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    memory = model.stages[0].global_branch.operator
    settings = memory.chunk_size, memory.scan, memory.max_step
    rows = memory_rows(model, images, chunk_sizes=[16, 64], scans=["whole"])
    first = [row for row in rows if row["memory"] == "stages.0.global_branch.operator"]
    assert [row["setting"] for row in first] == [
        "as built",
        "chunks of 16",
        "chunks of 64",
        "whole scan",
    ]
    assert [row["chunks"] for row in first] == [16, 16, 4, 16]
    assert [row["change of the read-out"] == 0 for row in first] == [True, True, False, False]
    assert (memory.chunk_size, memory.scan, memory.max_step) == settings
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_larger_chunks_get_a_step_that_is_stable_with_them():
    memory = NeuralMemory(8, chunk_size=4)
    with memory_settings(memory, chunk_size=64):
        assert memory.max_step == largest_step(8, 64, 1)
    with memory_settings(memory, chunk_size=2):
        assert memory.max_step == largest_step(8, 4, 1)
    assert memory.max_step == largest_step(8, 4, 1)


def test_models_without_a_memory_are_refused():
    with pytest.raises(ValueError, match="no neural memory"):
        memory_traces(timm.create_model("test_overlock"), torch.randn(1, 3, 64, 64))


def test_figures_draw():
    images = torch.randn(2, 3, 64, 64)
    traces = memory_traces(timm.create_model("test_convneur"), images)
    figure = plot_surprise(images, traces)
    assert figure.axes[1].get_title() == "stages.0"
    figure.canvas.draw()
    plot_trajectory(traces).canvas.draw()
