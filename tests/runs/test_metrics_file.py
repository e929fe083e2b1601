"""The metrics file against rows written by hand."""

import csv
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lightning_overlock.runs.metrics_file import (
    ALL_OF_TRAINING,
    format_value,
    read_curve,
    write_row,
)
from lightning_overlock.runs.recording import MetricsFile


def trainer(epoch, step, fn="fit", amid=False, **metrics):
    metrics = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    progress = SimpleNamespace(
        current=SimpleNamespace(ready=0), total=SimpleNamespace(ready=step), is_last_batch=not amid
    )
    return SimpleNamespace(
        current_epoch=epoch,
        global_step=step,
        callback_metrics=metrics,
        is_global_zero=True,
        sanity_checking=False,
        is_last_batch=not amid,
        num_training_batches=1,
        check_val_every_n_epoch=1,
        val_check_batch=1,
        enable_validation=True,
        fit_loop=SimpleNamespace(
            total_batch_idx=step, epoch_loop=SimpleNamespace(batch_progress=progress)
        ),
        state=SimpleNamespace(fn=fn),
    )


def train(file, state, validated=True):
    if validated:
        file.on_validation_end(state, None)
    file.on_train_epoch_end(state, None)


def test_a_row_per_epoch_and_one_per_evaluation(tmp_path):
    folder = tmp_path / "run"
    file = MetricsFile(folder)
    train(file, trainer(0, 5, train_loss=2.0, val_top1=0.25))
    train(file, trainer(1, 10, train_loss=1.5, val_top1=0.5))
    other = MetricsFile(folder, epoch=1, step=10)
    other.on_validation_end(trainer(0, 0, fn="validate", val_top1=0.5), None)
    other.on_test_end(trainer(0, 0, fn="test", test_top1=0.75), None)
    assert (folder / "metrics.csv").read_text() == (
        "stage,epoch,step,train/loss,val/top1,test/top1\n"
        "fit,0,5,2,0.25,\n"
        "fit,1,10,1.5,0.5,\n"
        "validate,1,10,,0.5,\n"
        "test,1,10,,,0.75\n"
    )


def test_validations_amid_an_epoch_have_rows_of_their_own(tmp_path):
    file = MetricsFile(tmp_path)
    file.on_validation_end(trainer(0, 3, amid=True, lr=0.5, val_top1=0.25), None)
    train(file, trainer(0, 5, train_loss=2.0, lr=0.5, val_top1=0.5))
    # The training loss is the last epoch's until the next one ends.
    file.on_validation_end(trainer(1, 8, amid=True, train_loss=2.0, lr=0.5, val_top1=0.75), None)
    assert (tmp_path / "metrics.csv").read_text() == (
        "stage,epoch,step,lr,val/top1,train/loss\n"
        "fit/validate,0,3,0.5,0.25,\n"
        "fit,0,5,0.5,0.5,2\n"
        "fit/validate,1,8,0.5,0.75,\n"
    )
    assert [row["step"] for row in read_curve(tmp_path)] == [5]
    assert [row["step"] for row in read_curve(tmp_path, *ALL_OF_TRAINING)] == [3, 5, 8]


def test_a_continued_run_drops_the_rows_after_its_checkpoint_and_no_evaluation(tmp_path):
    file = MetricsFile(tmp_path)
    train(file, trainer(0, 1, train_loss=0.0))
    state = file.state_dict()
    train(file, trainer(1, 2, train_loss=1.0))
    MetricsFile(tmp_path, 1, 2).on_test_end(trainer(0, 0, fn="test", test_top1=0.75), None)
    continued = MetricsFile(tmp_path)
    continued.load_state_dict(state)
    continued.on_train_start(trainer(1, 1), None)
    train(continued, trainer(1, 2, train_loss=9.0))
    assert (tmp_path / "metrics.csv").read_text() == (
        "stage,epoch,step,train/loss,test/top1\nfit,0,1,0,\ntest,1,2,,0.75\nfit,1,2,9,\n"
    )


def test_an_epoch_without_validation_repeats_no_old_value(tmp_path):
    file = MetricsFile(tmp_path)
    train(file, trainer(0, 1, train_loss=2.0, val_top1=0.5))
    train(file, trainer(1, 2, train_loss=1.0, val_top1=0.5), validated=False)
    text = (tmp_path / "metrics.csv").read_text()
    assert text == "stage,epoch,step,train/loss,val/top1\nfit,0,1,2,0.5\nfit,1,2,1,\n"


def test_only_the_first_process_writes(tmp_path):
    state = trainer(0, 1, train_loss=2.0)
    state.is_global_zero = False
    train(MetricsFile(tmp_path), state)
    assert not list(tmp_path.iterdir())


@given(st.floats(width=32))
@example(2897772288.0)  # shorter as a double
def test_a_value_is_written_as_the_shortest_text_of_the_same_number(value):
    text = format_value(value)
    np.testing.assert_equal(np.float32(text), np.float32(value))
    assert len(text) <= min(len(repr(value)), 15)


@given(st.floats())
def test_a_double_keeps_all_digits(value):
    np.testing.assert_equal(float(format_value(value, double=True)), value)


def test_values_are_short():
    found = [format_value(v) for v in (0.1, 1 / 3, 2.0, float("nan"), 1e-5)]
    assert found == ["0.1", "0.33333334", "2", "nan", "1e-05"]


WRITER = """
import sys
from pathlib import Path
from lightning_overlock.runs.metrics_file import write_row
print("ready", flush=True)
for step in range(100_000):
    write_row(Path(sys.argv[1]), {"stage": "fit", "epoch": step, "step": step, f"m{step % 7}": 1})
"""


def test_a_kill_leaves_a_whole_file_and_a_reader_never_sees_half_of_one(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=-1) as process:
        assert process.stdout.readline() == b"ready\n"
        seen = 0
        while seen < 60:
            curve = read_curve(tmp_path)
            assert [row["step"] for row in curve] == list(range(len(curve)))
            seen = max(seen, len(curve))
        os.kill(process.pid, signal.SIGKILL)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(len(rows)))
    assert all(row[f"m{number % 7}"] == "1" for number, row in enumerate(rows))


def test_an_unfinished_line_of_an_older_version_does_not_count(tmp_path):
    (tmp_path / "metrics.csv").write_text("stage,epoch,step\nfit,0,1\nfit,1")
    assert read_curve(tmp_path) == [{"epoch": 0, "step": 1}]
    write_row(tmp_path, {"stage": "fit", "epoch": 1, "step": 2})
    assert (tmp_path / "metrics.csv").read_text() == "stage,epoch,step\nfit,0,1\nfit,1,2\n"
