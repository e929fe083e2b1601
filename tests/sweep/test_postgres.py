"""Two runners at once on a real PostgreSQL server: `server` of conftest.py."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from sweep.fake_fit import value

from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study

ROOT = Path(__file__).parents[2]
RUNNER = """
import sys
from pathlib import Path

sys.path[:0] = {paths!r}
from lightning_overlock.sweep import process, runner
from sweep.test_runner import sweep_of
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study

process.COMMAND = [sys.executable, "-S", {fake!r}]
sweep = sweep_of(rows={{"a": {{}}, "b": {{"model.x": 1}}}}, seeds=range(4),
                 options={{"fake.seconds": 0.2}})
study = Study(sweep, open_storage(sys.argv[1]), "s-p", create=True)
study.reconcile()
folder = Path(sys.argv[2])
folder.mkdir()
runner.Runner(sweep, study.storage, "s-p", folder, workers=2).run()
"""


@contextmanager
def opened(server):
    """The server's storage, whose connections are closed at the end."""
    storage = open_storage(server)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.slow
def test_two_runners_share_one_sweep(server, tmp_path):
    """They start at the same time on an empty database, each with a folder of its own."""
    from sweep.test_runner import sweep_of

    paths = [str(ROOT / "tests"), str(ROOT / "tests" / "sweep")]
    fake = Path(__file__).with_name("fake_fit.py")
    checkpoints = tmp_path / "fakes"
    checkpoints.mkdir()
    for epoch in range(3):
        torch.save({"epoch": epoch, "global_step": epoch + 1}, checkpoints / f"{epoch}.ckpt")
    code = RUNNER.format(paths=paths, fake=str(fake))
    environment = os.environ | {"FAKE_CHECKPOINTS": str(checkpoints)}
    runners = [
        subprocess.Popen(
            [sys.executable, "-c", code, server, tmp_path / name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for runner in runners:
        _, errors = runner.communicate(timeout=900)
        assert runner.returncode == 0, errors
    sweep = sweep_of(seeds=range(4))
    with opened(server) as storage:
        trials = Study(sweep, storage, "s-p").trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    found = {(trial.user_attrs["row"], trial.user_attrs["seed"]): trial.value for trial in complete}
    assert len(trials) == len(complete) == len(found) == 8
    for (row, seed), metric in found.items():
        assert metric == max(value(float(row == "b"), seed, epoch) for epoch in range(3))
    # Both had a share, and no trial was started twice.
    starts = [(tmp_path / name / "starts.txt").read_text().split("\n") for name in ("one", "two")]
    lines = sorted(line for part in starts for line in part if line)
    assert lines == sorted(f"{row}-seed{seed} new" for row in "ab" for seed in range(4))
    assert all(len(part) > 1 for part in starts)


@pytest.mark.slow
def test_a_runner_that_holds_the_queue_and_dies_frees_it(server):
    code = (
        "import sys, time\n"
        "from lightning_overlock.sweep.storage import open_storage, queue_lock\n"
        "with queue_lock(open_storage(sys.argv[1]), sys.argv[2]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    from sweep.test_runner import sweep_of

    with opened(server) as storage:
        study = Study(sweep_of(), storage, "held", create=True)
        holder = subprocess.Popen(
            [sys.executable, "-c", code, server, "held"], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.communicate()
        study.reconcile()
        assert study.optuna.user_attrs["sweep"]["name"] == "s"
