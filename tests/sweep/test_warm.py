"""Trials that are forked from a warm process, beside trials with an interpreter of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sweep.test_kill import SWEEP, left_over, results, run

from lightning_overlock.sweep import submit
from lightning_overlock.sweep.arguments import parse


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forked_trials_train_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("killed.yaml").write_text(SWEEP)
    few = ("--set", "trainer.max_epochs=2", "--set", "seeds=[1]")
    run("run", "./killed.yaml", "--runs", "fresh", "--fresh", *few)
    run("run", "./killed.yaml", "--runs", "warm", *few)
    expected, found = (results(Path(name))[0] for name in ("fresh", "warm"))
    assert len(expected) == 2
    assert found == expected
    for row in "ab":
        weights = [
            torch.load(f"{name}/killed-tiny/{row}-seed1/checkpoints/last.ckpt", weights_only=True)
            for name in ("fresh", "warm")
        ]
        states = [found["state_dict"] for found in weights]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# Runs one stand-in in the place of a trial, prints its exit code, and whether it was forked.
ONE = """
import json, os, sys, time
from pathlib import Path
from lightning_overlock.sweep import process, warm
process.COMMAND = [sys.executable, "-m", "stand_in"]
warm.PRELOAD = ["stand_in", "lightning_overlock.sweep.warm"]
environment = process.environment(Path("runs").absolute(), 1, None)
with warm.warmed_up(environment) as ready:
    ready.wait()
    words = json.loads(sys.argv[1])
    one = process.Process(words, environment | json.loads(sys.argv[2]), Path("log"), warm=True)
    if "interrupt" in words:
        while not (Path("log").is_file() and "ready" in Path("log").read_text()):
            time.sleep(0.02)
        one.interrupt()
    if "wait" in words:
        print("started", flush=True)
    print(one.wait(None), flush=True)
"""
# Three sweeps, one after the other, in one process.
NEXT = """
import sys
from pathlib import Path
from lightning_overlock.sweep import process, warm
process.COMMAND = [sys.executable, "-m", "stand_in"]
warm.PRELOAD = ["stand_in", "lightning_overlock.sweep.warm"]
for folder, threads in (("first", 1), ("second", 1), ("third", 2)):
    environment = process.environment(Path(folder).absolute(), threads, None)
    with warm.warmed_up(environment) as ready:
        ready.wait()
        print(process.Process(["x"], environment, Path("log"), warm=True).wait(None))
"""
STAND_IN = """
import os, signal, sys, time
import atexit
if __name__ == "__main__":
    atexit.register(print, "at exit")
    print(sys.argv[1:], os.getcwd(), os.environ.get("OWN"), flush=True)
    print("forked" if "multiprocessing.forkserver" in sys.modules else "new", flush=True)
    def saved(*_):
        print("saved", flush=True)
        sys.exit(130)
    signal.signal(signal.SIGINT, saved)
    print("ready", flush=True)
    if "wait" in sys.argv or "interrupt" in sys.argv:
        time.sleep(600)
    if "raise" in sys.argv:
        raise ValueError("too deep")
    if "kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(7)
"""


def one(words, environment=None):
    Path("stand_in.py").write_text(STAND_IN)
    Path("runs").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", ONE, json.dumps(words), json.dumps(environment or {})],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )


@pytest.mark.parametrize(
    ("words", "code", "last"),
    [
        (["a", "b c"], 7, "at exit"),
        (["raise"], 1, "ValueError: too deep"),
        (["kill"], 137, "ready"),
        (["interrupt"], 130, "at exit"),
    ],
)
def test_a_forked_trial_ends_as_a_process_of_its_own(words, code, last, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = one(words).communicate(timeout=300)
    assert out.split() == [str(code)]
    lines = Path("log").read_text().splitlines()
    assert lines[0] == f"{words} {tmp_path} None"
    assert "forked" in lines
    assert last in lines[-1]
    assert ("saved" in lines) == ("interrupt" in words)


def test_a_trial_with_another_environment_than_the_warm_process_gets_an_interpreter(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out, _ = one(["x"], {"OWN": "1"}).communicate(timeout=300)
    assert out.split() == ["7"]
    lines = Path("log").read_text().splitlines()
    assert lines[0] == f"['x'] {tmp_path} 1"
    assert "new" in lines


def test_the_next_sweep_of_a_process_has_its_own_runs_folder_and_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("stand_in.py").write_text(STAND_IN.replace('"OWN"', '"OVERLOCK_RUNS"'))
    found = subprocess.run(
        [sys.executable, "-c", NEXT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=300,
    )
    assert found.stdout.split() == ["7"] * 3
    lines = Path("log").read_text().splitlines()
    runs = [line.rpartition(" ")[2] for line in lines if line.startswith("['x']")]
    assert runs == [str(tmp_path / name) for name in ("first", "second", "third")]
    # The third sweep's libraries are to be imported with other threads.
    assert [line for line in lines if line in {"forked", "new"}] == ["forked", "forked", "new"]


def test_a_forked_trial_dies_with_its_runner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = one(["wait"])
    assert runner.stdout.readline() == "started\n"
    assert left_over(tmp_path / "runs")
    runner.send_signal(signal.SIGKILL)
    runner.communicate()
    end = time.monotonic() + 60
    while left_over(tmp_path / "runs"):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_submitted_workers_fork_as_the_command_does():
    for words, expected in ([], False), (["--fresh"], True):
        args = parse(["submit", "s", *words])
        script = submit.job_script(args, "s-p", Path("runs/s-p"), 0)
        assert ("--fresh" in script) == expected


@pytest.mark.slow
def test_the_warm_process_ends_in_silence():
    words = [sys.executable, "-c", "import lightning_overlock.sweep.warm_imports"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == "", "libraries count what is left, also what is frozen"
