"""A trial's process, which must not outlive its runner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_overlock.sweep import process as process_module
from lightning_overlock.sweep import watchdog
from lightning_overlock.sweep.process import Process, environment

# Starts a child of its own, as a multi-GPU training does, tells both pids and waits.
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def exists(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Returns a process of some Python code in the place of a trial."""
    processes = []

    def start(code):
        monkeypatch.setattr(process_module, "COMMAND", [sys.executable, "-c", code])
        processes.append(Process([], dict(os.environ), tmp_path / "log"))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


def pids(log):
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 2)
    return [int(word) for word in log.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_trial_dies_with_its_runner_whatever_kills_it(number, tmp_path):
    asker = (
        "import subprocess, sys, time\n"
        f"command = [sys.executable, '-I', {watchdog.__file__!r}]\n"
        f"command += [sys.executable, '-c', {FAMILY!r}]\n"
        "subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True,\n"
        f"                 stdout=open({str(tmp_path / 'log')!r}, 'w'))\n"
        "time.sleep(600)"
    )
    runner = subprocess.Popen([sys.executable, "-c", asker])
    family = pids(tmp_path / "log")
    assert all(exists(pid) for pid in family)
    runner.send_signal(number)
    runner.wait()
    wait_until(lambda: not any(exists(pid) for pid in family))


def test_killing_a_trial_kills_its_children(command, tmp_path):
    process = command(FAMILY)
    family = pids(tmp_path / "log")
    process.kill()
    wait_until(lambda: not any(exists(pid) for pid in family))


def test_children_that_a_crashed_trial_leaves_are_ended(command, tmp_path):
    process = command(FAMILY.replace("time.sleep(600)\n", "sys.exit(3)\n"))
    family = pids(tmp_path / "log")
    assert process.wait(20) == 3
    wait_until(lambda: not any(exists(pid) for pid in family))


def test_an_interrupt_reaches_the_command_alone(command, tmp_path):
    """As Ctrl-C it would end data loading workers before the state is saved."""
    process = command(
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'])\n"
        "signal.signal(signal.SIGINT, lambda *_: print('saved', child.wait(), flush=True))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    wait_until(lambda: "ready" in (tmp_path / "log").read_text())
    process.interrupt()
    wait_until(lambda: "saved 0" in (tmp_path / "log").read_text())


@pytest.mark.parametrize(
    ("code", "expected"),
    [("", 0), ("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_code_is_told(code, expected, command):
    assert command(code).wait(20) == expected


def test_last_lines_are_those_of_this_start(command, tmp_path):
    (tmp_path / "log").write_text("of an earlier start\n")
    process = command("for i in range(40): print('line', i); print()")
    assert process.wait(20) == 0
    assert process.last_lines().splitlines() == [f"line {i}" for i in range(28, 40)]
    assert "earlier" in (tmp_path / "log").read_text()


def test_a_trial_is_no_task_of_the_runners_own_cluster_job(monkeypatch, tmp_path):
    for name in ("SLURM_PROCID", "SLURM_RESTART_COUNT", "LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = environment(tmp_path, threads=2, devices="1")
    assert not {"SLURM_PROCID", "SLURM_RESTART_COUNT", "LOCAL_RANK", "RANK"} & found.keys()
    assert "PL_GLOBAL_SEED" not in found
    assert found["CUDA_VISIBLE_DEVICES"] == "1"
    assert found["OVERLOCK_RUNS"] == str(tmp_path)
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["PATH"] == os.environ["PATH"]
    assert environment(tmp_path, 1, None)["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("raise ValueError('too deep')", "ValueError: too deep (exit code 1)"),
        (
            "import sys; print('lightning: the loss is nan at step 3\\ntry a lower rate'); "
            "sys.exit(2)",
            "the loss is nan at step 3 (exit code 2)",
        ),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n"
            "    import atexit; atexit.register(print, 'bye')\n"
            "    raise OSError(28, 'full') from e",
            "OSError: [Errno 28] full (exit code 1)",
        ),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, as for want of memory"),
        ("import sys; sys.exit(3)", "it printed nothing (exit code 3)"),
    ],
)
def test_a_failure_names_its_cause_first(code, first, command):
    process = command(code)
    assert process.failure(process.wait(20)).splitlines()[0].startswith(first)
