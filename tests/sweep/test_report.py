"""The report: one HTML file that holds everything and asks nobody for anything."""

import re

import optuna
import pytest
from sweep.test_results import ALL, failed, results, study_of
from sweep.test_results import write as write  # a fixture

from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.plan import write_plan
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.report import TITLES, write_report
from lightning_overlock.tables import Table


@pytest.fixture
def page(tmp_path, write):
    sweep = write("{paper: {top1: 79.6", "{label: '<b>$x_1$ & co</b>', paper: {top1: 79.6")
    (tmp_path / "a-seed1.log").write_text("the log's end <here>\n")
    study = study_of(sweep, [*ALL, failed("b", 9, error="OSError: full (exit code 1)\nlines")])
    write_report(results(study, sweep, tmp_path), tmp_path / "out" / "report.html")
    return (tmp_path / "out" / "report.html").read_text()


def test_no_host_is_asked_for_anything(page):
    assert not re.search(r'(?:src|href)="(?!#)', re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_table_figures_and_trials_are_in_it(page):
    assert "52.00 ± 1.00" in page
    assert page.count("<svg") == 2
    assert page.count("<details") == 6
    assert "differs from the baseline in: model.lr not set (baseline: 1)" in page
    assert "No plan was frozen before it ran." in page
    assert "seed 1: 51, seed 2: 52, seed 3: 53" in page
    assert "the log&#x27;s end &lt;here&gt;" in page


def test_names_are_no_html(page):
    assert "<b>$x_1$" not in page
    assert "&lt;b&gt;$x_1$ &amp; co&lt;/b&gt;" in page


def test_what_was_planned_stands_beside_what_was_run(tmp_path, write):
    sweep = write()
    rows = [{"row": "a", "trials": 5, "hours": 0.5}, {"row": "b", "trials": 3, "hours": 1.0}]
    planned = Table.of(rows)
    write_plan(sweep, tmp_path, planned)
    study = study_of(sweep, [(r, s, v, {"seconds": 360.0}, t) for r, s, v, _, t in ALL])
    write_report(results(study, sweep, tmp_path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (
        "<td class='word'>a</td><td>5</td><td>3</td><td>0.5</td><td>0.3</td>"
        in page.partition("Planned and run")[2]
    )
    assert "Run as planned (plan " in page


def test_a_search_has_its_best_trial_and_optuna_s_figures(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "{metric: val/top1, search: {trials: 6, space: {model.lr: {float: [0.1, 1]}, "
        "model.wd: {float: [0.1, 1]}}}, profiles: {p: {configs: [quickstart], seeds: [1]}}}"
    )
    sweep = read(str(tmp_path / "s.yaml"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(1), direction="maximize")
    study.set_user_attr("sweep", content_of(sweep))
    for number in range(6):
        trial = study.ask(sweep.search.distributions)
        marks = {"folder": f"trial-{number}", "command": f"lightning fit {number}", "options": {}}
        for key, value in marks.items():
            trial.set_user_attr(key, value)
        study.tell(trial, trial.params["model.lr"])
    best = study.best_trial.number
    write_report(results(study, sweep, tmp_path), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"<h2>Best trial</h2><pre>lightning fit {best}</pre>" in page
    for name in ("history", "importance", "slice", "contour", "parallel"):
        assert f"<h2>{TITLES[name]}</h2><figure><svg" in page
