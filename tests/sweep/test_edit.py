"""Taking trials out of a study: what is left, what is asked, and what is trained again."""

from pathlib import Path

import pytest
from optuna.trial import TrialState

from lightning_overlock.cli.main import main
from lightning_overlock.sweep import edit
from lightning_overlock.sweep.notebook import load
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

FILE = """\
metric: val/top1
baseline: b
comparisons: [[a, b, c], [a, c]]
rows: {a: {options: {model.lr: 1}}, b: {}, c: {options: {model.lr: 2}}}
profiles: {p: {configs: [quickstart], seeds: [1, 2]}}
"""
SEARCH = """\
metric: val/top1
search: {trials: 2, sampler: random, space: {model.lr: {float: [0.1, 1]}}}
profiles: {p: {configs: [quickstart], seeds: [1]}}
"""


def opened(text=FILE):
    Path("mine.yaml").write_text(text)
    Path("runs/mine-p").mkdir(parents=True, exist_ok=True)
    storage = open_storage("sqlite:///runs/mine-p/study.db")
    study = Study(read("./mine.yaml"), storage, "mine-p", create=True)
    study.reconcile()
    return study


def train_all(study):
    """Complete everything that is due; returns the run folders' names."""
    done = []
    while (claim := study.take(Request())) is not None:
        name = claim.job.folder
        done.append(name)
        Path("runs/mine-p", name).mkdir(exist_ok=True)
        Path("runs/mine-p", name, "last.ckpt").write_text("x" * 1000)
        Path("runs/mine-p", f"{name}.log").write_text("log\n")
        study.finish(claim, TrialState.COMPLETE, {"seconds": 1.0}, 0.5 + claim.trial.number / 100)
    return done


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study():
    found = opened()
    assert len(train_all(found)) == 6
    return found


def test_a_row_goes_with_its_folders_and_nothing_else_does(study, capsys):
    before = load("mine-p").results.lines
    assert main(["sweep", "rm", "mine", "c", "--yes"]) == 0
    assert "c: removed (2 trials, 2 run folders" in capsys.readouterr().out
    after = load("mine-p").results
    assert list(after.lines) == ["a", "b"]
    assert [after.lines[n].values for n in "ab"] == [before[n].values for n in "ab"]
    assert [[(c.row, c.other) for c in chain] for chain in after.comparisons] == [[("b", "a")]]
    left = {path.name.removesuffix(".log") for path in Path("runs/mine-p").glob("*-seed*")}
    assert left == {"a-seed1", "a-seed2", "b-seed1", "b-seed2"}


def test_a_removed_row_may_come_back_with_other_options(study):
    main(["sweep", "rm", "mine", "c", "--yes"])
    again = opened(FILE.replace("model.lr: 2", "model.lr: 3"))
    assert train_all(again) == ["c-seed1", "c-seed2"]
    line = load("mine-p").results.lines["c"]
    assert line.row.options == {"model.lr": 3}
    assert sorted(line.values) == [1, 2]


@pytest.mark.parametrize(("answer", "left"), [("n", "abc"), ("", "abc"), ("y", "ab")])
def test_it_is_asked_before_a_row_goes(study, answer, left, monkeypatch):
    asked = []
    monkeypatch.setattr(edit.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    assert main(["sweep", "rm", "mine-p", "c"]) == 0
    assert "Remove the row 'c' from mine-p (2 trials, 2 run folders" in asked[0]
    assert "".join(load("mine-p").results.lines) == left


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rm", "mine", "c"], "nobody is there to be asked"),
        (["rm", "mine", "b", "--yes"], "this row is the baseline"),
        (["rm", "mine", "cc", "--yes"], "Did you mean 'c'?"),
        (["retry", "mine", "99"], "no trial of mine-p has this name or number"),
        (["retry", "mine", "c-sed1"], "Did you mean 'c-seed1'?"),
    ],
)
def test_what_cannot_be_taken_out_is_refused(study, words, expected, capsys):
    assert main(["sweep", *words]) == 2
    assert expected in capsys.readouterr().err
    assert list(load("mine-p").results.lines) == ["a", "b", "c"]


def test_a_running_trial_is_left_alone(capsys):
    found = opened()
    claim = found.take(Request())
    for words in (["retry", "mine", claim.job.folder], ["rm", "mine", claim.job.row, "--yes"]):
        assert main(["sweep", *words]) == 2
        assert f"{claim.job.folder}: this trial is running." in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["a-seed2", "3"])
def test_a_trial_is_trained_again_from_the_start(study, typed, capsys):
    first = load("mine-p").results.lines["a"].values
    assert main(["sweep", "retry", "mine", typed]) == 0
    assert "lightning sweep run" in capsys.readouterr().out
    assert sorted(load("mine-p").results.lines["a"].values) == [1]
    claim = study.take(Request())
    assert claim.job.folder == "a-seed2"
    assert claim.earlier == []  # so that its runner does not continue from the checkpoint
    study.finish(claim, TrialState.COMPLETE, {}, 0.9)
    assert load("mine-p").results.lines["a"].values == first | {2: 0.9}
    assert study.take(Request()) is None


def test_a_point_of_a_search_is_trained_again(capsys):
    found = opened(SEARCH)
    assert train_all(found) == ["trial-0", "trial-1"]
    point = found.trials()[1].params
    assert main(["sweep", "retry", "mine", "trial-1"]) == 0
    claim = found.take(Request())
    assert (claim.job.folder, claim.job.options, claim.earlier) == ("trial-1", point, [])
    found.finish(claim, TrialState.COMPLETE, {}, 0.9)
    assert found.take(Request()) is None
    assert sorted(t.value for t in load("mine-p").results.frozen if t.value) == [0.5, 0.9]


def test_a_search_has_no_rows_to_remove(capsys):
    train_all(opened(SEARCH))
    assert main(["sweep", "rm", "mine", "trial-1", "--yes"]) == 2
    assert "A search has no rows." in capsys.readouterr().err
