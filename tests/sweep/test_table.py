"""Tables: every figure stands where it belongs, and what was not measured says so."""

import csv
import io
import re

import optuna
import pytest
from matplotlib import image
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lightning_overlock.sweep.results import results
from lightning_overlock.sweep.spec import read
from lightning_overlock.sweep.table import (
    csv_text,
    latex,
    latex_escape,
    markdown,
    rich_table,
    sheet,
    write,
)

FILE = """\
title: Fusion & friends
metric: val/top1
baseline: gate
rows:
  add: {label: "add | sum", paper: {top1: 79.6, gmacs: 1.8, source: "arXiv 0, M3"}}
  gate: {label: gate_1, paper: {top1: 80.0, gmacs: 1.8, params_m: 10.6, source: "arXiv 0, M3"}}
  titans: {label: Titans, paper: {top1: 79.6, source: "arXiv 0, M3"}, missing: not in this package}
  crash: {label: crash, options: {model.lr: 9.0}}
profiles:
  digits: {configs: [quickstart], seeds: [1, 2, 3], data: "digits, 32 px"}
"""
MACHINE = {"cpu": "Some CPU", "threads": 1, "torch": "2.15"}
COST = {"params": 0.43, "gmacs": 0.021, "images_per_second": 1234.5, "measured": "at 32 px"}


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(FILE)
    return read(str(tmp_path / "mine.yaml"))


def study_of(sweep, values, folder=None):
    """A study with a complete trial per (row, seed), and the row `crash` failed."""
    study = optuna.create_study(direction=sweep.direction)
    seeds = sorted({seed for _, seed in values} | {1})
    choices = {
        "row": CategoricalDistribution(list(sweep.rows)),
        "seed": CategoricalDistribution(seeds),
    }
    attributes = {"epochs": 4, "seconds": 60.0, "date": "2026-11-21T10:00", "machine": MACHINE}
    for (row, seed), value in values.items():
        if folder is not None:
            (folder / f"{row}-seed{seed}").mkdir()
            curve = "".join(f"fit,{e},{e},{value * (e + 1) / 4}\n" for e in range(4))
            text = f"stage,epoch,step,val/top1\n{curve}validate,3,3,0.1\n"
            (folder / f"{row}-seed{seed}" / "metrics.csv").write_text(text)
        study.add_trial(
            create_trial(
                params={"row": row, "seed": seed},
                distributions=choices,
                value=value,
                user_attrs={**attributes, "best": value, "folder": f"{row}-seed{seed}"},
            )
        )
    study.add_trial(
        create_trial(
            state=TrialState.FAIL,
            params={"row": "crash", "seed": 1},
            distributions=choices,
            user_attrs={"error": "Traceback\nRuntimeError: loss is nan"},
        )
    )
    study.set_user_attr("cost", {"add": COST, "gate": COST})
    return study


THREE = {("add", 1): 0.70, ("add", 2): 0.71, ("add", 3): 0.72}
THREE |= {("gate", 1): 0.80, ("gate", 2): 0.82, ("gate", 3): 0.81}


def read_markdown(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    headings, _, *rows = [[cell.strip() for cell in line] for line in split]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_a_full_row_has_all_its_figures(sweep):
    table = read_markdown(markdown(sheet(results(study_of(sweep, THREE), sweep))))
    # Worked out by hand: t(.975, 2) * .01 / sqrt 3 = .02484
    assert table["add \\| sum"] == {
        "": "add \\| sum",
        "parameters (M)": "0.43",
        "multiply-adds (G)": "0.021",
        "images/s": "1,234",
        "wall time (s)": "60",
        "val/top1 (%)": "71.00 ± 1.00",
        "95 % interval": "68.52 to 73.48",
        "difference": "-10.00*",
        "paper: top1 (%)": "79.6",
        "paper: multiply-adds (G)": "1.8",
        "paper: parameters (M)": "",
        "paper: difference": "-0.4",
        "sign agrees": "yes",
    }
    assert table["gate_1"]["difference"] == "baseline"
    assert table["gate_1"]["paper: parameters (M)"] == "10.6"


def test_rows_that_were_not_run_or_failed_are_shown_as_such(sweep):
    page = sheet(results(study_of(sweep, THREE), sweep))
    table = read_markdown(markdown(page))
    assert table["Titans"]["val/top1 (%)"] == "not run"
    assert table["Titans"]["paper: top1 (%)"] == "79.6"
    assert table["Titans"]["sign agrees"] == ""
    assert table["crash"]["val/top1 (%)"] == "failed"
    assert "Titans: cannot be run: not in this package." in page.notes
    assert any(n.startswith("crash: seed 1 failed (RuntimeError: loss is nan)") for n in page.notes)


def test_one_seed_has_neither_spread_nor_verdict(sweep):
    values = {k: v for k, v in THREE.items() if k[1] == 1}
    page = sheet(results(study_of(sweep, values), sweep))
    row = read_markdown(markdown(page))["add \\| sum"]
    assert row["val/top1 (%)"] == "70.00 (n = 1)"
    assert row["95 % interval"] == ""
    assert row["difference"] == "-10.00"
    assert row["sign agrees"] == "yes, within noise"


def test_a_row_that_lacks_a_seed_says_how_many_it_has(sweep):
    values = {k: v for k, v in THREE.items() if k != ("add", 3)}
    page = sheet(results(study_of(sweep, values), sweep))
    assert read_markdown(markdown(page))["add \\| sum"]["val/top1 (%)"].endswith("(n = 2)")
    assert "add | sum: seed 3 was not run." in page.notes
    assert any("Welch's t" in note for note in page.notes)


def test_a_loss_is_not_printed_in_percent(tmp_path):
    text = FILE.replace("metric: val/top1", "metric: val/loss\ndirection: minimize")
    (tmp_path / "mine.yaml").write_text(text)
    sweep = read(str(tmp_path / "mine.yaml"))
    table = read_markdown(markdown(sheet(results(study_of(sweep, THREE), sweep))))
    assert table["gate_1"]["val/loss"] == "0.81 ± 0.01"


def test_every_form_states_how_it_was_measured(sweep):
    page = sheet(results(study_of(sweep, THREE), sweep))
    console = Console(width=400, file=io.StringIO())
    console.print(rich_table(page))
    forms = [markdown(page), csv_text(page), latex(page), console.file.getvalue()]
    for text in forms:
        for fact in (
            *("Data: digits, 32 px. Epochs: 4. Seeds: 1, 2, 3.", "Trained 2026-11-21"),
            *("cpu Some CPU, threads 1, torch 2.15", "at 32 px", "arXiv 0, M3; not measured here"),
            *("Command: lightning sweep run", "mine.yaml --profile digits"),
        ):
            assert fact in text
    assert "gate_1" in forms[3]


def test_csv_has_the_values_as_they_were_logged(sweep):
    text = csv_text(sheet(results(study_of(sweep, THREE), sweep)))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = {row["row"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["add", "gate", "titans", "crash"]
    assert rows["add"]["values"] == "0.7 0.71 0.72"
    assert float(rows["add"]["mean"]) == pytest.approx(0.71)
    assert float(rows["add"]["std"]) == pytest.approx(0.01)
    assert (rows["add"]["exceeds_noise"], rows["add"]["sign_agrees"]) == ("True", "True")
    assert (rows["titans"]["mean"], rows["titans"]["paper_top1"]) == ("", "79.6")
    assert rows["crash"]["state"].startswith("seed 1 failed")


def test_latex_escapes_what_latex_reads():
    assert latex_escape("50 % of A_1 & B #2 {x} \\ ~ ^ 1 ± 2 $") == (
        r"50 \% of A\_1 \& B \#2 \{x\} \textbackslash{} \textasciitilde{} "
        r"\textasciicircum{} 1 $\pm$ 2 \$"
    )
    assert latex_escape("-0.4") == "$-$0.4"
    assert latex_escape("val/top1-seed2") == "val/top1-seed2"


def test_latex_has_a_booktabs_line_per_row(sweep):
    text = latex(sheet(results(study_of(sweep, THREE), sweep)))
    assert r"\caption{Fusion \& friends (mine, digits)}" in text
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 4
    columns = re.search(r"tabular}{(\w+)}", text)[1]
    for line in [*body, text.partition(r"\toprule")[2].strip().splitlines()[0]]:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert text.count("{") == text.count("}")
    assert r"gate\_1" in text


def test_all_files_are_written_and_the_table_is_printed(sweep, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    write(study_of(sweep, THREE, folder), sweep, folder)
    files = {file.name for file in folder.iterdir() if file.is_file()}
    assert files == {"table.md", "table.csv", "table.tex", "rows.png", "curves.png"}
    assert "71.00 ± 1.00" in capsys.readouterr().out
    for name in ("rows.png", "curves.png"):
        pixels = image.imread(folder / name)
        assert pixels.shape[0] > 200
        assert pixels[..., :3].std() > 0.02


def test_a_sweep_without_any_result_has_a_table_too(sweep, tmp_path):
    write(optuna.create_study(), sweep, tmp_path / "run")
    table = read_markdown((tmp_path / "run" / "table.md").read_text())
    assert {row["val/top1 (%)"] for row in table.values()} == {"not run"}


# Searches


@pytest.fixture
def search(tmp_path):
    (tmp_path / "lr.yaml").write_text(
        "{metric: val/top1, search: {trials: 9, pruner: median, space: {model.lr: "
        "{float: [1e-4, 1e-2], log: true}, model.fast: {categorical: [true, false]}}}, "
        "profiles: {p: {configs: [quickstart], seeds: [4], data: digits}}}"
    )
    return read(str(tmp_path / "lr.yaml"))


def searched(search, lrs):
    study = optuna.create_study(direction="maximize")
    for lr in lrs:
        study.add_trial(
            create_trial(
                params={"model.lr": lr, "model.fast": lr > 1e-3},
                distributions=search.search.space,
                value=1 - abs(lr - 2e-3) * 100,
                user_attrs={"seconds": 5.0, "epochs": 2},
            )
        )
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(
            create_trial(
                state=state,
                params={"model.lr": 9e-3, "model.fast": True},
                distributions=search.search.space,
            )
        )
    return study


def test_a_search_lists_its_trials_best_first(search, tmp_path):
    folder = tmp_path / "run"
    write(searched(search, [1e-3, 2e-3, 4e-3, 5e-4]), search, folder)
    rows = read_markdown((folder / "table.md").read_text())
    assert list(rows)[:4] == ["trial 1", "trial 0", "trial 3", "trial 2"]
    assert rows["trial 1"]["val/top1 (%)"] == "100.00"
    assert {rows["trial 4"]["val/top1 (%)"], rows["trial 5"]["val/top1 (%)"]} == {"pruned", "fail"}
    text = (folder / "table.md").read_text()
    assert "Best: --model.lr 0.002 --model.fast True" in text
    assert "6 of 9 trials; sampler tpe, pruner median" in text
    for name in ("history", "importance", "parallel"):
        assert image.imread(folder / f"{name}.png").shape[0] > 200


@pytest.mark.parametrize("lrs", [[], [1e-3], [1e-3, 1e-3]])
def test_a_search_that_has_just_begun_has_a_table(search, tmp_path, lrs):
    write(searched(search, lrs), search, tmp_path / "run")
    assert not (tmp_path / "run" / "importance.png").exists()
    assert (tmp_path / "run" / "history.png").exists() == bool(lrs)
