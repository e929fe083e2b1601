"""The metrics file against rows written by hand."""

from types import SimpleNamespace

import torch

from lightning_overlock.runs.recording import MetricsFile


def trainer(epoch, step, fn="fit", **metrics):
    metrics = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        current_epoch=epoch,
        global_step=step,
        callback_metrics=metrics,
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn=fn),
    )


def train(file, state, validated=True):
    if validated:
        file.on_validation_end(state, None)
    file.on_train_epoch_end(state, None)


def test_a_row_per_epoch_and_one_per_evaluation(tmp_path):
    path = tmp_path / "run/metrics.csv"
    file = MetricsFile(path.parent)
    train(file, trainer(0, 5, train_loss=2.0, val_top1=0.25))
    train(file, trainer(1, 10, train_loss=1.5, val_top1=0.5))
    other = MetricsFile(path.parent, epoch=1, step=10)
    other.on_validation_end(trainer(0, 0, fn="validate", val_top1=0.5), None)
    other.on_test_end(trainer(0, 0, fn="test", test_top1=0.75), None)
    assert path.read_text() == (
        "stage,epoch,step,train/loss,val/top1,test/top1\n"
        "fit,0,5,2,0.25,\n"
        "fit,1,10,1.5,0.5,\n"
        "validate,1,10,,0.5,\n"
        "test,1,10,,,0.75\n"
    )


def test_an_epoch_trained_again_replaces_its_rows_and_later_ones(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch in range(3):
        train(MetricsFile(path.parent), trainer(epoch, epoch, train_loss=float(epoch)))
    train(MetricsFile(path.parent), trainer(1, 1, train_loss=9.0))
    assert path.read_text() == "stage,epoch,step,train/loss\nfit,0,0,0\nfit,1,1,9\n"


def test_an_epoch_without_validation_repeats_no_old_value(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path.parent)
    train(file, trainer(0, 1, train_loss=2.0, val_top1=0.5))
    train(file, trainer(1, 2, train_loss=1.0, val_top1=0.5), validated=False)
    assert path.read_text() == "stage,epoch,step,train/loss,val/top1\nfit,0,1,2,0.5\nfit,1,2,1,\n"


def test_only_the_first_process_writes(tmp_path):
    state = trainer(0, 1, train_loss=2.0)
    state.is_global_zero = False
    train(MetricsFile(tmp_path), state)
    assert not list(tmp_path.iterdir())
