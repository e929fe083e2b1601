"""What a study has measured, and that nothing else is shown under its name."""

import math

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.notebook import Loaded
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.results import results

FILE = """\
metric: val/top1
baseline: b
rows:
  a: {paper: {top1: 79.6, source: s}}
  b: {options: {model.lr: 1}, paper: {top1: 80.0, source: s}}
  c: {missing: no code}
profiles:
  p: {configs: [quickstart], seeds: [1, 2, 3], data: digits}
"""


@pytest.fixture
def write(tmp_path):
    def write(*change, overrides=(), name="mine"):
        text = FILE.replace(*change) if change else FILE
        (tmp_path / f"{name}.yaml").write_text(text)
        return read(str(tmp_path / f"{name}.yaml"), None, overrides)

    return write


@pytest.fixture
def sweep(write):
    return write()


def study_of(sweep, trials):
    """A study with (row, seed, value, user attributes, state) each."""
    study = optuna.create_study(direction="maximize", study_name="s")
    study.set_user_attr("sweep", content_of(sweep))
    for row, seed, value, attributes, state in trials:
        marks = {"row": row, "seed": seed, "folder": f"{row}-seed{seed}", "options": {}}
        study.add_trial(create_trial(state=state, value=value, user_attrs=marks | attributes))
    return study


def found(sweep, trials, tmp_path, now=None):
    return results(study_of(sweep, trials), now or sweep, tmp_path)


def complete(row, seed, value, **attributes):
    return (row, seed, value, attributes, TrialState.COMPLETE)


def failed(row, seed, **attributes):
    return (row, seed, None, attributes, TrialState.FAIL)


ALL = [
    complete(row, seed, value + seed / 100)
    for row, value in (("a", 0.5), ("b", 0.6))
    for seed in (1, 2, 3)
]


def test_one_trial_counts_per_row_and_seed(sweep, tmp_path):
    line = found(
        sweep,
        [
            failed("a", 1, error="killed", attempts=1),
            complete("a", 1, 0.5, seconds=10.0, epochs=4),
            complete("a", 1, 0.9),  # of a runner that did not know the other
            complete("a", 2, 0.8, duplicate_of=1),
            complete("a", 2, 0.7, seconds=20.0, epochs=4),
            complete("b", 1, 0.6),
            failed("b", 2, error="Out of memory (exit code 1)\nline", attempts=2),
        ],
        tmp_path,
    ).lines
    assert line["a"].values == {1: 0.5, 2: 0.7}
    assert line["a"].seconds == 15.0
    assert line["a"].state == "seed 3 was not run"
    assert line["b"].values == {1: 0.6}
    assert line["b"].state == "seed 2 failed (Out of memory (exit code 1)), seed 3 was not run"
    assert line["c"].state == "cannot be run: no code"
    assert line["a"].against.n == 1
    assert line["a"].against.verdict == "undecided"


@pytest.mark.parametrize(("ours", "agrees"), [(0.4, True), (0.9, False)])
def test_the_sign_of_the_difference_is_held_against_the_paper_s(sweep, ours, agrees, tmp_path):
    trials = [complete("a", s, ours + s / 100) for s in (1, 2, 3)]
    trials += [complete("b", s, 0.8 - s / 100) for s in (1, 2, 3)]
    line = found(sweep, trials, tmp_path).lines["a"]
    assert line.published == -0.4
    assert line.agrees is agrees


def test_an_empty_study_has_a_line_for_every_row(sweep, tmp_path):
    lines = found(sweep, [], tmp_path).lines
    assert [line.state for line in lines.values()][:2] == ["not run", "not run"]
    assert lines["a"].spread is None
    assert lines["a"].agrees is None


# The file now, and the study as it was run


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["metric=val/loss"], "metric: found val/loss, but the study s was run with val/top1"),
        (["model.lr=3"], "options.model.lr: found 3, but the study s was run with nothing"),
        (["configs=[cluttered]"], "configs.quickstart: found nothing"),
        (["select=last"], "select: found last"),
    ],
)
def test_settings_that_the_study_was_not_run_with_are_refused(write, overrides, key, tmp_path):
    with pytest.raises(InputError, match=key) as error:
        found(write(), ALL, tmp_path, now=write(overrides=overrides))
    assert len(str(error.value).splitlines()) <= 3


def test_a_row_that_was_edited_is_left_out_and_says_so(write, tmp_path):
    lines = found(write(), ALL, tmp_path, now=write("model.lr: 1", "model.lr: 3")).lines
    assert lines["b"].values == {}
    assert lines["b"].state == (
        "left out: trained with rows.b.options.model.lr 1, the file now says 3; a changed row "
        "needs a name of its own"
    )
    assert lines["a"].values == {1: 0.51, 2: 0.52, 3: 0.53}
    assert lines["a"].against.value is None


def test_another_file_s_study_is_refused(write, tmp_path):
    text = ("rows:\n  a: {paper: {top1: 79.6, source: s}}\n  b:", "rows:\n  x: {}\n  y:")
    other = write(*text, overrides=["baseline=y", "rows=[x, y]"], name="other")
    with pytest.raises(InputError, match="none of its rows is among those of the study s: a, b, c"):
        found(write(), ALL, tmp_path, now=other)


def test_labels_titles_and_papers_may_change(write, tmp_path):
    now = write("a: {paper: {top1: 79.6", "a: {label: renamed, paper: {top1: 70.0")
    line = found(write(), ALL, tmp_path, now=now).lines["a"]
    assert line.row.label == "renamed"
    assert line.published == -10


def test_seeds_and_rows_that_are_not_shown_are_named(write, tmp_path):
    everything = found(write(), ALL, tmp_path, now=write("[1, 2, 3]", "[1]"))
    assert list(everything.lines["a"].values) == [1, 2, 3]  # what was run is shown
    some = found(write(), ALL, tmp_path, now=write(overrides=["seeds=[1, 2]", "rows=[b]"]))
    assert some.notes == ["Not shown: the study's rows a, c.", "Not shown: the study's seeds 3."]


def test_rows_that_end_the_same_are_warned_of(sweep, tmp_path):
    trials = [complete(row, seed, seed / 10) for row in "ab" for seed in (1, 2, 3)]
    (note,) = found(sweep, trials, tmp_path).notes
    assert note.startswith("Warning: a and b have identical results in every seed.")


def test_seeds_of_different_configurations_are_warned_of(sweep, tmp_path):
    trials = [complete("a", seed, seed / 10, config_hash=f"h{seed // 3}") for seed in (1, 2, 3)]
    trials += [complete("b", seed, seed / 9, config_hash="h") for seed in (1, 2, 3)]
    (note,) = found(sweep, trials, tmp_path).notes
    assert note.startswith("Warning: the seeds of a were trained with 2 different configurations")


# In a notebook


def test_results_are_dataframes_in_a_notebook(sweep, tmp_path):
    (tmp_path / "a-seed1").mkdir()
    (tmp_path / "a-seed1" / "metrics.csv").write_text(
        "stage,epoch,step,val/top1\nfit,0,4,0.3\nfit,1,8,0.51\ntest,1,8,0.4\n"
    )
    it = Loaded(results(study_of(sweep, ALL), None, tmp_path))
    assert it.table.set_index("row")["mean"]["a"] == pytest.approx(0.52)
    assert it.trials["value"].tolist() == [value for _, _, value, _, _ in ALL]
    assert it.curves[["row", "seed", "epoch", "value"]].values.tolist() == [
        ["a", 1, 0, 0.3],
        ["a", 1, 1, 0.51],
    ]
    assert it.compare("a", "b").value == pytest.approx(-0.1)
    with pytest.raises(InputError, match="'x' is no row"):
        it.compare("a", "x")
    assert len(it.figure().axes) == 1
    assert "52.00 ± 1.00" in it._repr_markdown_()
    assert not math.isnan(it.table["mean"][0])
