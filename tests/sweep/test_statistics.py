"""Statistics: against statsmodels, published examples, and by simulation with few seeds."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from lightning_overlock.sweep.statistics import (
    compare,
    detectable_effect,
    equivalence_test,
    holm,
    seeds_needed,
    spread_of,
    t_interval,
    t_test,
)

SEEDS = (3, 5, 8)


def simulated(n, mean=0.0, rows=100_000):
    return np.random.default_rng(n).normal(mean, 1.0, (rows, n))


@pytest.mark.parametrize("n", SEEDS)
def test_the_interval_covers_the_mean_as_often_as_it_says(n):
    low, high = t_interval(simulated(n, mean=3.0))
    assert 0.94 < ((low < 3.0) & (high > 3.0)).mean() < 0.96


@pytest.mark.parametrize("n", SEEDS)
def test_the_test_finds_nothing_where_nothing_is_as_often_as_it_says(n):
    assert 0.04 < (t_test(simulated(n)) < 0.05).mean() < 0.06


@pytest.mark.parametrize("n", SEEDS)
def test_equivalence_is_claimed_at_the_margin_five_times_in_a_hundred(n):
    # A margin so wide that only one of both tests decides.
    differences = simulated(n, mean=10.0)
    assert 0.04 < (equivalence_test(differences, 10.0) < 0.05).mean() < 0.06


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("rows", [1, 8])
def test_what_can_be_found_is_found_four_times_in_five(n, rows):
    found = t_test(simulated(n, mean=detectable_effect(n, rows))) < 0.05 / rows
    assert 0.79 < found.mean() < 0.81


def test_holm_keeps_the_level_over_all_rows():
    p_values = t_test(simulated(5, rows=8 * 20_000).reshape(20_000, 8, 5))
    # Something is found where the smallest p, times eight, is below the level.
    assert holm(list(p_values[0])) == pytest.approx(
        [
            min(
                1,
                max(
                    p * (8 - r)
                    for p, r in zip(p_values[0], stats.rankdata(p_values[0]) - 1, strict=True)
                    if p <= q
                ),
            )
            for q in p_values[0]
        ]
    )
    assert 0.04 < (p_values.min(1) * 8 < 0.05).mean() < 0.06


def test_the_effects_are_the_known_ones():
    # In standard deviations of the paired difference; the second line with eight rows.
    assert [round(detectable_effect(n), 1) for n in SEEDS] == [3.3, 1.7, 1.2]
    assert [round(detectable_effect(n, 8), 1) for n in SEEDS] == [9.3, 3.0, 1.7]


@pytest.mark.parametrize("n", [3, 5, 8, 73, 500, 5000])
def test_an_effect_is_found_as_often_as_statsmodels_says(n):
    assert TTestPower().power(detectable_effect(n), n, 0.05) == pytest.approx(0.8, abs=1e-5)


def test_seeds_needed_are_those_whose_effect_is_small_enough():
    for effect in (3.3, 1.7, 0.5):
        n = seeds_needed(effect)
        assert detectable_effect(n) <= effect
        assert n == 3 or detectable_effect(n - 1) > effect
    # Cohen (1988), table 2.4.1 for paired samples: d = 0.5 with 80 % power
    assert seeds_needed(0.5) == 34


def test_equivalence_is_that_of_statsmodels():
    generator = np.random.default_rng(0)
    for n in SEEDS:
        a, b = generator.normal(0.5, 0.1, n), generator.normal(0.5, 0.1, n)
        expected = ttost_paired(a, b, -0.1, 0.1)[0]
        assert float(equivalence_test(a - b, 0.1)) == pytest.approx(expected)


def test_holm_is_the_paper_s_step_down():
    # p (1) times 4, p (2) times 3, ..., never smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_interval_of_student_s_sleep_data_is_the_published_one():
    # Student (1908), additional hours of sleep by two drugs, paired: t = -4.0621, p = .002833,
    # 95 % interval -2.4598858 to -0.7001142 (R, ?sleep)
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    values = {"one": dict(enumerate(one)), "two": dict(enumerate(two))}
    (found,) = compare(values, [("one", "two")], "maximize")
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.n, found.verdict, found.star) == (10, "worse", True)


def test_few_seeds_have_no_interval():
    assert spread_of([0.5]).std is None
    two = spread_of([0.4, 0.6])
    assert two.mean == pytest.approx(0.5)
    assert (two.low, two.high) == (None, None)
    three = spread_of([1.0, 2.0, 3.0])
    # t(.975, 2) = 4.302653; the standard deviation of 1, 2, 3 is 1
    assert three.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def rows(*differences):
    base = dict(enumerate((0.5, 0.7, 0.9, 0.6, 0.8)))
    return {"base": base} | {
        f"row{place}": {seed: base[seed] + d for seed, d in enumerate(found)}
        for place, found in enumerate(differences)
    }


def test_rows_are_compared_seed_by_seed():
    # Seeds differ more than rows: only the pairs tell that the row is better
    (found,) = compare(rows((0.010, 0.010, 0.012)), [("row0", "base")], "maximize")
    assert found.value == pytest.approx(0.032 / 3)
    # By hand: t = mean / (std / sqrt 3) = 16, two degrees of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(16, 2), rel=1e-6)
    assert found.verdict == "better"
    assert not found.star  # three seeds
    assert (
        compare(rows((0.010, 0.010, 0.012)), [("row0", "base")], "minimize")[0].verdict == "worse"
    )


def test_a_star_needs_five_seeds_and_holm():
    clear, faint = (0.010, 0.011, 0.012, 0.010, 0.011), (0.03, 0.002, 0.03, 0.02, 0.01)
    alone = compare(rows(faint), [("row0", "base")], "maximize")[0]
    assert alone.star
    pairs = [("row0", "base"), ("row1", "base"), ("row2", "base")]
    noise = (0.1, -0.1, 0.1, -0.1, 0.01)
    found = compare(rows(clear, faint, noise), pairs, "maximize")
    assert [c.verdict for c in found] == ["better", "undecided", "undecided"]
    assert found[1].p == pytest.approx(alone.p)
    assert found[1].p_holm == pytest.approx(2 * alone.p)


def test_equivalence_needs_a_margin_and_a_tight_spread():
    tight, wide = (1e-4, -1e-4, 2e-4, -2e-4, 0.5e-4), (0.1, -0.1, 0.1, -0.1, 0.01)
    pairs = [("row0", "base"), ("row1", "base")]
    found = compare(rows(tight, wide), pairs, "maximize", margin=0.002)
    assert [c.verdict for c in found] == ["equivalent", "undecided"]
    found = compare(rows(tight, wide), pairs, "maximize")
    assert [c.verdict for c in found] == ["undecided", "undecided"]


@pytest.mark.parametrize("step", [0.0, 0.125])
def test_without_any_spread_nothing_is_claimed(step):
    values = {"a": dict.fromkeys(range(5), 0.25 + step), "b": dict.fromkeys(range(5), 0.25)}
    (found,) = compare(values, [("a", "b")], "maximize", margin=0.002)
    assert (found.value, found.p, found.verdict) == (step, None, "undecided")


def test_only_seeds_that_both_rows_have_count():
    values = {"a": {1: 0.5, 2: 0.6, 3: 0.7, 4: 9.0}, "b": {3: 0.6, 2: 0.5, 1: 0.3}, "c": {9: 0.1}}
    found = compare(values, [("a", "b"), ("a", "c"), ("a", "d")], "maximize")
    assert [c.n for c in found] == [3, 0, 0]
    assert found[0].value == pytest.approx(0.4 / 3)
    assert [c.verdict for c in found[1:]] == ["", ""]
