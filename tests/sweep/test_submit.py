"""`lightning sweep submit`, with a stand-in for a SLURM cluster on the PATH."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from lightning_overlock.cli.main import main
from lightning_overlock.sweep import validate
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

NAME = "overlock_components"
RUNS = "runs"
SLURM = ["--slurm", "--gres=gpu:1 --time=8:00:00", "--array", "8"]

# Starts each task of the array in a session of its own, as a node does, and ends.
SBATCH = """\
#!/bin/bash
[ -z "$REFUSE" ] || { echo "sbatch: error: $REFUSE" >&2; exit 1; }
tasks=$(sed -n "s/^#SBATCH --array=0-//p" "$1")
for i in $(seq 0 "$tasks"); do
  SLURM_JOB_ID=$((100 + i)) SLURM_ARRAY_JOB_ID=100 SLURM_ARRAY_TASK_ID=$i \\
    setsid bash "$1" >>"$FOLDER/task-$i.log" 2>&1 & echo $! >>"$FOLDER/pids"
done
echo "Submitted batch job 100"
"""


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(folder / "sbatch", SBATCH)
    executable(folder / "scontrol", '#!/bin/bash\necho "$@" >>"$FOLDER/scontrol"\n')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def unchecked(monkeypatch):
    """Rows are built by other tests."""
    monkeypatch.setattr(validate, "validate", lambda *_: None)


def test_a_dry_run_prints_a_script_that_runs_workers_and_leaves_nothing(unchecked, capsys):
    words = ["--storage", "postgresql://me@host/sweeps", "--set", "seeds=[1, 2]", "--only", "full"]
    assert main(["sweep", "submit", NAME, *SLURM, *words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert not Path(RUNS).exists()
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0-7" in lines
    assert "#SBATCH --gres=gpu:1 --time=8:00:00" in lines
    assert lines.index("#SBATCH --gres=gpu:1 --time=8:00:00") == len(lines) - 2
    assert f"#SBATCH --output={Path.cwd()}/runs/{NAME}-mini/slurm-%A_%a.log" in lines
    assert "#SBATCH --signal=B:USR1@300" in lines
    start, *command = shlex.split(lines[-1])
    assert start == "exec"
    assert command[:5] == [sys.executable, "-m", "lightning_overlock", "sweep", "worker"]
    for option in (["--set", "seeds=[1, 2]"], ["--only", "full"], ["--name", f"{NAME}-mini"]):
        assert option == command[(at := command.index(option[0])) : at + 2]
    assert command[command.index("--storage") + 1] == "postgresql://me@host/sweeps"
    assert command[command.index("--runs") + 1] == f"{Path.cwd()}/runs"
    assert main(["sweep", "submit", NAME, "--slurm", "--gres=gpu:1", "--dry-run"]) == 0
    assert "#SBATCH --gres=gpu:1\n" in capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--array", "0"], "--array 0: expected the number of workers"),
        (["--slurm", "gpu"], "--slurm gpu: these are no options of sbatch."),
        (["--slurm", "--comment='a"], "No closing quotation"),
        (["--slurm", "--time=1\nrm -r x"], "these are no options of sbatch."),
        (["--storage", "postgresql://me:secret@host/x"], "PGPASSWORD and ~/.pgpass"),
        ([], "found no sbatch on the PATH"),
    ],
)
def test_what_cannot_be_submitted_is_refused_and_leaves_nothing(
    words, expected, unchecked, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["sweep", "submit", NAME, *words]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "secret" not in message
    assert len(message.strip().splitlines()) <= 3
    assert not Path(RUNS).exists()


def test_what_sbatch_says_is_passed_on(unchecked, cluster, capsys, monkeypatch):
    monkeypatch.setenv("REFUSE", "Batch job submission failed: Invalid partition name")
    assert main(["sweep", "submit", NAME]) == 2
    assert "Invalid partition name" in capsys.readouterr().err


def study_of(name):
    sweep = read(Path("mine.yaml"))
    return Study(sweep, open_storage(f"sqlite:///{RUNS}/{name}/study.db"), name)


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


SWEEP = """\
title: Submitted
metric: val/top1
baseline: a
rows:
  a: {label: A}
  b: {label: B, options: {model.mixup: 0.8}}
profiles:
  tiny:
    data: digits
    configs: [quickstart]
    seeds: [1]
    options:
      model.backbone: test_overlock
      data.batch_size: 8
      data.image_size: 32
      trainer.limit_train_batches: 2
      trainer.limit_val_batches: 1
      trainer.max_epochs: 400
      trainer.enable_model_summary: false
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_task_that_is_told_to_stop_saves_its_trial_and_hands_it_back(number, cluster, capsys):
    Path("mine.yaml").write_text(SWEEP)
    assert main(["sweep", "submit", "./mine.yaml", "--array", "2"]) == 0
    out = capsys.readouterr().out
    assert "Submitted batch job 100" in out
    assert "PostgreSQL" in out
    tasks = [int(word) for word in (cluster / "pids").read_text().split()]
    study = study_of("mine-tiny")
    wait_until(lambda: sum(len(t.intermediate_values) > 0 for t in study.trials()) == 2)
    for pid in tasks:
        os.kill(pid, number)
    wait_until(lambda: not any(is_running(pid) for pid in tasks))
    trials = study.trials()
    assert [t.state for t in trials] == [TrialState.FAIL] * 2
    assert not any("error" in t.user_attrs for t in trials)
    for row in "ab":
        log = Path(f"{RUNS}/mine-tiny/{row}-seed1.log").read_text()
        assert f"Saved {Path.cwd()}/runs/mine-tiny/{row}-seed1/checkpoints/last.ckpt" in log
    # At the end of the time a task puts itself into the queue again, unless it is cancelled.
    requeued = cluster / "scontrol"
    found = sorted(requeued.read_text().splitlines()) if requeued.exists() else []
    assert found == (["requeue 100_0", "requeue 100_1"] if number == signal.SIGUSR1 else [])
    assert study.take(Request()).earlier[0].number in {0, 1}
