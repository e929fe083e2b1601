"""The report: one HTML file that holds everything and asks nobody for anything."""

import re

import pytest
from sweep.test_results import ALL, failed, results, study_of
from sweep.test_results import write as write  # a fixture

from lightning_overlock.sweep.report import write_report


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
    assert page.count("<details>") == 6
    assert "seed 1: 51, seed 2: 52, seed 3: 53" in page
    assert "the log&#x27;s end &lt;here&gt;" in page


def test_names_are_no_html(page):
    assert "<b>$x_1$" not in page
    assert "&lt;b&gt;$x_1$ &amp; co&lt;/b&gt;" in page
