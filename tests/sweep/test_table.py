"""Tables: every figure stands where it belongs, and what was not measured says so."""

import csv
import re
import warnings
from pathlib import Path

import optuna
import pandas
import pytest
from matplotlib import image
from optuna.trial import TrialState, create_trial
from rich.console import Console

import lightning_overlock
from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.notebook import load
from lightning_overlock.sweep.plots import row_figure
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.results import results
from lightning_overlock.sweep.table import sheet
from lightning_overlock.sweep.write import write

FILE = """\
title: Fusion & friends
metric: val/top1
baseline: gate
rows:
  add:
    label: "add | sum"
    options: {model.lr: 1.0}
    paper: {top1: 79.6, gmacs: 1.8, source: "arXiv 0, M3"}
  gate: {label: gate_1, paper: {top1: 80.0, gmacs: 1.8, params_m: 10.6, source: "arXiv 0, M3"}}
  titans: {label: Titans, paper: {top1: 79.6, source: "arXiv 0, M3"}, missing: not in this package}
  crash: {label: crash, options: {model.lr: 9.0}}
profiles:
  digits: {configs: [quickstart], seeds: [1, 2, 3], data: "digits, 32 px"}
"""
FIGURES = ("png", "pdf", "svg")
MACHINE = {"cpu": "Some CPU", "threads": 1, "torch": "2.15"}
COST = {"params": 0.43, "gmacs": 0.021, "images_per_second": 1234.5, "measured": "at 32 px"}


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(FILE)
    return read(str(tmp_path / "mine.yaml"))


def study_of(sweep, values, folder=None):
    """A study with a complete trial per (row, seed), and the row `crash` failed."""
    study = optuna.create_study(direction=sweep.direction, study_name="mine-digits")
    study.set_user_attr("sweep", content_of(sweep))
    attributes = {"epochs": 4, "seconds": 60.0, "date": "2026-11-21T10:00", "machine": MACHINE}
    for (row, seed), value in values.items():
        marks = {"row": row, "seed": seed, "folder": f"{row}-seed{seed}", "options": {}}
        if folder is not None:
            (folder / f"{row}-seed{seed}").mkdir()
            curve = "".join(f"fit,{e},{e},{value * (e + 1) / 4}\n" for e in range(4))
            text = f"stage,epoch,step,val/top1\n{curve}validate,3,3,0.1\n"
            (folder / f"{row}-seed{seed}" / "metrics.csv").write_text(text)
        study.add_trial(create_trial(value=value, user_attrs={**attributes, **marks}))
    failed = {"row": "crash", "seed": 1, "folder": "crash-seed1", "options": {}}
    study.add_trial(
        create_trial(
            state=TrialState.FAIL,
            user_attrs={"error": "RuntimeError: loss is nan (exit code 1)\nTraceback", **failed},
        )
    )
    study.set_user_attr("cost", {"add": COST, "gate": COST, "crash": {"error": "ValueError: x"}})
    return study


def page_of(sweep, values):
    return sheet(results(study_of(sweep, values), sweep, Path("nowhere")))


THREE = {("add", 1): 0.70, ("add", 2): 0.71, ("add", 3): 0.72}
THREE |= {("gate", 1): 0.80, ("gate", 2): 0.82, ("gate", 3): 0.81}
FIVE = {("add", s): 0.70 + s / 100 for s in range(1, 6)}
FIVE |= {("gate", s): 0.80 + s / 100 + s % 2 / 200 for s in range(1, 6)}


def read_markdown(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    headings, _, *rows = [[cell.strip() for cell in line] for line in split]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def test_a_full_row_has_all_its_figures(sweep):
    table = read_markdown(page_of(sweep, THREE).markdown())
    # Worked out by hand: t(.975, 2) * .01 / sqrt 3 = .02484
    assert table["add \\| sum"] == {
        "": "add \\| sum",
        "parameters (M)": "0.43",
        "multiply-adds (G)": "0.021",
        "images/s": "1,234",
        "training (s)": "60",
        "val/top1 (%)": "71.00 ± 1.00",
        "95 % interval": "68.52 to 73.48",
        "difference": "-10.00",  # no star: three seeds
        # The seeds' differences -.10, -.11, -.09: the same spread; t = .1 / (.01 / sqrt 3)
        "its 95 % interval": "-12.48 to -7.52",
        "p (Holm)": "0.0033",
        "could find": "3.26",
        "verdict": "worse",
        "paper: top1 (%)": "79.6",
        "paper: multiply-adds (G)": "1.8",
        "paper: parameters (M)": "",
        "paper: difference": "-0.4",
        "sign agrees": "yes",
    }
    assert table["gate_1"]["difference"] == "baseline"
    assert table["gate_1"]["paper: parameters (M)"] == "10.6"


def test_rows_that_were_not_run_or_failed_are_shown_as_such(sweep):
    page = page_of(sweep, THREE)
    table = read_markdown(page.markdown())
    assert table["Titans"]["val/top1 (%)"] == "not run"
    assert table["Titans"]["paper: top1 (%)"] == "79.6"
    assert table["Titans"]["sign agrees"] == ""
    assert table["crash"]["val/top1 (%)"] == "failed"
    assert "Titans: cannot be run: not in this package." in page.notes
    assert any(n.startswith("crash: seed 1 failed (RuntimeError: loss is nan") for n in page.notes)


def test_five_seeds_and_a_clear_difference_have_a_star(sweep):
    sweep = sweep.model_copy(update={"seeds": [1, 2, 3, 4, 5]})
    row = read_markdown(page_of(sweep, FIVE).markdown())["add \\| sum"]
    assert row["difference"] == "-10.30*"
    assert row["verdict"] == "worse"
    assert row["sign agrees"] == "yes"


def test_a_cost_that_cannot_be_measured_says_why(sweep):
    page = page_of(sweep, THREE)
    assert "crash: cost not measured, ValueError: x." in page.notes


@pytest.mark.parametrize(
    "name", ["$\\ours$ w/o", "[red]b[/red]", "a_b*c|d", "50 % \\frac & #1", "~^", "ü 漢 🙂"]
)
def test_labels_go_through_every_form_unharmed(sweep, name, tmp_path, capsys):
    rows = sweep.rows | {"add": sweep.rows["add"].model_copy(update={"label": name})}
    sweep = sweep.model_copy(update={"rows": rows})
    found = results(study_of(sweep, THREE), sweep, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of the font
        write(found, tmp_path)
    assert name in capsys.readouterr().out
    assert pandas.read_csv(tmp_path / "table.csv")["label"][0] == name
    latex = (tmp_path / "table.tex").read_text()
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    assert not re.search(r"(?<!\\)[#%&_~^]", body.replace(" & ", " "))
    labels = [text.get_text() for text in row_figure(found).axes[0].get_yticklabels()]
    assert labels[0].replace(r"\$", "$") == name


def test_one_seed_has_neither_spread_nor_verdict(sweep):
    values = {k: v for k, v in THREE.items() if k[1] == 1}
    page = page_of(sweep, values)
    row = read_markdown(page.markdown())["add \\| sum"]
    assert row["val/top1 (%)"] == "70.00 (n = 1)"
    assert "95 % interval" not in row  # columns without anything in them are left out
    assert row["difference"] == "-10.00"
    assert row["verdict"] == "undecided"
    assert row["sign agrees"] == "yes, undecided"


def test_a_row_that_lacks_a_seed_says_how_many_it_has(sweep):
    values = {k: v for k, v in THREE.items() if k != ("add", 3)}
    page = page_of(sweep, values)
    assert read_markdown(page.markdown())["add \\| sum"]["val/top1 (%)"].endswith("(n = 2)")
    assert "add | sum: seed 3 was not run." in page.notes
    assert read_markdown(page.markdown())["add \\| sum"]["difference"] == "-10.50"  # of pairs


def test_a_loss_is_not_printed_in_percent(tmp_path):
    text = FILE.replace("metric: val/top1", "metric: val/loss\ndirection: minimize")
    (tmp_path / "mine.yaml").write_text(text)
    sweep = read(str(tmp_path / "mine.yaml"))
    table = read_markdown(page_of(sweep, THREE).markdown())
    assert table["gate_1"]["val/loss"] == "0.81 ± 0.01"


def test_every_form_states_how_it_was_measured(sweep, tmp_path, capsys):
    write(results(study_of(sweep, THREE), sweep, tmp_path), tmp_path)
    forms = [(tmp_path / f"table.{kind}").read_text() for kind in ("md", "tex")]
    for text in [*forms, capsys.readouterr().out]:
        for fact in (
            *("Data: digits, 32 px. Epochs: 4. Seeds: 1, 2, 3.", "Trained 2026-11-21"),
            *("cpu Some CPU, threads 1, torch 2.15", "at 32 px", "arXiv 0, M3; not measured here"),
            *("Command: lightning sweep run", "mine.yaml --profile digits"),
        ):
            assert fact in text


def test_a_narrow_terminal_drops_columns_in_order_and_keeps_the_metric(sweep):
    page = page_of(sweep, THREE)
    narrow, wide = page.terminal(80), page.terminal(None)
    assert len(wide.columns) == len(page.headings)
    assert Console(width=1000).measure(narrow).maximum <= 80
    kept = [str(column.header).replace("\n", " ") for column in narrow.columns]
    assert "val/top1 (%)" in kept
    assert "difference" in kept
    assert "sign agrees" not in kept


def test_csv_has_the_values_as_they_were_logged(sweep):
    text = page_of(sweep, THREE).csv()
    rows = {row["row"]: row for row in csv.DictReader(text.splitlines())}
    assert list(rows) == ["add", "gate", "titans", "crash"]
    assert rows["add"]["values"] == "0.7 0.71 0.72"
    assert float(rows["add"]["mean"]) == pytest.approx(0.71)
    assert float(rows["add"]["std"]) == pytest.approx(0.01)
    assert (rows["add"]["verdict"], rows["add"]["sign_agrees"]) == ("worse", "True")
    assert (rows["titans"]["mean"], rows["titans"]["paper_top1"]) == ("", "79.6")
    assert rows["crash"]["state"].startswith("seed 1 failed")


def test_latex_has_a_booktabs_line_per_row(sweep):
    text = page_of(sweep, THREE).latex()
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
    write(results(study_of(sweep, THREE, folder), sweep, folder), folder)
    files = {file.name for file in folder.iterdir() if file.is_file()}
    figures = {f"{name}.{kind}" for name in ("rows", "curves", "cost") for kind in FIGURES}
    assert files == {"table.md", "table.csv", "table.tex", *figures}
    assert "71.00 ± 1.00" in capsys.readouterr().out
    for name in ("rows.png", "curves.png"):
        pixels = image.imread(folder / name)
        assert pixels.shape[0] > 200
        assert pixels[..., :3].std() > 0.02


def test_a_sweep_without_any_result_has_a_table_too(sweep, tmp_path):
    write(results(optuna.create_study(), sweep, tmp_path / "run"), tmp_path / "run")
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
    study.set_user_attr("sweep", content_of(search))
    for number, lr in enumerate(lrs):
        study.add_trial(
            create_trial(
                params={"model.lr": lr, "model.fast": lr > 1e-3},
                distributions=search.search.distributions,
                value=1 - abs(lr - 2e-3) * 100,
                user_attrs={"seconds": 5.0, "epochs": 2, "folder": f"trial-{number}"},
            )
        )
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(
            create_trial(
                state=state,
                params={"model.lr": 9e-3, "model.fast": True},
                distributions=search.search.distributions,
                user_attrs={"folder": f"trial-{state.name}"},
            )
        )
    return study


def test_a_search_lists_its_trials_best_first(search, tmp_path):
    folder = tmp_path / "run"
    write(results(searched(search, [1e-3, 2e-3, 4e-3, 5e-4]), search, folder), folder)
    rows = read_markdown((folder / "table.md").read_text())
    assert list(rows)[:4] == ["trial 1", "trial 0", "trial 3", "trial 2"]
    assert rows["trial 1"]["val/top1 (%)"] == "100.00"
    assert {rows["trial 4"]["val/top1 (%)"], rows["trial 5"]["val/top1 (%)"]} == {"pruned", "fail"}
    text = (folder / "table.md").read_text()
    assert "Best: --model.lr 0.002 --model.fast True" in text
    assert "6 of 9 trials; sampler tpe, pruner median" in text
    for name in ("history", "importance", "parallel", "slice", "contour", "cost"):
        assert image.imread(folder / f"{name}.png").shape[0] > 200


@pytest.mark.parametrize("lrs", [[], [1e-3], [1e-3, 1e-3]])
def test_a_search_that_has_just_begun_has_a_table(search, tmp_path, lrs):
    folder = tmp_path / "run"
    write(results(searched(search, lrs), search, folder), folder)
    assert not (tmp_path / "run" / "importance.png").exists()
    assert (tmp_path / "run" / "history.png").exists() == bool(lrs)


def test_a_search_s_table_fits_a_narrow_terminal(search, tmp_path):
    page = sheet(results(searched(search, [1e-3, 2e-3]), search, tmp_path))
    assert Console(width=1000).measure(page.terminal(40)).maximum <= 40
    kept = [str(column.header).replace("\n", " ") for column in page.terminal(40).columns]
    assert kept == ["", "model.lr", "val/top1 (%)"]


def test_the_shipped_study_s_table_fits_80_columns():
    folder = Path(lightning_overlock.__file__).parents[1] / "sweeps" / "results"
    page = sheet(load("overlock_overview-claims", folder).results)
    assert Console(width=1000).measure(page.terminal(80)).maximum <= 80
    assert "verdict" in [str(column.header) for column in page.terminal(80).columns]
