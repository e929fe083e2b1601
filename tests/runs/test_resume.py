"""A run that is stopped anywhere, and continued, ends as the one that never stopped."""

import copy
import functools
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from runs.stops import IN_VALIDATION, Plan, Stop, differences, load, of_training, result, train

from lightning_overlock.errors import InputError
from lightning_overlock.runs.layout import LAST

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
            [
                "signal in validation",
                "SIGTERM in validation",
                "kill in validation",
                "kill before save",
                "kill amid save",
            ]
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
    if plan.max_steps > 0 and any(stop.kind == "limit" for stop in stops):
        # The last step may be the last that a limit allowed. Nothing is left to train then, and
        # the checkpoint stays as it is: of an epoch that was as long as the limit.
        of_the_limit = ("/last/position/batches:", "/last/position/ended:")
        wrong = [line for line in wrong if not line.startswith(of_the_limit)]
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
        pytest.param(
            Plan(reestimate=2, interval=2),
            [Stop("time", 3), Stop("signal", 9)],
            id="training goes on with its own statistics, not with re-estimated ones",
        ),
        pytest.param(
            Plan(batches=6, interval=0.5, accumulate=2, epochs=1),
            [Stop("time", 1)],
            id="a timer that is asked last stops between no accumulated batches",
        ),
        pytest.param(
            Plan(precision="bf16-true", accumulate=2, epochs=2),
            [Stop("kill in validation", 2), Stop("signal", 8)],
            id="in bfloat16",
        ),
        pytest.param(
            Plan(interval=4, every=None, epochs=-1, max_steps=13),
            [Stop("steps", 1), Stop("signal", 11), Stop("limit", 2), Stop("limit", 3)],
            id="the last step was that of a limit",
        ),
    ],
)
def test_a_run_goes_on_exactly_where_it_once_did_not(plan, stops):
    continues_exactly(plan, stops)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A job of SLURM of one process, with a stand-in for `scontrol` that notes what is asked."""
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    tool, asked = tmp_path / "scontrol", tmp_path / "asked"
    tool.write_text(f'#!/bin/sh\necho "$*" >> {asked}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return asked


@pytest.mark.parametrize("kind", IN_VALIDATION)
@pytest.mark.parametrize("at", [1, 4, 5])
def test_signals_in_a_validation_stop_it_and_lose_nothing(kind, at, slurm, tmp_path):
    """At its first batch, at its last, and at the first of an epoch's last validation."""
    plan, folder = Plan(epochs=2, interval=2), tmp_path / "run"
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    if kind.startswith("SIGTERM and"):  # SLURM sends SIGTERM to all of a job's processes
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        train(folder, plan, Stop(kind, at))
    finally:
        for number, handler in zip(
            (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), before, strict=True
        ):
            signal.signal(number, handler)
    assert load(folder / LAST)["global_step"] < plan.total
    requeued = slurm.read_text().splitlines() if slurm.exists() else []
    assert requeued == (["requeue 7"] if "SLURM" in kind else [])
    train(folder, plan)
    assert list(differences(result(folder), uninterrupted(plan))) == []


def test_a_job_without_scontrol_is_saved_all_the_same(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    plan, folder = Plan(epochs=2, interval=2), tmp_path / "run"
    train(folder, plan, Stop("SIGUSR1 of SLURM in validation", 2))
    assert load(folder / LAST)["global_step"] < plan.total
    train(folder, plan)
    assert list(differences(result(folder), uninterrupted(plan))) == []


CHANGES = {
    "images per step 2 (now 3)": {"data": {"batch_size": 3}},
    "seed 1 (now 2)": {"seed": 2},
}


@pytest.mark.parametrize(("said", "changes"), CHANGES.items(), ids=["batch size", "seed"])
def test_another_order_of_images_is_refused_unless_it_is_allowed(tmp_path, said, changes):
    plan = Plan(epochs=2)
    train(tmp_path, plan, Stop("steps", 3))
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        train(tmp_path, plan, **copy.deepcopy(changes))
    assert "--allow_changes true" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    before = load(tmp_path / LAST)["global_step"]
    train(tmp_path, plan, allow_changes=True, **copy.deepcopy(changes))
    position = load(tmp_path / LAST)["position"]
    assert before == 3
    assert (position["epoch"], position["ended"]) == (1, True)
    # Of the 11 images of an epoch 6 were trained; what does not fill a batch is left out.
    batch = changes.get("data", {}).get("batch_size", 2)
    assert position["step"] == 3 + (11 - 6) // batch + 11 // batch


def test_another_order_is_refused_between_epochs_too(tmp_path):
    plan = Plan(epochs=2)
    train(tmp_path, plan, Stop("epochs", 1))
    with pytest.raises(InputError, match="seed"):
        train(tmp_path, plan, seed=2)


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
@pytest.mark.timeout(7200)  # five minutes on an idle core
@given(plan=st.sampled_from(PLANS), stops=st.lists(STOPS, min_size=1, max_size=4))
@settings(max_examples=250, **DRAWN)
def test_two_hundred_and_fifty_runs_that_were_stopped_end_as_those_that_were_not(plan, stops):
    assume(can_be_exact(plan, stops))
    continues_exactly(plan, stops)


@pytest.mark.slow
def test_two_processes_go_on_exactly(tmp_path):
    script = Path(__file__).with_name("two_processes_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], text=True, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines == [f"RESULT {number} ok" for number in range(len(lines))]
    assert len(lines) == 5
