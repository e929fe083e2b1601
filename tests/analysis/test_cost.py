"""Costs by hand, and sums over stages against the benchmark's totals."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.cost import (
    COSTS,
    growth_exponents,
    growth_rows,
    plot_growth,
    plot_stage_costs,
    stage_costs,
    stages_of,
)
from lightning_overlock.bench import measure as bench


@pytest.mark.parametrize("name", ["test_overlock", "test_convneur", "test_resnet"])
def test_sums_over_stages_are_the_benchmarks_totals(name):
    model = timm.create_model(name, num_classes=7).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = stage_costs(model, (32, 64), seconds=0)
    *parts, total = rows
    assert total["stage"] == "total"
    assert total["parameters M"] == bench.parameter_count(model) / 1e6
    assert total["multiply-adds G"] == bench.multiply_adds(model, (3, 32, 64)) / 1e9
    for cost in ("parameters M", "multiply-adds G", "activations MiB"):
        assert sum(row[cost] for row in parts) == pytest.approx(total[cost], rel=1e-9)
    # All work of these models lies in their stages.
    other = parts[-1]
    assert other["stage"] == "(other)"
    assert other["parameters M"] == pytest.approx(0, abs=1e-12)
    assert other["multiply-adds G"] == pytest.approx(0, abs=1e-12)
    assert all(row["inference ms"] > 0 for row in rows[:-2])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_stages_of_overlock_are_its_sub_networks():
    assert list(stages_of(timm.create_model("test_overlock"))) == [
        "stem",
        "base.0",
        "base.1",
        "base.2",
        "overview",
        "context_proj",
        "focus.0",
        "focus.1",
        "head",
    ]


def test_costs_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(256, 5)
    )
    conv, sigmoid, flatten, linear, other, total = stage_costs(model, (8, 8), 2, seconds=0)
    assert conv["parameters M"] == pytest.approx((4 * 27 + 4) / 1e6)
    assert conv["multiply-adds G"] == pytest.approx(64 * 4 * 27 / 1e9)
    assert linear["multiply-adds G"] == pytest.approx(256 * 5 / 1e9)
    # The convolution keeps its input, the sigmoid its output, which is the linear's input too.
    mebibyte = 4 / 2**20
    assert conv["activations MiB"] == pytest.approx(2 * 3 * 64 * mebibyte)
    assert sigmoid["activations MiB"] == pytest.approx(2 * 4 * 64 * mebibyte)
    assert flatten["activations MiB"] == linear["activations MiB"] == 0
    assert total["activations MiB"] == pytest.approx(2 * 7 * 64 * mebibyte)
    assert other["activations MiB"] == 0


def test_work_outside_of_stages_is_told():
    class WithOwnParameters(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.matrix = nn.Parameter(torch.zeros(4, 6))

        def forward(self, x):
            return self.conv(x).mean((2, 3)) @ self.matrix

    rows = stage_costs(WithOwnParameters(), (4, 4), seconds=0)
    assert rows[-2]["parameters M"] == pytest.approx(24 / 1e6)
    assert rows[-2]["multiply-adds G"] == pytest.approx(24 / 1e9)


def test_growth_is_measured_at_every_size_for_every_model():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    rows = growth_rows({"one": conv, "two": nn.Sequential(conv, nn.ReLU())}, [16, 32], seconds=0)
    assert [(row["model"], row["side px"]) for row in rows] == [
        ("one", 16),
        ("two", 16),
        ("one", 32),
        ("two", 32),
    ]
    assert rows[2]["multiply-adds G"] == pytest.approx(32 * 32 * 8 * 27 / 1e9)
    assert conv.training
    assert growth_exponents(rows)[1]["multiply-adds G"] == pytest.approx(1)


def test_attention_grows_with_the_square_and_the_memory_does_not():
    sides = (128, 256)
    found = {}
    for operator in ("non_local", "memory"):
        model = timm.create_model("test_convneur", global_operator=operator, chunk_size=196)
        rows = [
            {
                "model": operator,
                "side px": side,
                "multiply-adds G": bench.multiply_adds(model, (3, side, side)) / 1e9,
            }
            for side in sides
        ]
        found[operator] = growth_exponents(rows)[0]["multiply-adds G"]
    assert found["memory"] == pytest.approx(1, abs=0.05)
    assert found["non_local"] > 1.7


def test_exponents_of_known_powers():
    rows = [
        {"model": name, "side px": side, "inference ms": side ** (2 * power)}
        for side in (64, 128, 512)
        for name, power in (("linear", 1.0), ("quadratic", 2.0))
    ]
    linear, quadratic = growth_exponents(rows)
    assert linear["inference ms"] == pytest.approx(1)
    assert quadratic["inference ms"] == pytest.approx(2)
    assert linear["multiply-adds G"] is None


def test_figures_draw():
    rows = [{"stage": name, **dict.fromkeys(COSTS, 1.0)} for name in ("stem", "head", "total")]
    plot_stage_costs({"a": rows, "b": rows}).canvas.draw()
    growth = [
        {"model": m, "side px": s, "multiply-adds G": s**2.0, "inference ms": s**2.0}
        | {"inference peak MiB": None}
        for s in (32, 64)
        for m in ("a", "b")
    ]
    figure = plot_growth(growth)
    figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["a (pixels^1.00)", "b (pixels^1.00)"]
    assert np.isfinite(figure.axes[0].get_ylim()).all()
