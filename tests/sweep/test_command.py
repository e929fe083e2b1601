"""The words of `lightning sweep`, and its answers to wrong input."""

import shlex
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.sweep import arguments, command, live
from lightning_overlock.sweep.arguments import ACTIONS
from lightning_overlock.sweep.live import Active, clock
from lightning_overlock.sweep.read import read, shipped
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

NAME = "overlock_components"


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "sweep: the following arguments are required: ACTION"),
        (["runn", NAME], "Did you mean 'run'?"),
        (["run", NAME, "--worker", "2"], "Did you mean '--workers'?"),
        (["run", NAME, "--workers", "0"], "--workers 0: expected 1 or more."),
        (["run", NAME, "--workers", "x"], "sweep run: argument --workers: invalid int value: 'x'"),
        (["run", NAME, "--retries=-1"], "--retries -1: expected 0 or more."),
        (["run", NAME, "--name", "a/b"], "--name 'a/b': expected a plain folder name"),
        (["run", NAME, "--name", "x" * 241], "…: found 241 bytes, expected at most 240."),
        (["plan", NAME, "--name", "\N{FOX FACE}" * 61], "found 244 bytes, expected at most 240."),
        (["table", NAME, "--name", " x"], "expected a name on one line, without blanks"),
        (["status", NAME, "--name", "a\nb"], "--name 'a\\nb': expected a name on one line"),
        (["status", "overlock_component"], "Did you mean 'overlock_components'?"),
        (["status", NAME, "--profile", "min"], "Did you mean 'mini'?"),
        (["status", NAME], f"runs/{NAME}-mini: no sweep has been run here."),
        (["worker", NAME], f"runs/{NAME}-mini: no sweep has been run here."),
        (["run", NAME, "--seeds", "6,x"], "--seeds 6,x: 'x' is no seed to add."),
        (
            ["run", NAME, "--only", "ful"],
            "--only ful: 'ful' is no row to run. Did you mean 'full'?",
        ),
        (["report", "nothing"], "runs/nothing: no sweep has been run here."),
        (["best"], "sweep best: the following arguments are required: STUDY"),
        (["compare", "a"], "sweep compare: the following arguments are required: STUDY"),
        (["compare", "a", "b"], "runs/a: no sweep has been run here."),
        (["rm", "a", "b"], "runs/a: no sweep has been run here."),
        (["retry", "a", "1"], "runs/a: no sweep has been run here."),
        (["dashboard", "a"], "runs/a: no sweep has been run here."),
        (["table", NAME, "--workers", "2"], "unrecognized arguments: --workers"),
        (["table", NAME, "--storage", "x.db"], "--storage x.db: this is no database URL."),
        (["status", NAME, "--storage", "sqlite:///x.db"], "no study of this name has been started"),
    ],
)
def test_a_wrong_command_is_answered_in_three_lines(arguments, expected, capsys):
    assert main(["sweep", *arguments]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert len(captured.err.strip().splitlines()) <= 3
    assert not Path("runs").exists()


def test_help_names_the_actions_an_example_and_the_shipped_sweeps(capsys):
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (*ACTIONS, *shipped(), "lightning sweep run overlock_components --workers 2"):
        assert word in text


@pytest.mark.parametrize("action", ACTIONS)
def test_help_of_an_action_has_an_example_that_the_parser_takes(action, capsys):
    assert main(["sweep", action, "--help"]) == 0
    text = capsys.readouterr().out
    (example,) = [line for line in text.splitlines() if line.startswith("  lightning sweep ")]
    assert arguments.parse(shlex.split(example)[2:]).action == action
    assert ("shipped sweeps:" in text) == (action in arguments.OF_FILES)


@pytest.mark.parametrize(
    ("typed", "workers", "allowed", "expected"),
    [
        (None, None, None, []),  # a trial sees what the command sees
        (None, 1, None, []),
        (None, 2, None, ["0", "1", "2", "3"]),
        ("1,3", None, None, ["1", "3"]),
        ("1,0", 2, "4,5,6,7", ["5", "4"]),  # numbers within a cluster's job
        (None, 2, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
    ],
)
def test_devices_are_those_that_the_command_may_use(typed, workers, allowed, expected, monkeypatch):
    count = len(allowed.split(",")) if allowed else 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allowed:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert command._devices(typed, workers) == expected


@pytest.mark.parametrize("typed", ["4", "0,0", "a", "", "-1"])
def test_devices_that_are_not_there_are_refused(typed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(InputError, match="is no GPU to use"):
        command._devices(typed, None)


def test_time_left_is_at_the_pace_of_the_epochs_trained_here(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    trial = Active("a-seed1", epochs=10)
    assert trial.seconds_left() is None
    trial.since, trial.begun_with = 100.0, 4  # continued after four epochs
    now[0] = 120.0
    trial.advance(6, 0.5)
    assert trial.seconds_left() == pytest.approx(40)  # four more at 10 s each
    now[0] = 125.0
    assert trial.seconds_left() == pytest.approx(35)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")]
)
def test_a_clock_reads_hours_minutes_seconds(seconds, text):
    assert clock(seconds) == text


def test_list_shows_shipped_sweeps_and_studies(capsys):
    Path("runs/mine-p").mkdir(parents=True)
    Path("runs/mine-p/study.db").touch()
    assert main(["sweep", "list"]) == 0
    out = capsys.readouterr().out
    assert "overlock_components    OverLoCK's components" in out
    assert "studies in runs: mine-p" in out


def test_seeds_are_added_to_the_file_s():
    sweep = read(NAME)
    assert command._with_seeds(sweep, "6,7").seeds == [*sweep.seeds, 6, 7]


@pytest.fixture
def study():
    """A study with a complete trial and one that failed in a way that repeats."""
    sweep = read(NAME)
    folder = Path(f"runs/{NAME}-mini")
    folder.mkdir(parents=True)
    found = Study(sweep, open_storage(f"sqlite:///{folder}/study.db"), folder.name, create=True)
    found.reconcile()
    claim = found.take(Request())
    found.finish(claim, TrialState.COMPLETE, {"value": 0.5, "command": "lightning fit x"}, 0.5)
    claim = found.take(Request())
    error = {"error": "the loss is nan (exit code 2)\nlast line", "repeats": True, "log": "b.log"}
    found.finish(claim, TrialState.FAIL, error)
    return found


def test_status_names_the_cause_the_log_and_what_to_do(study, capsys):
    assert main(["sweep", "status", NAME]) == 0
    out = capsys.readouterr().out
    assert "the loss is nan (exit code 2)" in out
    assert f"runs/{NAME}-mini/b.log" in out
    assert "--retry-failed" in out


def test_best_names_command_and_metric(study, capsys):
    assert main(["sweep", "best", NAME]) == 0
    out = capsys.readouterr().out
    assert "val/top1 (%) 50.00" in out
    assert "lightning fit x" in out


@pytest.mark.parametrize("action", ["status", "table"])
def test_what_the_study_was_not_run_with_is_refused(action, study, capsys):
    assert main(["sweep", action, NAME, "--set", "metric=val/loss"]) == 2
    assert "metric: found val/loss, but the study" in capsys.readouterr().err
    assert not Path(f"runs/{NAME}-mini/table.md").exists()


def test_status_of_a_finished_study_shows_every_result_under_its_whole_name(study, capsys):
    results = {"value": 0.25, "epochs": 3, "seconds": 61, "attempts": 1}
    while not study.is_complete():
        study.reconcile()
        while claim := study.take(Request()):
            study.finish(claim, TrialState.COMPLETE, results, 0.25)
    assert main(["sweep", "status", NAME]) == 0
    lines = capsys.readouterr().out.splitlines()
    sweep = read(NAME)
    shown = {words[0]: words[1:] for line in lines if (words := line.split())}
    for row in sweep.runnable:
        for seed in sweep.seeds:
            assert shown[f"{row}-seed{seed}"] == ["complete", "3", "0.25", "1:01", "1"]
    # One of the tuning trials failed in a way that repeats.
    assert lines[-1] == f"{len(study.states()) - 1} of {len(study.states())} complete, 1 failed"


def test_trials_with_trackers_are_not_forked():
    sweep = read(NAME, None, [])
    assert not command._has_loggers(sweep)
    assert command._has_loggers(read(NAME, None, ["logger=csv"]))
