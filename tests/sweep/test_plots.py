"""Figures show the values of the runs' own files, on axes that are named."""

import re
from dataclasses import replace

import optuna
import pytest
from optuna.trial import create_trial
from PIL import Image

from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.plots import (
    COLUMN,
    WIDE,
    cost_figure,
    curve_figure,
    figures,
    row_figure,
    write,
)
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.results import results
from lightning_overlock.sweep.search_plots import search_figures

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
    assert axes.get_ylabel() == "top-1 accuracy (%), mean and range of the seeds"


def test_lines_are_told_apart_without_colour(found):
    (axes,) = curve_figure(found).axes
    first, second = axes.lines
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()


def test_rows_have_their_seeds_means_and_intervals(found):
    (axes,) = row_figure(found).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["first", "b", "c (no result)"]
    assert axes.get_xlabel() == "top-1 accuracy (%), best epoch"  # two seeds have no interval
    seeds = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert seeds == [pytest.approx([60, 80]), pytest.approx([50, 90]), []]
    assert not axes.containers[0].has_xerr  # in the figure as in the table


def test_figures_are_files_for_a_screen_and_for_a_column(found, tmp_path):
    write(found, tmp_path)
    for name in ("rows", "curves"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == WIDE * 150
            texts = [image.text["Description"], image.text["Title"]]
        svg = (tmp_path / f"{name}.svg").read_text()
        width = float(re.search(r'<svg [^>]*width="([\d.]+)pt"', svg)[1])
        assert width == pytest.approx(COLUMN * 72)
        texts.append(re.search("<dc:description>(.*?)</dc:description>", svg, re.S)[1])
        pdf = (tmp_path / f"{name}.pdf").read_bytes()
        assert float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", pdf)[1]) == pytest.approx(COLUMN * 72)
        texts.append(pdf.decode("latin-1"))
        for text in (texts[0], texts[2], texts[3]):
            assert "Data: digits. " in text
            assert "Command: lightning sweep run" in text
        assert texts[1] == "Two rows"


def test_facts_are_not_in_the_picture(found):
    assert all(figure.texts == [] for figure in figures(found).values())


def test_a_column_has_no_title_and_labels_in_lines(found):
    (axes,) = curve_figure(found, COLUMN).axes
    assert axes.get_title(loc="left") == ""
    assert axes.get_ylabel() == "top-1 accuracy (%), mean and range\nof the seeds"


def test_curves_of_a_study_without_its_run_folders_are_the_reported_epochs(found):
    trial = found.lines["a"].trials[1]
    trial.intermediate_values = {0: 0.1, 1: 0.3}
    del found.lines["a"].values[2]
    moved = replace(found, folder=found.folder / "elsewhere")
    (axes,) = curve_figure(moved).axes
    assert axes.lines[0].get_ydata() == pytest.approx([10, 30])


def test_the_pareto_front_has_the_rows_that_none_is_cheaper_and_better_than(found):
    costs = {"a": 1.0, "b": 1.0, "c": 0.5}  # c has no result
    found.lines["b"].values[2] = 0.8
    lines = {n: replace(line, cost={"gmacs": costs[n]}) for n, line in found.lines.items()}
    (axes,) = cost_figure(replace(found, lines=lines)).axes
    front = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(front.get_xdata()) == [1.0]
    assert len(axes.texts) == 2


def test_a_search_s_figures_show_its_trials(tmp_path):
    (tmp_path / "search.yaml").write_text(
        "{title: A search, metric: val/top1, profiles: {p: {configs: [quickstart], seeds: [1], "
        "data: digits}}, search: {sampler: random, trials: 4, space: "
        "{model.lr: {float: [0.001, 0.1], log: true}, "
        "model.weight_decay: {categorical: [0.0, 0.05]}}}}"
    )
    sweep = read(str(tmp_path / "search.yaml"))
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("sweep", content_of(sweep))
    assert search_figures(results(study, sweep, tmp_path), WIDE) == {}
    space = sweep.search.distributions
    values = [0.5, 0.75, 0.25, 0.625]
    for number, value in enumerate(values):
        params = {"model.lr": 0.001 * 4**number, "model.weight_decay": 0.05 * (number % 2)}
        marks = {"folder": f"trial-{number}", "seconds": 5.0, "epochs": 2}
        study.add_trial(
            create_trial(value=value, params=params, distributions=space, user_attrs=marks)
        )
    found = search_figures(results(study, sweep, tmp_path), WIDE)
    assert list(found) == ["history", "importance", "slice", "contour", "parallel"]
    (history,) = found["history"].axes
    shown = [point.tolist() for points in history.collections for point in points.get_offsets()]
    assert sorted(shown) == [[number, value] for number, value in enumerate(values)]
    named = {label.get_text() for label in found["importance"].axes[0].get_yticklabels()}
    assert named == set(space)
    write(results(study, sweep, tmp_path), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} >= set(found)
