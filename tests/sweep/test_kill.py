"""Runners and trials that are killed while real trainings run."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from sweep.fake_fit import value

from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study

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

RUNNER = """
import sys
from pathlib import Path

sys.path[:0] = {paths!r}
from lightning_overlock.sweep import process, runner
from lightning_overlock.sweep.parts import Row, Tune
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

process.COMMAND = [sys.executable, "-S", {fake!r}]
runner.POLL_SECONDS = runner.QUEUE_SECONDS = 0.05
runner.write_hparams = lambda *_: None  # it imports torch
sweep = Sweep(
    name="s", title="s", profile="p", configs=["quickstart"], metric="val/top1", baseline="a",
    options={{"trainer.max_epochs": 3, "fake.seconds": 0.3}}, seeds=list(range(5)),
    rows={{"a": Row(options={{"model.y": 1}}), "b": Row(options={{"model.y": 2}})}},
    tune=Tune(options={{"model.x": [1, 2]}}, seeds=[90]), path=Path("s.yaml"),
)
if __name__ == "__main__":
    study = Study(sweep, open_storage("sqlite:///runs/study.db"), "s-p", create=True)
    study.reconcile()
    runner.Runner(sweep, study.storage, "s-p", Path("runs").resolve(), workers=2,
                  request=Request(retries=1000)).run()
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [20, 100])
def test_however_often_runners_and_trials_are_killed_every_result_is_there_once(
    kills, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("fakes").mkdir()
    for epoch in range(3):
        torch.save({"epoch": epoch}, f"fakes/{epoch}.ckpt")
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    fake = str(Path(__file__).with_name("fake_fit.py"))
    Path("runner.py").write_text(RUNNER.format(paths=paths, fake=fake))
    environment = os.environ | {"FAKE_CHECKPOINTS": str(tmp_path / "fakes")}
    draw = random.Random(kills)

    def begin():
        return subprocess.Popen([sys.executable, "runner.py"], env=environment)

    runner, killed = begin(), 0
    while killed < kills:
        time.sleep(draw.uniform(0, 0.6))
        trials = left_over(str(tmp_path / "runs"))
        if runner.poll() == 0:
            break  # all is done already
        if not trials:
            continue  # nothing to lose yet
        if draw.random() < 0.3:
            runner.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
            runner.wait()
            runner = begin()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(draw.choice(trials)), signal.SIGKILL)
        killed += 1
    while runner.wait() != 0:  # it was asked to stop
        runner = begin()
    study = optuna.load_study(study_name="s-p", storage="sqlite:///runs/study.db")
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    found = Counter(t.user_attrs["folder"] for t in complete)
    assert set(found.values()) == {1}
    assert len(found) == 14  # two rows: two points of the grid and five seeds each
    assert killed > kills // 2
    for trial in complete:
        x = float(trial.user_attrs["options"]["model.x"])
        seed = trial.user_attrs["seed"]
        assert trial.value == max(value(x, seed, epoch) for epoch in range(3))
    assert not left_over(str(tmp_path / "runs"))
