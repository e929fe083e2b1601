"""The words of `lightning sweep`, and its answers to wrong input."""

from pathlib import Path

import pytest
import torch

from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.sweep import command, live
from lightning_overlock.sweep.live import Active, clock

NAME = "overlock_components"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "sweep: the following arguments are required"),
        (["rum", NAME], "Did you mean 'run'?"),
        (["run", NAME, "--worker", "2"], "Did you mean '--workers'?"),
        (["run", NAME, "--workers", "0"], "--workers 0: expected 1 or more."),
        (["run", NAME, "--workers", "x"], "sweep: argument --workers: invalid int value: 'x'"),
        (["run", NAME, "--retries=-1"], "--retries -1: expected 0 or more."),
        (["run", NAME, "--name", "a/b"], "--name 'a/b': expected a plain name"),
        (["status", "overlock_component"], "Did you mean 'overlock_components'?"),
        (["status", NAME, "--profile", "min"], "Did you mean 'mini'?"),
        (["status", NAME], f"runs/{NAME}-mini: no sweep has been run here."),
        (["worker", NAME], f"runs/{NAME}-mini: no sweep has been run here."),
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


def test_help_names_the_actions_and_options(capsys):
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("run", "worker", "status", "table", "--profile", "--set", "--storage", "--runs"):
        assert word in text
    for word in ("--workers", "--devices", "--retries", "--name"):
        assert word in text


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
