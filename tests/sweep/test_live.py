"""What is shown while a sweep runs: the grid, the trials in hand, the time that is left."""

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lightning_overlock.sweep import live
from lightning_overlock.sweep.live import Active, View, sparkline, total_left
from lightning_overlock.sweep.read import read

FILE = """\
metric: val/top1
baseline: b
rows: {a: {label: "[red]gate[/red]", options: {model.lr: 1}}, b: {}}
profiles: {p: {configs: [quickstart], seeds: [1, 2, 3]}}
"""


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(FILE)
    return read(str(tmp_path / "mine.yaml"))


def trial(state, **attributes):
    value = 0.5 if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs=attributes)


@pytest.fixture
def states():
    return {
        "a-seed1": trial(TrialState.COMPLETE, seconds=100.0),
        "a-seed2": trial(TrialState.FAIL),
        "a-seed3": trial(TrialState.RUNNING),
        "b-seed1": trial(TrialState.COMPLETE, seconds=140.0),
        "b-seed2": trial(TrialState.WAITING),
        "b-seed3": None,
    }


@pytest.fixture
def active(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    found = Active("a-seed3", epochs=4)
    found.since = 0.0
    for epoch, value in enumerate((0.2, 0.4, 0.3), 1):
        now[0] = 40.0 * epoch
        found.advance(epoch, value)
    return found


def test_rows_and_seeds_are_a_grid_and_trials_in_hand_are_below(sweep, states, active):
    console = Console(width=80, color_system=None)
    view = View("mine-p", sweep, 1)
    with console.capture() as captured:
        console.print(view.picture([active], "2 of 6 complete", states))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    # In hand 40 s; waiting two trials, each at the mean of 100, 140 and 160 s
    assert lines[0] == "mine-p: 2 of 6 complete, about 5:07 left"
    assert lines[1].split("  ") == ["[red]gate[/red]", "█x▶"]
    assert lines[2].split() == ["b", "█··"]
    assert lines[4].split() == ["a-seed3", "3/4", "0.3", "▁█▄", "0:40"]


def test_the_time_left_is_shared_among_workers_and_no_less_than_one_trial_s(sweep, states, active):
    mean = (100 + 140 + 160) / 3
    assert total_left(sweep, 1, [active], states) == pytest.approx(40 + 2 * mean)
    assert total_left(sweep, 2, [active], states) == pytest.approx((40 + 2 * mean) / 2)
    assert total_left(sweep, 100, [active], states) == pytest.approx(40)
    assert total_left(sweep, 1, [], {"a-seed1": None}) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([0.0, 7.0, 3.0], "▁█▄"),
        ([float("nan"), 0.0, 1.0], "▁█"),
        (list(range(20)), "▁▂▂▃▄▄▅▅▆▇▇█"),
    ],
)
def test_a_sparkline_has_the_last_values_between_their_ends(values, expected):
    assert sparkline(values) == expected


def test_nothing_but_lines_goes_into_a_pipe(sweep, states, active, capsys):
    with View("mine-p", sweep, 1) as view:
        view.refresh([active], "2 of 6 complete", states)
        view.say("a-seed3  epoch 3/4")
    assert capsys.readouterr().out == "a-seed3  epoch 3/4\n"
