"""LaTeX that compiles: with pdflatex where it is installed, and as text anywhere."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lightning_overlock
from lightning_overlock.sweep.notebook import load
from lightning_overlock.sweep.table import sheet
from lightning_overlock.tables import Table

RESULTS = Path(lightning_overlock.__file__).parents[1] / "sweeps" / "results"
NASTY = [
    *("$\\ours$ w/o", "[red]b[/red]", "*star", "a_b*c|d", "50 % \\frac & #1", "~^`'\""),
    *("ü é ß µ ±", "--model.lr -5 a---b", "{x}", "\\", "", "&&", "[3pt]", "1e-3 → 2e-3 (Δ ≤ 5°)"),
]


@pytest.fixture(scope="module")
def shipped():
    return sheet(load("overlock_overview-claims", RESULTS).results).latex()


@pytest.fixture(scope="module")
def nasty():
    rows = [[name, "-1.0 ± 2", "≤ 3"] for name in NASTY]
    headings = ["", "val/top1 (%)", "p < 0.05"]
    return Table(headings, rows, "Nasty_& 100 %", ["a\nb % c"], label="a b#c%").latex()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_it_compiles(shipped, nasty, tmp_path):
    packages = {
        found for text in (shipped, nasty) for found in re.findall(r"\\usepackage{\w+}", text)
    }
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\n" + "\n".join(sorted(packages)) + "\n\\begin{document}\n"
        f"{shipped}{nasty}\n\\ref{{tab:overlock_overview-claims}} \\ref{{tab:a-b-c-}}\n"
        "\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    for _ in range(2):  # the second knows the labels
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
    assert "undefined" not in done.stdout
    assert "Overfull" not in done.stdout


def test_packages_stand_in_the_first_line_and_facts_are_comments(shipped):
    first, *lines = shipped.splitlines()
    assert first == r"% Needs \usepackage{booktabs}\usepackage{graphicx}."
    begin = lines.index(r"\begin{table}")
    assert all(line.startswith("% ") for line in lines[:begin])
    assert any(line.startswith("% Command: lightning sweep run") for line in lines[:begin])
    assert not any("%" in re.sub(r"\\%|{%$", "", line) for line in lines[begin:])
    assert r"\label{tab:overlock_overview-claims}" in shipped
    assert r"\shortstack[r]{top-1 accuracy \\ (\%)}" in shipped


def test_labels_cannot_end_a_line_or_open_an_argument(nasty):
    body = nasty.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(NASTY)
    for line in body:
        assert not line.strip().startswith(("[", "*"))
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == 2
    assert r"\label{tab:a-b-c-}" in nasty
    assert r"-{}-model.lr $-$5 a-{}-{}-b" in nasty


def test_what_pdflatex_cannot_print_is_said():
    text = Table(["", "x"], [["漢 🙂", "1"]]).latex()
    assert text.splitlines()[0] == (
        r"% Needs \usepackage{booktabs} and XeLaTeX or LuaLaTeX with a font that has 漢 🙂."
    )
