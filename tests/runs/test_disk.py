"""Disks that are full and folders that cannot be written: told as what they are, nothing lost."""

import errno
import os
from pathlib import Path

import pytest
from runs.stops import Plan, Stop, differences, result, train
from shared import small_files

from lightning_overlock.cli import main as command
from lightning_overlock.errors import InputError
from lightning_overlock.runs.disk import replace_file
from lightning_overlock.runs.layout import BEST, CONFIG, LAST, METRICS
from lightning_overlock.runs.lock import claim_run_folder
from lightning_overlock.runs.metrics_file import read_curve, write_row


@pytest.mark.parametrize("size", [0, 999, 1000])
def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, size):
    path = tmp_path / "file"
    path.write_text("old")
    with small_files(size), pytest.raises(InputError) as error:
        replace_file(path, b"x" * 1001, "Make room.")
    assert str(error.value) == f"{path} cannot be written: File too large.\nMake room."
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_that_do_not_fit_leave_the_rows_that_are_there(tmp_path):
    write_row(tmp_path, {"stage": "fit", "epoch": 0, "step": 1})
    with small_files(30), pytest.raises(InputError, match=r"metrics\.csv cannot be written"):
        write_row(tmp_path, {"stage": "fit", "epoch": 1, "step": 2, "train/loss": 0.1})
    assert read_curve(tmp_path) == [{"epoch": 0, "step": 1}]


@pytest.mark.parametrize("parent", ["/proc/runs", "file", "/dev/null", "x" * 300])
def test_a_run_folder_that_cannot_be_made_is_told(tmp_path, parent):
    (tmp_path / "file").touch()
    folder = tmp_path / parent / "name"
    with pytest.raises(InputError) as error, claim_run_folder(folder, continued=False):
        raise AssertionError
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{folder} cannot be written: ")
    assert len(lines) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_input_error_after_an_epoch_deletes_nothing(tmp_path):
    """Without checkpoints the metrics are all that there is."""

    def run():
        with claim_run_folder(tmp_path / "run", continued=False):
            write_row(tmp_path / "run", {"stage": "fit", "epoch": 0, "step": 1})
            raise InputError("the loss is nan")

    with pytest.raises(InputError):
        run()
    assert read_curve(tmp_path / "run") == [{"epoch": 0, "step": 1}]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_disk_that_is_full_amid_a_save_loses_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    plan, whole, folder = Plan(epochs=2, batches=3), tmp_path / "whole", tmp_path / "run"
    train(whole, plan)
    train(folder, plan, Stop("epochs", 1))
    before = {name: (folder / name).read_bytes() for name in (LAST, BEST)}
    with small_files(2000), pytest.raises(InputError) as error:
        train(folder, plan)
    assert str(error.value).splitlines() == [
        f"{folder / LAST} cannot be written: File too large.",
        "Checkpoints already saved are good: make room, then continue with --ckpt_path last.",
    ]
    assert {name: (folder / name).read_bytes() for name in before} == before
    train(folder, plan)
    assert list(differences(result(folder), result(whole))) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_told_wherever_it_is_met(number, monkeypatch, capsys):
    def fail(arguments):
        raise OSError(number, os.strerror(number), "runs/a/predictions.csv")

    monkeypatch.setattr(command, "_run", fail)
    assert command.main(["predict"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == f"lightning: runs/a/predictions.csv cannot be written: {os.strerror(number)}."
    )
    assert len(lines) == 2


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(arguments):
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(command, "_run", fail)
    with pytest.raises(ConnectionResetError):
        command.main(["fit"])


def test_the_configuration_is_replaced_whole(tmp_path):
    from lightning_overlock.runs.config import write_config

    write_config(tmp_path, "a: 1\n")
    with small_files(3), pytest.raises(InputError, match=r"config\.yaml cannot be written"):
        write_config(tmp_path, "a: 2222\n")
    assert (tmp_path / CONFIG).read_text() == "a: 1\n"
    assert not (tmp_path / METRICS).exists()
    assert not list(Path(tmp_path).glob("*.part"))
