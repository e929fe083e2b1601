"""Figures show the values of the runs' own files, on axes that are named."""

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from lightning_overlock.sweep.plots import curve_figure, row_figure
from lightning_overlock.sweep.results import results
from lightning_overlock.sweep.spec import read

CURVES = {("a", 1): [0.2, 0.6], ("a", 2): [0.4, 0.8], ("b", 1): [0.1, 0.5], ("b", 2): [0.3, 0.9]}


@pytest.fixture
def found(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{title: Two rows, metric: val/top1, baseline: b, rows: {a: {label: first}, b: {}, c: {}}, "
        "profiles: {p: {configs: [quickstart], seeds: [1, 2], data: digits}}}"
    )
    study = optuna.create_study(direction="maximize")
    choices = {"row": CategoricalDistribution(["a", "b"]), "seed": CategoricalDistribution([1, 2])}
    for (row, seed), curve in CURVES.items():
        (tmp_path / f"{row}-seed{seed}").mkdir()
        rows = [f"fit,{epoch},{epoch},{value}" for epoch, value in enumerate(curve)]
        # An epoch without validation, and an evaluation after the training, are no points
        rows += ["fit,2,2,", "test,1,1,0.99"]
        text = "\n".join(["stage,epoch,step,val/top1", *rows, ""])
        (tmp_path / f"{row}-seed{seed}" / "metrics.csv").write_text(text)
        study.add_trial(
            create_trial(params={"row": row, "seed": seed}, distributions=choices, value=max(curve))
        )
    return results(study, read(str(tmp_path / "mine.yaml")))


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that was saved last."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: saved.append(figure))
    return lambda: saved[-1].axes[0]


def test_learning_curves_are_the_mean_over_seeds_of_the_runs_files(found, axes, tmp_path):
    curve_figure(found, tmp_path, tmp_path / "curves.png")
    lines = {line.get_label(): line for line in axes().lines}
    assert list(lines) == ["first", "b"]
    assert lines["first"].get_xdata().tolist() == [1, 2]
    assert lines["first"].get_ydata() == pytest.approx([30, 70])
    assert lines["b"].get_ydata() == pytest.approx([20, 70])
    assert axes().get_xlabel() == "epoch"
    assert axes().get_ylabel() == "val/top1 (%), mean and range of the seeds"


def test_lines_are_told_apart_without_colour(found, axes, tmp_path):
    curve_figure(found, tmp_path, tmp_path / "curves.png")
    first, second = axes().lines
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()


def test_rows_have_their_seeds_means_and_intervals(found, axes, tmp_path):
    row_figure(found, tmp_path / "rows.png")
    labels = [label.get_text() for label in axes().get_yticklabels()]
    assert labels == ["first", "b", "c (no result)"]
    assert axes().get_xlabel() == "val/top1 (%), best epoch, mean and 95 % interval"
    seeds = [line.get_xdata().tolist() for line in axes().lines if line.get_marker() == "o"]
    assert seeds == [pytest.approx([60, 80]), pytest.approx([50, 90]), []]
    # 95 % of Student's t with one degree of freedom: 12.706 standard errors, here of 10
    (segment,) = axes().containers[0].lines[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([70 - 127.06, 70 + 127.06], abs=0.01)


def test_figures_state_the_facts(found, axes, tmp_path):
    row_figure(found, tmp_path / "rows.png")
    (text,) = axes().figure.texts
    assert "Data: digits. " in text.get_text()
    assert "Command: lightning sweep run" in text.get_text()
