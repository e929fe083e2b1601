"""The shipped sweep on Fashion-MNIST, whose teacher is a run of the same study."""

from pathlib import Path

import pytest
from data.set_layouts import write_idx
from shared import csv_rows

from lightning_overlock.cli.main import main
from lightning_overlock.sweep.read import read

SMALL = {
    "data.root": "data",
    "data.batch_size": "4",
    "data.cut_validation": "0.5",
    "data.image_size": "32",
    "trainer.max_epochs": "1",
    "trainer.limit_train_batches": "2",
    "model.reestimate_bn": "1",
    "seeds": "[1]",
}


@pytest.mark.slow
def test_every_row_is_trained_and_the_last_is_taught_by_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    write_idx(tmp_path / "data/FashionMNIST/raw")
    words = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    assert main(["sweep", "run", "fashion_mnist", *words]) == 0, capsys.readouterr().out
    folder = Path("runs/fashion_mnist-networks")
    assert [row["n"] for row in csv_rows(folder / "table.csv")] == ["1"] * 5
    curves = {
        name: csv_rows(folder / f"{name}-seed1/metrics.csv") for name in ("taught", "resnet18")
    }
    assert any(float(row["train/teacher_loss"] or 0) > 0 for row in curves["taught"])
    assert "train/teacher_loss" not in curves["resnet18"][0]


def test_the_teacher_is_where_the_study_leaves_it():
    sweep = read("fashion_mnist")
    first = sweep.reported_job(sweep.runnable[0], sweep.seeds[0], {})
    taught = Path(sweep.rows["taught"].options["model.teacher"])
    assert taught == Path("runs", f"{sweep.name}-{sweep.profile}", first.folder)
