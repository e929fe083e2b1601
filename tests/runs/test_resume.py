"""A run that is stopped anywhere, and continued, ends as the one that never stopped."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from runs.stops import Plan, Stop, differences, of_training, result, train

# Lightning's advice for such small runs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # restored afterwards


@functools.cache
def uninterrupted(plan):
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), plan)
        return result(Path(folder))


def stopped(plan, stops, **changes):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stop in stops:
            train(folder, plan, stop, **changes)
        train(folder, plan, **changes)
        return result(folder)


PLANS = [
    Plan(),
    Plan(interval=2),
    Plan(interval=0.5, batches=6, accumulate=2, decay=None),
    Plan(interval=2, accumulate=3, every=None),
    Plan(interval=3, accumulate=4, batches=7),
    Plan(every=2, accumulate=2),
    Plan(interval=4, every=None, epochs=-1, max_steps=13),
    Plan(interval=2, every=None, epochs=-1, max_steps=6, accumulate=2),
    Plan(interval=1, batches=3, accumulate=2),
    Plan(limit=4, batches=6, every=2),
    Plan(limit=3, accumulate=2, interval=2),
    Plan(reestimate=2, interval=2),
    Plan(precision="bf16-true", interval=2, accumulate=2),
]
STOPS = st.one_of(
    st.builds(
        Stop, st.sampled_from(["signal", "time", "kill"]), st.integers(min_value=1, max_value=20)
    ),
    st.builds(Stop, st.sampled_from(["steps", "steps", "interval"]), st.integers(1, 14)),
    st.builds(Stop, st.just("epochs"), st.integers(1, 2)),
    st.builds(Stop, st.just("limit"), st.integers(1, 4)),
    st.builds(
        Stop,
        st.sampled_from(
            ["signal in validation", "kill in validation", "kill before save", "kill amid save"]
        ),
        st.integers(1, 8),
    ),
)

# Shrinking would take minutes.
DRAWN = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),
}


def can_be_exact(plan, stops):
    # Where nothing is left to train, the validation that `max_time` makes at the end stays.
    return all(s.kind != "time" or s.at <= plan.total - plan.accumulate for s in stops)


def continues_exactly(plan, stops):
    found, expected = stopped(plan, stops), uninterrupted(plan)
    if any(stop.kind == "interval" for stop in stops):  # other validations, other rows and best
        found, expected = of_training(found), of_training(expected)
    wrong = list(differences(found, expected))
    assert not wrong, wrong[:5]


# What went wrong once, each by its cause.
@pytest.mark.parametrize(
    ("plan", "stops"),
    [
        pytest.param(
            Plan(batches=7, accumulate=4, interval=3),
            [Stop("steps", 1), Stop("limit", 1)],
            id="a limit that is reached already trains no batch more",
        ),
        pytest.param(
            Plan(epochs=2, limit=2, every=2),
            [Stop("signal", 2)],
            id="after an epoch whose end was all that was left the next one is whole",
        ),
    ],
)
def test_a_run_goes_on_exactly_where_it_once_did_not(plan, stops):
    continues_exactly(plan, stops)


@given(plan=st.sampled_from(PLANS), stops=st.lists(STOPS, min_size=1, max_size=3))
@settings(max_examples=15, **DRAWN)
@example(plan=PLANS[0], stops=[Stop("time", 7)])
@example(plan=PLANS[0], stops=[Stop("steps", 7)])
@example(plan=PLANS[1], stops=[Stop("signal", 5), Stop("signal in validation", 1)])
@example(plan=PLANS[3], stops=[Stop("time", 4), Stop("kill amid save", 1)])
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(plan, stops):
    assume(can_be_exact(plan, stops))
    continues_exactly(plan, stops)


@pytest.mark.long
@given(plan=st.sampled_from(PLANS), stops=st.lists(STOPS, min_size=1, max_size=4))
@settings(max_examples=250, **DRAWN)
def test_two_hundred_and_fifty_runs_that_were_stopped_end_as_those_that_were_not(plan, stops):
    assume(can_be_exact(plan, stops))
    continues_exactly(plan, stops)
