"""The run folder: names, lock and what is moved where."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_overlock.errors import InputError
from lightning_overlock.runs.layout import last_checkpoint, run_folder, run_of
from lightning_overlock.runs.lock import claim_run_folder

pytestmark = pytest.mark.usefixtures("workplace")


def test_the_environment_moves_runs(monkeypatch):
    assert run_folder("a") == Path("runs/a")
    monkeypatch.setenv("OVERLOCK_RUNS", "/data/runs")
    assert run_folder("a") == Path("/data/runs/a")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a"])
def test_a_name_is_no_path(name):
    with pytest.raises(InputError, match=r"expected a plain folder name"):
        run_folder(name)


def test_last_names_the_runs_there_are():
    for name in ("first", "second"):
        file = Path("runs", name, "checkpoints/last.ckpt")
        file.parent.mkdir(parents=True)
        file.touch()
    assert last_checkpoint("first") == Path("runs/first/checkpoints/last.ckpt")
    with pytest.raises(InputError) as error:
        last_checkpoint("frist")
    assert str(error.value).splitlines() == [
        "--ckpt_path last: the run 'frist' has no runs/frist/checkpoints/last.ckpt. "
        "Did you mean 'first'?",
        "Start it without --ckpt_path, or name another run with --name. "
        "Runs that can be continued: first, second.",
    ]


def test_a_checkpoint_knows_its_run_only_inside_the_runs(tmp_path):
    assert run_of(Path("runs/a/checkpoints/best.ckpt")) == "a"
    assert run_of(tmp_path / "runs/a/checkpoints/best.ckpt") == "a"
    assert run_of(Path("elsewhere/a/checkpoints/best.ckpt")) is None
    assert run_of(Path("/best.ckpt")) is None


def test_another_process_cannot_hold_the_same_run():
    program = (
        "import fcntl, sys\nfile = open('runs/a/.lock')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/.lock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=r"^runs/a is in use"),
            claim_run_folder(Path("runs/a"), True),
        ):
            pass
        other.communicate()
    with claim_run_folder(Path("runs/a"), True):  # free again with the end of the process
        pass


def test_a_continued_run_stays_where_it_is():
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/metrics.csv").write_text("1")
    with claim_run_folder(Path("runs/a"), continued=True):
        pass
    assert Path("runs/a/metrics.csv").read_text() == "1"


def test_a_crash_keeps_both_runs():
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/metrics.csv").write_text("old")
    with contextlib.suppress(ZeroDivisionError), claim_run_folder(Path("runs/a"), continued=False):
        Path("runs/a/config.yaml").write_text("new")
        _ = 1 / 0
    assert Path("runs/a.1/metrics.csv").read_text() == "old"
    assert Path("runs/a/config.yaml").read_text() == "new"


def test_only_the_first_process_touches_the_folder(monkeypatch):
    monkeypatch.setattr("lightning_overlock.runs.lock.is_rank_zero", lambda: False)
    with claim_run_folder(Path("runs/a"), continued=False):
        pass
    assert not Path("runs").exists()
