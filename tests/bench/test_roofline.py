import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_overlock.bench.roofline import OUTSIDE, WorkCounter, report, seconds_by_operation


def work_of(step, bandwidth=1e9, rate=1e9):
    with WorkCounter(bandwidth, rate) as counter:
        step()
    return counter.work


def test_bytes_multiply_adds_and_least_time_equal_the_count_by_hand():
    a, b = torch.randn(10, 20), torch.randn(20, 30)

    def step():
        (a @ b).relu()
        a @ b

    work = work_of(step, bandwidth=100, rate=1000)
    assert set(work) == {"aten::mm", "aten::relu"}
    product = work["aten::mm"]
    moved, flops = 4 * (10 * 20 + 20 * 30 + 10 * 30), 2 * 10 * 20 * 30
    assert (product.calls, product.bytes, product.flops) == (2, 2 * moved, 2 * flops)
    assert product.least_seconds == pytest.approx(2 * max(moved / 100, flops / 1000))
    assert work["aten::relu"].bytes == 4 * 2 * 10 * 30
    assert work["aten::relu"].least_seconds == pytest.approx(4 * 2 * 10 * 30 / 100)


def test_the_ceiling_that_binds_is_the_higher_one():
    a = torch.randn(8, 8)
    slow_memory = work_of(lambda: a @ a, bandwidth=1, rate=1e30)["aten::mm"].least_seconds
    slow_products = work_of(lambda: a @ a, bandwidth=1e30, rate=1)["aten::mm"].least_seconds
    assert (slow_memory, slow_products) == (3 * 8 * 8 * 4, 2 * 8**3)


def test_views_and_allocations_move_nothing_and_repeats_count_once():
    x = torch.randn(4, 6)
    assert not work_of(lambda: torch.empty_like(x.view(2, 12).T[1:]))
    work = work_of(lambda: x.T.reshape(24))  # has to copy
    assert {name: part.bytes for name, part in work.items()} == {"aten::clone": 2 * 4 * 24}
    row = torch.randn(1, 6).expand(100, 6)
    assert work_of(lambda: row.neg())["aten::neg"].bytes == 4 * (6 + 600)


def test_inference_mode_is_counted_as_no_grad_is():
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)),
        torch.randn(2, 3, 8, 8),
    )
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            counts.append(work_of(lambda: model(x)))
    assert counts[0] == counts[1]
    assert counts[0]["aten::convolution"].flops == 2 * 2 * 36 * 4 * 27


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_both_gradients_of_a_convolution_take_as_much_as_the_convolution(groups):
    conv, x = nn.Conv2d(4, 4, 3, groups=groups), torch.randn(2, 4, 8, 8, requires_grad=True)
    work = work_of(lambda: conv(x).sum().backward())
    assert work["aten::convolution"].flops == 2 * 2 * 36 * 4 * 4 // groups * 9
    assert work["aten::convolution_backward"].flops == 2 * work["aten::convolution"].flops


def test_time_goes_to_the_outermost_known_operation():
    x, weight = torch.randn(1, 64, 64, 64), torch.randn(64, 64, 3, 3, requires_grad=True)

    def step():
        F.conv2d(x, weight).sum().backward()

    step()
    found = seconds_by_operation(step, ["aten::convolution", "aten::convolution_backward"], "cpu")
    assert set(found) == {"aten::convolution", "aten::convolution_backward", OUTSIDE}
    # What does the work, such as aten::mkldnn_convolution, is a part of a known operation.
    assert found[OUTSIDE] < 0.5 * sum(found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_rows_of_a_report_add_up():
    layers = [layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))]
    model, x = nn.Sequential(*layers), torch.randn(16, 8)

    def step():
        for name in ("sin", "cos", "tan", "exp", "sqrt", "neg", "abs", "floor", "ceil", "round"):
            getattr(model(x), name)()

    step()
    everything, *rows = report(step, "cpu", 1e9, 1e9)
    outside = rows.pop()
    assert everything["operation"] == "all"
    assert rows[-1]["operation"] == "the others"
    assert outside["operation"] == OUTSIDE
    for key in ("calls", "ms", "share %", "GB", "multiply-adds G", "least ms"):
        assert everything[key] == pytest.approx(sum(row[key] for row in rows))
    assert everything["share %"] + outside["share %"] == pytest.approx(100)
    for row in (everything, *rows):
        assert row["of the ceiling %"] == pytest.approx(100 * row["least ms"] / row["ms"])
        rate = row["multiply-adds G"] / (row["ms"] / 1e3)
        assert row["multiply-adds G/s"] == pytest.approx(rate)
    assert set(outside) == set(everything)
    assert everything["multiply-adds G"] == pytest.approx(10 * 3 * 16 * 8 * 8 / 1e9)
