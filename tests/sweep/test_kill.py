"""Runners and trials that are killed while real trainings run."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sweep.killed_runner import NAME, sweep_of, write_checkpoint

from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.results import results as measured
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.table import sheet

SWEEP = """\
title: Killed
profile: tiny
metric: val/top1
baseline: a
columns: [metric, difference]
rows:
  a: {label: A}
  b: {label: B, options: {model.backbone_args.drop_path_rate: 0.3, model.mixup: 0.8}}
profiles:
  tiny:
    data: digits
    configs: [quickstart]
    seeds: [1, 2]
    options:
      model.backbone: test_overlock
      data.batch_size: 8
      data.image_size: 32
      trainer.limit_train_batches: 3
      trainer.limit_val_batches: 8
      trainer.max_epochs: 3
      trainer.log_every_n_steps: 1
      trainer.enable_model_summary: false
"""


def start(*arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_overlock", "sweep", *arguments],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments):
    """Run to the end."""
    process = start(*arguments)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    return out


def results(runs):
    """Per row and seed: best, its epoch, and the whole curve less what depends on the clock."""
    sweep = read(Path("killed.yaml"))
    study = Study(sweep, open_storage(f"sqlite:///{runs}/killed-tiny/study.db"), "killed-tiny")
    complete = [trial for trial in study.trials() if trial.state == TrialState.COMPLETE]
    found = {}
    for trial in complete:
        key = (trial.user_attrs["row"], trial.user_attrs["seed"])
        assert key not in found
        with (runs / "killed-tiny" / trial.user_attrs["folder"] / "metrics.csv").open() as file:
            curve = [
                {name: v for name, v in row.items() if "per_second" not in name}
                for row in csv.DictReader(file)
            ]
        kept = ("value", "epoch", "checkpoint", "epochs", "config_hash")
        found[key] = ({name: trial.user_attrs[name] for name in kept}, curve)
    return found, study.trials()


def left_over(runs):
    """The trainings that still write below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"OVERLOCK_RUNS={runs}".encode() in entry.read_bytes().split(b"\0"):
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_runners_killed_at_random_moments_end_in_the_table_of_an_undisturbed_run(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("killed.yaml").write_text(SWEEP)
    run("run", "./killed.yaml", "--runs", "quiet", "--workers", "2")
    draw = random.Random(0)
    for _ in range(5):
        runner = start("run", "./killed.yaml", "--runs", "killed", "--workers", "2")
        # A runner that imports has nothing to lose; each trial takes seconds to start and to train.
        while not left_over("killed/killed-tiny") and runner.poll() is None:
            time.sleep(0.1)
        time.sleep(draw.uniform(0.5, 10))
        runner.send_signal(signal.SIGKILL)
        runner.communicate()
        end = time.monotonic() + 20
        while left_over("killed/killed-tiny"):  # they die with it
            assert time.monotonic() < end
            time.sleep(0.05)
    run("run", "./killed.yaml", "--runs", "killed", "--workers", "2")
    expected, _ = results(Path("quiet"))
    found, trials = results(Path("killed"))
    assert len(expected) == 4
    assert found == expected
    # Being killed is not the trials' fault.
    assert not any("error" in trial.user_attrs for trial in trials)
    assert any(trial.state == TrialState.FAIL for trial in trials)
    tables = [Path(f"{name}/killed-tiny/table.csv").read_text() for name in ("quiet", "killed")]
    assert strip(tables[0]) == strip(tables[1])


def strip(table):
    """A table's rows without what was measured by the clock."""
    clocked = ("seconds", "images_per_second", "date", "command")
    rows = csv.DictReader(table.splitlines())
    return [{k: v for k, v in row.items() if k and not k.startswith(clocked)} for row in rows]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_trial_is_continued_and_ctrl_c_stops_cleanly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("killed.yaml").write_text(SWEEP)
    one = ("--set", "rows=[a]", "--set", "seeds=[1]", "--set", "trainer.max_epochs=30")
    runner = start("run", "./killed.yaml", "--runs", "runs", *one)
    lines = []
    for line in runner.stdout:
        lines.append(line)
        if "epoch 2/30" in line and not any("failed" in text for text in lines):
            # The whole trial, watchdog and all.
            for pid in left_over("runs/killed-tiny"):
                os.kill(int(pid), signal.SIGKILL)
        if sum("started" in text for text in lines) == 2 and "epoch" in line:
            break
    runner.send_signal(signal.SIGINT)
    rest, _ = runner.communicate(timeout=300)
    assert runner.returncode == 130, rest
    assert "Traceback" not in rest
    assert not left_over("runs/killed-tiny")
    assert any("failed: " in line for line in lines)
    status = run_status(*one)
    assert "a-seed1" in status
    log = Path("runs/killed-tiny/a-seed1.log").read_text()
    assert "Restored all states from the checkpoint" in log
    assert "Stopping after this step to save it" in log


def run_status(*arguments):
    process = start("status", "./killed.yaml", "--runs", "runs", *arguments)
    return process.communicate(timeout=300)[0]


# Trials that train nothing, and so many kills


def started(role, url, settings, folder):
    # By -c: multiprocessing would import any other main module in every process that it forks.
    words = [role, url, json.dumps(settings), str(folder)]
    code = "import sys; from sweep.killed_runner import main; main(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def table_of(url, settings, folder):
    """The table's rows without what was measured by the clock, and all trials."""
    storage = open_storage(url)
    study = Study(sweep_of(settings), storage, NAME)
    found = strip(sheet(measured(study.optuna, study.sweep, folder)).csv())
    trials = study.trials()
    storage.remove_session()
    storage.engine.dispose()
    return found, trials


def disturb(kills, url, settings, folder, draw):
    """Kill a runner, a worker, or a process of a trial so many times."""
    running = {role: started(role, url, settings, folder) for role in ("run", "worker")}
    for _ in range(kills):
        time.sleep(draw.uniform(0, 0.6))
        while not (trials := left_over(str(folder))):  # nothing to lose yet
            assert running["run"].poll() is None, "all is done already"
            time.sleep(0.02)
        role = draw.choice(["run", "worker", "trial", "trial"])
        if role == "trial":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(draw.choice(trials)), signal.SIGKILL)
            continue
        running[role].send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]))
        running[role].wait()
        running[role] = started(role, url, settings, folder)
    running["worker"].wait()
    if running["run"].wait() != 0:  # a signal asked it to stop
        assert started("run", url, settings, folder).wait() == 0


KILLS = [
    pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
]


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(("database", "warm"), [("file", False), ("file", True), ("server", True)])
def test_however_often_something_is_killed_the_table_is_the_undisturbed_one(
    kills, database, warm, tmp_path, monkeypatch, request
):
    monkeypatch.chdir(tmp_path)
    # More to train than can be done between so many kills.
    settings = {"epochs": max(6, kills // 4), "warm": warm}
    folders = {name: tmp_path / name for name in ("quiet", "killed")}
    for folder in folders.values():
        folder.mkdir()
    for epoch in range(settings["epochs"]):
        write_checkpoint(epoch)
    monkeypatch.setenv("FAKE_CHECKPOINTS", str(tmp_path))
    url = f"sqlite:///{folders['killed']}/study.db"
    if database == "server":
        url = request.getfixturevalue("server")
    quiet = f"sqlite:///{folders['quiet']}/study.db"
    assert started("run", quiet, settings, folders["quiet"]).wait() == 0
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    disturb(kills, url, settings, folders["killed"], random.Random(kills))
    expected, undisturbed = table_of(quiet, settings, folders["quiet"])
    found, trials = table_of(url, settings, folders["killed"])
    assert found == expected
    assert len(undisturbed) == 14  # two rows: two points of the grid and five seeds each
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 14
    values = {trial.user_attrs["folder"]: trial.value for trial in undisturbed}
    assert {trial.user_attrs["folder"]: trial.value for trial in complete} == values
    end = time.monotonic() + 60
    while left_over(str(folders["killed"])):
        assert time.monotonic() < end
        time.sleep(0.05)
