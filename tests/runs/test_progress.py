"""What a run folder tells of its run: how far it came, its curve, its best."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_overlock.runs.checkpoint import checkpoint_of
from lightning_overlock.runs.metrics_file import best_of, read_curve
from lightning_overlock.runs.progress import can_continue, is_finished, seconds_trained


def write_run(folder, epochs, asked, saved):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"trainer:\n  max_epochs: {asked}\n")
    lines = ["stage,epoch,step,val/top1"] + [f"fit,{e},{e},0.{e}" for e in range(epochs)]
    (folder / "metrics.csv").write_text("\n".join([*lines, "validate,1,2,0.9"]) + "\n")
    if saved is not None:
        torch.save(
            {"epoch": saved, "global_step": saved, "x": torch.ones(3)},
            folder / "checkpoints/last.ckpt",
        )


@pytest.mark.parametrize(
    ("epochs", "asked", "saved", "expected"),
    [
        (3, 3, 2, True),
        (2, 3, 1, False),
        (2, 3, 2, False),  # interrupted amid the last epoch
        (3, 3, None, False),
        (3, 5, 2, False),
        (0, 3, None, False),
    ],
)
def test_a_finished_run_is_recognised(epochs, asked, saved, expected, tmp_path):
    write_run(tmp_path, epochs, asked, saved)
    assert is_finished(tmp_path) is expected
    assert can_continue(tmp_path) is (saved is not None)


def test_a_torn_checkpoint_is_not_continued(tmp_path):
    write_run(tmp_path, 3, 3, 2)
    path = tmp_path / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    assert not can_continue(tmp_path)
    assert not is_finished(tmp_path)


def test_the_curve_has_the_trained_epochs_only(tmp_path):
    write_run(tmp_path, 2, 3, 1)
    assert read_curve(tmp_path) == [
        {"epoch": 0, "step": 0, "val/top1": 0.0},
        {"epoch": 1, "step": 1, "val/top1": 0.1},
    ]


@given(cut=st.integers(0, 120))
def test_of_a_torn_metrics_file_only_whole_rows_count(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 4, 4, None)
    path = folder / "metrics.csv"
    path.write_bytes(path.read_bytes()[:cut])
    found = read_curve(folder)
    assert found == [{"epoch": e, "step": e, "val/top1": e / 10} for e in range(len(found))]


def test_a_folder_without_files_has_trained_nothing(tmp_path):
    assert read_curve(tmp_path) == []
    assert seconds_trained(tmp_path) == 0
    assert not can_continue(tmp_path)
    assert checkpoint_of(tmp_path, 0) is None


def test_seconds_are_those_from_the_start_of_training_to_its_last_checkpoint(tmp_path):
    write_run(tmp_path, 3, 3, 2)
    os.utime(tmp_path / "config.yaml", (1000, 1000))
    os.utime(tmp_path / "checkpoints/last.ckpt", (1000, 1042.5))
    assert seconds_trained(tmp_path) == pytest.approx(42.5)


@given(
    values=st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")), st.none()), max_size=8),
    direction=st.sampled_from(["maximize", "minimize"]),
)
def test_the_best_is_the_first_extreme_of_the_finite_values(values, direction):
    curve = [{"epoch": e} | ({} if v is None else {"m": v}) for e, v in enumerate(values)]
    found = best_of(curve, "m", direction)
    array = np.array([np.nan if v is None else v for v in values], float)
    if np.isnan(array).all():
        assert found is None
    else:
        expected = np.nanargmax(array) if direction == "maximize" else np.nanargmin(array)
        assert found == curve[expected]


def test_the_checkpoint_named_is_of_the_best_step(tmp_path):
    write_run(tmp_path, 3, 3, 2)
    torch.save({"global_step": 1}, tmp_path / "checkpoints/best.ckpt")
    assert checkpoint_of(tmp_path, 1) == "checkpoints/best.ckpt"
    assert checkpoint_of(tmp_path, 2) == "checkpoints/last.ckpt"
    assert checkpoint_of(tmp_path, 0) is None


def test_a_last_epoch_that_was_cut_short_is_not_finished(tmp_path):
    """`max_time` ends it with a row of its own."""
    write_run(tmp_path, 3, 3, 2)
    for ended in (False, True):
        content = {"epoch": 2, "position": {"ended": ended}}
        torch.save(content, tmp_path / "checkpoints/last.ckpt")
        assert is_finished(tmp_path) is ended
