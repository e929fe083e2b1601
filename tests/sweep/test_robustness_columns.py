"""A sweep's columns of `lightning robustness`, and what is refused before anything is trained."""

import statistics
from pathlib import Path

import numpy as np
import pytest
from robustness.test_robustness_command import write_images
from shared import csv_rows
from sweep.test_results import complete, results, study_of
from sweep.test_results import write as write  # a fixture

import lightning_overlock
from lightning_overlock.cli.build import build
from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.sweep.notebook import Loaded
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.table import sheet
from lightning_overlock.sweep.validate import validate

FOLDERS = {"imagenet_r": "photos/r"}
TYPED = ("robustness={imagenet_r: photos/r}",)


def figures(top1, nll=0.5, folders=FOLDERS):
    measured = {"R: top-1 (%)": top1, "R: ECE (%)": 4.0, "R: NLL": nll, "C: CE fog (%)": 80.0}
    return {"robustness": {"folders": folders, "figures": measured}}


def table_of(write, trials, tmp_path):
    sweep = write(overrides=TYPED)
    return sheet(results(study_of(sweep, trials), sweep, tmp_path))


def test_every_figure_stands_with_mean_and_spread_over_the_seeds(write, tmp_path):
    top1 = {("a", 1): 10.0, ("a", 2): 12.0, ("a", 3): 17.0, ("b", 1): 20.0}
    trials = [complete(row, seed, 0.5, **figures(value)) for (row, seed), value in top1.items()]
    table = table_of(write, trials, tmp_path)
    rows = {cells[0]: dict(zip(table.headings, cells, strict=True)) for cells in table.cells}
    mean, std = statistics.fmean([10, 12, 17]), statistics.stdev([10, 12, 17])
    assert rows["a"]["R: top-1 (%)"] == f"{mean:.2f} ± {std:.2f}"
    assert rows["b"]["R: top-1 (%)"] == "20.00"
    assert rows["c"]["R: top-1 (%)"] == ""
    assert rows["a"]["R: NLL"] == "0.500 ± 0.000"
    assert "C: CE fog (%)" not in table.headings
    assert table.droppable[:2] == ["R: NLL", "R: ECE (%)"]
    record = table.records[0]
    assert (record["R: top-1 (%)"], record["R: top-1 (%) std"]) == pytest.approx((mean, std))
    assert record["C: CE fog (%)"] == 80.0
    assert any("imagenet_r photos/r" in note for note in table.notes)


def test_figures_of_other_folders_are_left_out_and_said_so(write, tmp_path):
    trials = [
        complete("a", 1, 0.5, **figures(10.0)),
        complete("a", 2, 0.5, **figures(90.0, folders={"imagenet_r": "elsewhere"})),
        complete("a", 3, 0.5),
    ]
    table = table_of(write, trials, tmp_path)
    row = dict(zip(table.headings, table.cells[0], strict=True))
    assert row["R: top-1 (%)"] == "10.00"
    assert any(note.startswith("a: 2 of 3 trained before") for note in table.notes)


def test_a_sweep_without_the_key_has_no_such_columns(write, tmp_path):
    sweep = write()
    trials = [complete("a", 1, 0.5, **figures(10.0))]
    table = sheet(results(study_of(sweep, trials), sweep, tmp_path))
    assert not [heading for heading in table.headings if heading.startswith("R: ")]
    assert not [note for note in table.notes if "obustness" in note]


def test_a_notebook_has_them_per_trial(write, tmp_path):
    sweep = write(overrides=TYPED)
    found = results(study_of(sweep, [complete("a", 1, 0.5, **figures(10.0))]), sweep, tmp_path)
    (row,) = Loaded(found).trials.to_dict("records")
    assert row["robustness.R: top-1 (%)"] == 10.0
    assert "robustness" not in row


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{imagenet_q: r}", "robustness.imagenet_q: no set of images has this name. Did you mean"),
        ("photos/r", "robustness: found 'photos/r'."),
        ("{imagenet_r: 3}", "robustness.imagenet_r: found 3."),
    ],
)
def test_what_is_no_set_of_images_is_named(write, value, words):
    with pytest.raises(InputError) as error:
        write(overrides=(f"robustness={value}",))
    assert words in str(error.value)


SMALL = """\
metric: {metric}
baseline: a
rows: {{a: {{}}}}
profiles:
  p: {{configs: [{config}], seeds: [1], robustness: {{imagenet_r: r}}}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("metric", "config", "classes", "words"),
    [
        ("val/top1", "quickstart", None, "robustness.imagenet_r r: this is no folder; expected"),
        ("val/top1", "quickstart", ["cat", "dog"], "robustness.imagenet_r r: the model knows 0 of"),
        ("val/loss", "segmentation_quickstart", ["1", "2"], "robustness: measured of classifiers"),
    ],
)
def test_images_that_no_trial_could_be_measured_on_are_told_first(
    place, metric, config, classes, words
):
    Path("s.yaml").write_text(SMALL.format(metric=metric, config=config))
    if classes:
        write_images(Path("r"), classes)
    with pytest.raises(InputError) as error:
        validate(read("./s.yaml"), build)
    assert f"s.yaml, {words}" in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.slow
def test_a_sweep_measures_its_networks_on_a_folder(place, monkeypatch, capsys):
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    digits = [2, 7, 9]
    images = write_images(Path("r"), map(str, digits), count=6, side=32)
    Path("s.yaml").write_text(SMALL.format(metric="val/top1", config="quickstart"))
    words = ["seeds=[1, 2]", "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
    words += ["trainer.limit_val_batches=1", "data.num_workers=0"]
    typed = [word for change in words for word in ("--set", change)]
    assert main(["sweep", "run", "./s.yaml", *typed]) == 0, capsys.readouterr().out
    (row,) = csv_rows(Path("runs/s-p/table.csv"))
    files = sorted(images.glob("*/*.png"))
    labels = np.array([int(file.parent.name) for file in files])
    shares = []
    for seed in (1, 2):
        task = lightning_overlock.load(f"runs/s-p/a-seed{seed}/checkpoints/best.ckpt")
        found = np.stack([each.probabilities for each in task.predict_images(files)])
        # The three digits that are there compete.
        shares.append(100 * np.mean(np.array(digits)[found[:, digits].argmax(1)] == labels))
    assert float(row["R: top-1 (%)"]) == pytest.approx(np.mean(shares))
