"""Figures show the values of the runs' own files, on axes that are named."""

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.trial import create_trial

from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.plots import curve_figure, row_figure, write
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.results import results

CURVES = {("a", 1): [0.2, 0.6], ("a", 2): [0.4, 0.8], ("b", 1): [0.1, 0.5], ("b", 2): [0.3, 0.9]}


@pytest.fixture
def found(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{title: Two rows, metric: val/top1, baseline: b, rows: {a: {label: first, options: "
        "{model.lr: 1}}, b: {}, c: {options: {model.lr: 2}}}, "
        "profiles: {p: {configs: [quickstart], seeds: [1, 2], data: digits}}}"
    )
    study = optuna.create_study(direction="maximize")
    sweep = read(str(tmp_path / "mine.yaml"))
    study.set_user_attr("sweep", content_of(sweep))
    for (row, seed), curve in CURVES.items():
        (tmp_path / f"{row}-seed{seed}").mkdir()
        rows = [f"fit,{epoch},{epoch},{value}" for epoch, value in enumerate(curve)]
        # An epoch without validation, and an evaluation after the training, are no points
        rows += ["fit,2,2,", "test,1,1,0.99"]
        text = "\n".join(["stage,epoch,step,val/top1", *rows, ""])
        (tmp_path / f"{row}-seed{seed}" / "metrics.csv").write_text(text)
        marks = {"row": row, "seed": seed, "folder": f"{row}-seed{seed}", "options": {}}
        study.add_trial(create_trial(value=max(curve), user_attrs=marks))
    return results(study, sweep, tmp_path)


def test_learning_curves_are_the_mean_over_seeds_of_the_runs_files(found):
    (axes,) = curve_figure(found).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["first", "b"]
    assert lines["first"].get_xdata().tolist() == [1, 2]
    assert lines["first"].get_ydata() == pytest.approx([30, 70])
    assert lines["b"].get_ydata() == pytest.approx([20, 70])
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "val/top1 (%), mean and range of the seeds"


def test_lines_are_told_apart_without_colour(found):
    (axes,) = curve_figure(found).axes
    first, second = axes.lines
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()


def test_rows_have_their_seeds_means_and_intervals(found):
    (axes,) = row_figure(found).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["first", "b", "c (no result)"]
    assert axes.get_xlabel() == "val/top1 (%), best epoch"  # two seeds have no interval
    seeds = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert seeds == [pytest.approx([60, 80]), pytest.approx([50, 90]), []]
    assert not axes.containers[0].has_xerr  # in the figure as in the table


def test_figures_state_the_facts(found, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: saved.append(figure))
    write(found, tmp_path)
    for figure in saved:
        (text,) = figure.texts
        assert "Data: digits. " in text.get_text()
        assert "Command: lightning sweep run" in text.get_text()
    assert len(saved) == 2
