"""Every shipped sweep is planned, run on tiny settings, tabled and reported, by real trials."""

from pathlib import Path

import pandas
import pytest

from lightning_overlock.cli.main import main
from lightning_overlock.sweep.read import read, shipped

TINY = {
    "trainer.max_epochs": "1",
    "trainer.limit_train_batches": "2",
    "trainer.limit_val_batches": "1",
    "data.batch_size": "4",
    "seeds": "[1]",
}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Set by seed_everything; other tests must not see it.
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")


def settings(name):
    """The words that make a sweep tiny: the baseline and one other row, one point to tune."""
    sweep = read(name)
    found = dict(TINY)
    if sweep.search is not None:
        found["trials"] = "2"
    else:
        other = next(row for row in sweep.runnable if row != sweep.baseline)
        found["rows"] = f"[{other}, {sweep.baseline}]"
    if sweep.tune is not None:
        found["tune"] = "{options: {model.lr: [1.0e-3]}, seeds: [11]}"
    return [word for key, value in found.items() for word in ("--set", f"{key}={value}")]


# A minute of CPU each: a sweep of rows that tunes and a search for every change, all for a release.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in {"overlock_overview", "learning_rate"}
            else pytest.mark.long,
        )
        # That on Fashion-MNIST needs its data: test_fashion_mnist.py.
        for name in sorted(shipped().keys() - {"fashion_mnist"})
    ],
)
def test_a_shipped_sweep_is_planned_run_tabled_and_reported(name, capsys, monkeypatch):
    # The one variable that differs from test to test: without it one warm process serves all.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    sweep = read(name)
    words, study = settings(name), f"{name}-{sweep.profile}"
    if sweep.search is None:
        assert main(["sweep", "plan", name, *words]) == 0
        assert "Frozen as" in capsys.readouterr().out
    assert main(["sweep", "run", name, *words]) == 0, capsys.readouterr().out
    assert main(["sweep", "table", name, *words]) == 0
    assert main(["sweep", "report", study]) == 0
    folder = Path("runs", study)
    table = pandas.read_csv(folder / "table.csv")
    assert len(table) == 2
    values = table["value" if sweep.search is not None else "mean"]
    assert values.notna().all()
    page = (folder / "report.html").read_text()
    assert page.count("<details") == (4 if sweep.tune is not None else 2)
    if sweep.search is None:
        assert "Run as planned (plan " in page
