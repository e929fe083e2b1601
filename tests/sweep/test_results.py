"""Statistics over seeds: held against scipy's and against figures worked out by hand."""

import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from scipy import stats

from lightning_overlock.sweep.results import difference, mean_interval, results
from lightning_overlock.sweep.spec import read

VALUES = st.lists(st.floats(0, 100), min_size=2, max_size=6)


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{metric: val/top1, baseline: b, rows: {a: {paper: {top1: 79.6, source: s}}, "
        "b: {paper: {top1: 80.0, source: s}}, c: {missing: no code}}, "
        "profiles: {p: {configs: [quickstart], seeds: [1, 2, 3], data: digits}}}"
    )
    return read(str(tmp_path / "mine.yaml"))


def study_of(trials):
    """A study with (row, seed, value, user attributes, state) each."""
    study = optuna.create_study(direction="maximize")
    choices = {
        "row": CategoricalDistribution(["a", "b"]),
        "seed": CategoricalDistribution([1, 2, 3]),
    }
    for row, seed, value, attributes, state in trials:
        study.add_trial(
            create_trial(
                state=state,
                params={"row": row, "seed": seed},
                distributions=choices,
                value=value,
                user_attrs=attributes,
            )
        )
    return study


def complete(row, seed, value, **attributes):
    return (row, seed, value, attributes, TrialState.COMPLETE)


def failed(row, seed, **attributes):
    return (row, seed, None, attributes, TrialState.FAIL)


@settings(deadline=None)
@given(VALUES)
def test_the_interval_is_student_s(values):
    mean, std, (low, high) = mean_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    if std > 1e-6:
        error = std / math.sqrt(len(values))
        assert (low, high) == pytest.approx(stats.t.interval(0.95, len(values) - 1, mean, error))


def test_the_interval_of_three_seeds_is_the_textbook_s():
    # t(.975, 2) = 4.302653; the standard deviation of 1, 2, 3 is 1
    assert mean_interval([1.0, 2.0, 3.0])[2] == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6
    )


@pytest.mark.parametrize("values", [[], [0.5]])
def test_one_seed_has_no_spread(values):
    assert mean_interval(values) is None


def test_rows_with_the_same_seeds_are_paired():
    # Seeds differ more than rows: only the pairs tell that row is better
    row, base = {1: 0.51, 2: 0.71, 3: 0.912}, {3: 0.9, 1: 0.5, 2: 0.7}
    found = difference(row, base)
    assert found.test == "paired t"
    assert found.value == pytest.approx(0.032 / 3)
    # By hand: differences .010, .010, .012; t = mean / (std / sqrt 3) = 16, two degrees of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(16, 2), rel=1e-6)
    assert found.exceeds


def test_rows_with_other_seeds_are_compared_by_welch():
    row, base = {1: 0.5, 2: 0.6, 3: 0.55}, {1: 0.7, 2: 0.75}
    found = difference(row, base)
    a, b = np.array(list(row.values())), np.array(list(base.values()))
    variances = a.var(ddof=1) / 3, b.var(ddof=1) / 2
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 1)
    t = (a.mean() - b.mean()) / math.sqrt(sum(variances))
    assert found.test == "Welch's t"
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))


@pytest.mark.parametrize(
    ("row", "base", "exceeds"),
    [
        ({1: 0.5}, {1: 0.4}, None),  # one seed tells nothing
        ({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}, False),  # no difference at all
        ({1: 0.5, 2: 0.5}, {1: 0.25, 2: 0.25}, True),  # a difference without any spread
        ({1: 0.5, 2: 0.7}, {1: 0.6, 2: 0.5}, False),
    ],
)
def test_what_cannot_be_told_is_not_claimed(row, base, exceeds):
    assert difference(row, base).exceeds is exceeds


def test_the_best_of_the_whole_run_counts_once_per_row_and_seed(sweep):
    found = results(
        study_of(
            [
                failed("a", 1, error="killed", attempts=1),
                complete("a", 1, 0.1, best=0.5, seconds=10.0, epochs=4),
                complete("a", 1, 0.9, best=0.9),  # of a runner that did not know the other
                complete("a", 2, 0.8, best=0.8, duplicate_of=1),
                complete("a", 2, 0.7, seconds=20.0, epochs=4),
                complete("b", 1, 0.6),
                failed("b", 2, duplicate_of=5),
                failed("b", 2, error="line\nOut of memory", attempts=2),
            ]
        ),
        sweep,
    )
    line = found.lines["a"]
    assert line.values == {1: 0.5, 2: 0.7}
    assert line.seconds == 15.0
    assert line.state == "seed 3 was not run"
    assert found.lines["b"].values == {1: 0.6}
    assert found.lines["b"].state == "seed 2 failed (Out of memory), seed 3 was not run"
    assert found.lines["c"].state == "cannot be run: no code"
    assert line.against.value == pytest.approx(0.0)
    assert line.against.exceeds is None
    assert "Epochs: 4." in found.facts[0]


@pytest.mark.parametrize(("ours", "agrees"), [(0.4, True), (0.9, False)])
def test_the_sign_of_the_difference_is_held_against_the_paper_s(sweep, ours, agrees):
    trials = [complete("a", s, ours + s / 100) for s in (1, 2, 3)]
    trials += [complete("b", s, 0.8 - s / 100) for s in (1, 2, 3)]
    line = results(study_of(trials), sweep).lines["a"]
    assert line.published == -0.4
    assert line.agrees is agrees


def test_a_result_that_is_no_number_is_no_result(sweep):
    trials = [complete("a", 1, 0.5, best=math.nan), complete("a", 2, 0.5, best=0.5)]
    assert results(study_of(trials), sweep).lines["a"].values == {2: 0.5}


def test_an_empty_study_has_a_line_for_every_row(sweep):
    found = results(optuna.create_study(), sweep)
    assert [line.state for line in found.lines.values()][:2] == ["not run", "not run"]
    assert found.lines["a"].mean is None
    assert found.lines["a"].agrees is None
