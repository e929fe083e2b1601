"""The runner, with trials that train nothing: tests/sweep/fake_fit.py."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pandas
import pytest
import torch
from optuna.trial import TrialState
from sweep.fake_fit import value

from lightning_overlock.errors import Interrupted
from lightning_overlock.sweep import process as process_module
from lightning_overlock.sweep import runner as runner_module
from lightning_overlock.sweep import study as study_module
from lightning_overlock.sweep.parts import Row, Search, Tune
from lightning_overlock.sweep.results import results
from lightning_overlock.sweep.runner import Runner
from lightning_overlock.sweep.search_table import search_sheet
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request, pareto_front
from lightning_overlock.sweep.write import write

FAKE = Path(__file__).with_name("fake_fit.py")
EPOCHS = 3


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for epoch in range(10):
        torch.save({"epoch": epoch, "global_step": epoch + 1}, folder / f"{epoch}.ckpt")
    return folder


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path, checkpoints):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process_module, "COMMAND", [sys.executable, "-S", str(FAKE)])
    monkeypatch.setattr(runner_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(runner_module, "QUEUE_SECONDS", 0.05)
    monkeypatch.setenv("FAKE_CHECKPOINTS", str(checkpoints))


def sweep_of(rows=None, seeds=(1, 2), options=None, search=None, **settings):
    rows = {"a": {}, "b": {"model.x": 1}} if rows is None else rows
    return Sweep(
        name="s",
        title="s",
        profile="p",
        data="",
        configs=["quickstart"],
        options={"trainer.max_epochs": EPOCHS} | (options or {}),
        metric="val/top1",
        direction="maximize",
        seeds=list(seeds),
        rows={} if search else {name: Row(options=found) for name, found in rows.items()},
        baseline="" if search else next(iter(rows)),
        columns=[],
        search=search,
        path=Path("s.yaml"),
        **settings,
    )


def study_of(sweep, folder=Path("runs/s-p"), create=True):
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(sweep, open_storage(f"sqlite:///{folder}/study.db"), "s-p", create=create)
    study.reconcile()
    return study


def runner_of(sweep, **settings):
    study = study_of(sweep)
    requested = {k: settings.pop(k) for k in list(settings) if k in Request.__annotations__}
    folder = Path("runs/s-p")
    return Runner(sweep, study.storage, "s-p", folder, request=Request(**requested), **settings)


def run(sweep, **settings):
    runner_of(sweep, **settings).run()
    return study_of(sweep).trials()


def starts():
    return sorted(Path("runs/s-p/starts.txt").read_text().splitlines())


def best(x, seed, epochs=EPOCHS):
    values = [value(float(x), seed, epoch) for epoch in range(epochs)]
    return max(values), values.index(max(values))


def assert_table(trials, xs=((("a"), 0), (("b"), 1)), seeds=(1, 2)):
    """Hold the study against what the fake is known to yield: each row and seed once."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    found = {(t.user_attrs["row"], t.user_attrs["seed"]): t for t in complete}
    assert len(found) == len(complete)
    assert found.keys() == {(row, seed) for row, _ in xs for seed in seeds}
    for row, x in xs:
        for seed in seeds:
            trial = found[row, seed]
            expected, epoch = best(x, seed)
            assert trial.value == trial.user_attrs["best"] == expected
            assert trial.user_attrs["epoch"] == epoch
            assert trial.user_attrs["checkpoint"] == f"{row}-seed{seed}/checkpoints/best.ckpt"
            assert trial.user_attrs["epochs"] == EPOCHS
            assert trial.intermediate_values == {e: value(float(x), seed, e) for e in range(EPOCHS)}


def test_every_row_is_trained_once_with_each_seed():
    trials = run(sweep_of())
    assert_table(trials)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert starts() == ["a-seed1 new", "a-seed2 new", "b-seed1 new", "b-seed2 new"]
    for trial in trials:
        assert trial.params.keys() == {"row", "seed"}
        assert trial.user_attrs["folder"] == "{row}-seed{seed}".format(**trial.user_attrs)
        assert trial.user_attrs["metrics"]["epoch"] == EPOCHS - 1
        assert trial.user_attrs["attempts"] == 1
        assert trial.user_attrs["machine"]["torch"] == torch.__version__
        assert {"seconds", "date"} <= trial.user_attrs.keys()
    assert trials[0].user_attrs["command"] == (
        "lightning fit --config quickstart --name a-seed1 --seed_everything 1 "
        f"--trainer.max_epochs={EPOCHS}"
    )


def test_a_second_run_starts_nothing():
    run(sweep_of())
    assert len(run(sweep_of())) == 4
    assert len(starts()) == 4


def test_two_workers_share_the_queue():
    trials = run(sweep_of(seeds=(1, 2, 3)), workers=2)
    assert_table(trials, seeds=(1, 2, 3))
    assert len(trials) == 6


def test_rows_and_seeds_can_be_added():
    run(sweep_of(rows={"a": {}}, seeds=(1,)))
    trials = run(sweep_of())
    assert_table(trials)
    assert len(starts()) == 4
    # Optuna wants one parameter's choices to be the same in all trials.
    assert {t.user_attrs["row"]: t.params.get("row") for t in trials} == {"a": "a", "b": None}
    assert {t.params["seed"] for t in trials} == {1, 2}


def test_rows_that_cannot_be_run_are_left_out():
    sweep = sweep_of()
    sweep.rows["c"] = Row(missing="no data")
    assert_table(run(sweep))


@pytest.mark.parametrize(
    ("how", "first"), [("crash", "the fake has crashed (exit code 1)"), ("kill", "SIGKILL")]
)
def test_a_trial_that_ends_early_is_recorded_and_continued(how, first):
    trials = run(sweep_of({"a": {}, "b": {"model.x": 1, f"fake.{how}": 2}}))
    assert_table(trials)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert {trial.user_attrs["row"] for trial in failed} == {"b"}
    assert len(failed) == 2
    for trial in failed:
        lines = trial.user_attrs["error"].splitlines()
        assert first in lines[0]
        assert lines[-1] == ("the fake has crashed" if how == "crash" else "fake training")
    assert [s for s in starts() if s.startswith("b-seed1")] == ["b-seed1 last", "b-seed1 new"]
    done = [t for t in trials if t.user_attrs["row"] == "b" and t.state == TrialState.COMPLETE]
    assert [trial.user_attrs["attempts"] for trial in done] == [2, 2]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_trial_that_always_fails_is_given_up_and_the_others_go_on(retries):
    rows = {"a": {}, "b": {"fake.always_crash": 0}}
    trials = run(sweep_of(rows, seeds=(1,)), retries=retries)
    assert_table(trials, xs=(("a", 0),), seeds=(1,))
    assert sum(trial.state == TrialState.FAIL for trial in trials) == 1 + retries
    assert not study_of(sweep_of(rows, seeds=(1,))).is_complete()
    # Asked for again it is tried again.
    again = run(sweep_of(rows, seeds=(1,)), retries=0, ignore_failures_before=len(trials))
    assert len(again) == len(trials) + 1


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_metric_that_is_not_finite_at_the_end_is_a_failure(epoch):
    rows = {"a": {}, "b": {"fake.nan": epoch, "model.x": 1}}
    trials = run(sweep_of(rows, seeds=(1,)), retries=0)
    b = next(trial for trial in trials if trial.user_attrs["row"] == "b")
    if epoch == 2:
        assert b.state == TrialState.FAIL
        assert b.user_attrs["error"] == "val/top1 is nan at the end of epoch 3"
    else:
        assert b.value == max(value(1.0, 1, 1), value(1.0, 1, 2))


def interrupt_when(condition, process=None):
    def wait():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_ctrl_c_lets_trials_save_and_the_same_command_goes_on():
    slow = {"fake.seconds": 0.3}
    interrupt_when(lambda: Path("runs/s-p/a-seed1/checkpoints/last.ckpt").exists())
    with pytest.raises(Interrupted) as interrupt:
        run(sweep_of(options=slow))
    assert interrupt.value.signum == signal.SIGINT
    trials = study_of(sweep_of(options=slow)).trials()
    assert trials[0].state == TrialState.FAIL
    assert "error" not in trials[0].user_attrs
    # It was not the trial's fault, and so takes none of its retries.
    assert_table(run(sweep_of(options=slow), retries=0))
    assert [s for s in starts() if s.startswith("a-seed1")] == ["a-seed1 last", "a-seed1 new"]


def test_a_trial_that_had_finished_is_not_trained_again(monkeypatch):
    """Its runner died between the end of the process and the word to the study."""
    sweep = sweep_of(seeds=(1,))
    run(sweep)
    study = study_of(sweep)
    with study.storage.engine.begin() as connection:  # no public call goes back in time
        for table in ("trial_values", "trial_intermediate_values"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE trial_id = 1")
        connection.exec_driver_sql("UPDATE trials SET state = 'RUNNING' WHERE trial_id = 1")
        connection.exec_driver_sql(
            "UPDATE trial_user_attributes SET value_json = '\"elsewhere 1 1\"' "
            "WHERE trial_id = 1 AND key = 'runner'"
        )
    monkeypatch.setattr(study_module, "GRACE", 0.2)
    trials = run(sweep)
    assert_table(trials, seeds=(1,))
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 1
    assert starts() == ["a-seed1 new", "b-seed1 new"]


def test_folders_of_another_study_are_not_continued():
    run(sweep_of(seeds=(1,)))
    Path("runs/s-p/study.db").unlink()
    assert_table(run(sweep_of(seeds=(1,))), seeds=(1,))
    assert starts() == ["a-seed1 new", "a-seed1 new", "b-seed1 new", "b-seed1 new"]


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_file_says_which_epoch_counts(select):
    for trial in run(sweep_of(select=select)):
        curve = list(trial.intermediate_values.values())
        assert trial.value == (max(curve) if select == "best" else curve[-1])
        checkpoint = trial.user_attrs["checkpoint"].rsplit("/", 1)[1]
        assert checkpoint == ("best.ckpt" if trial.value == max(curve) else "last.ckpt")
        assert trial.user_attrs["epoch"] == curve.index(trial.value)


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_test_split_is_reported_at_the_selected_epoch(select):
    for trial in run(sweep_of(seeds=(1,), report="test", select=select)):
        curve = list(trial.intermediate_values.values())
        chosen = max(curve) if select == "best" else curve[-1]
        assert trial.value == pytest.approx(chosen / 2, abs=1e-4)
        assert trial.user_attrs["validation"] == chosen


@pytest.mark.parametrize("select", ["best", "last"])
def test_reported_trials_are_measured_on_other_images_at_the_selected_epoch(select, tmp_path):
    tune = Tune(options={"model.x": [1, 2]}, seeds=[90])
    images = {"imagenet_r": str(tmp_path)}
    sweep = sweep_of({"a": {}}, select=select, keep="last", tune=tune, robustness=images)
    trials = run(sweep)
    reported = [trial for trial in trials if "tuning" not in trial.user_attrs]
    assert len(trials) == len(reported) + 2
    for trial in reported:
        found = trial.user_attrs["robustness"]
        assert found["folders"] == images
        assert found["figures"]["R: top-1 (%)"] == pytest.approx(25 * trial.value)
        assert found["figures"]["C: CE fog (%)"] == 70.0
    assert all("robustness" not in t.user_attrs for t in trials if t not in reported)


def test_a_trial_whose_other_images_fail_is_not_trained_again(tmp_path):
    images = {"imagenet_r": str(tmp_path / "r")}
    sweep = sweep_of({"a": {}}, seeds=(1,), robustness=images)
    (failed,) = run(sweep)
    assert failed.state == TrialState.FAIL
    (tmp_path / "r").mkdir()
    *_, trial = run(sweep, retry_failed=True, ignore_failures_before=1)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == best(0, 1)[0]
    assert trial.user_attrs["robustness"]["folders"] == images
    assert starts() == ["a-seed1 new"]


@pytest.mark.parametrize("keep", ["best", "last", "all"])
def test_checkpoints_are_kept_as_the_file_says(keep):
    run(sweep_of(rows={"a": {}}, seeds=(1,), keep=keep))
    kept = {file.stem for file in Path("runs/s-p/a-seed1/checkpoints").iterdir()}
    assert kept == ({"best", "last"} if keep == "all" else {keep})


def test_rows_are_tuned_and_reported_by_two_workers():
    tune = Tune(options={"model.x": [1, 2, 3]}, seeds=[90])
    rows = {"a": {"model.y": 1}, "b": {"model.y": 2}}
    trials = run(sweep_of(rows, seeds=(1, 2), tune=tune), workers=2)
    scores = {x: best(x, 90)[0] for x in (1, 2, 3)}
    chosen = max(scores, key=scores.get)
    reported = [trial for trial in trials if "tuning" not in trial.user_attrs]
    assert len(trials) == 10
    assert len(reported) == 4
    for trial in reported:
        assert trial.user_attrs["options"]["model.x"] == chosen
        assert trial.value == best(chosen, trial.user_attrs["seed"])[0]


def test_an_input_error_is_not_tried_again():
    rows = {"a": {}, "b": {"fake.refuse": 1}}
    trials = run(sweep_of(rows, seeds=(1,)), retries=3)
    (failed,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert failed.user_attrs["error"].splitlines()[0] == "the fake refuses this (exit code 2)"
    assert failed.user_attrs["repeats"]


# Searches


def search_of(pruner="none", trials=4, sampler="random"):
    space = {"model.x": {"float": [0, 1]}}
    return Search(space=space, sampler=sampler, pruner=pruner, trials=trials)


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_runs_as_many_trials_as_asked_for(sampler):
    trials = run(sweep_of(search=search_of(sampler=sampler)), workers=2)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len({trial.params["model.x"] for trial in trials}) == 4
    for trial in trials:
        assert trial.params.keys() == {"model.x"}
        assert trial.value == best(trial.params["model.x"], 1)[0]
        assert trial.user_attrs["folder"] == f"trial-{trial.number}"


def test_a_search_weighs_the_metric_against_a_cost():
    search = Search(space={"model.x": {"float": [0, 1]}}, sampler="nsga2", trials=24, cost="gmacs")
    sweep = sweep_of(search=search)
    storage = open_storage("sqlite:///two.db")
    study = Study(sweep, storage, "two", create=True)
    study.reconcile()
    Path("runs/two").mkdir(parents=True)
    Runner(
        sweep,
        storage,
        "two",
        Path("runs/two"),
        workers=2,
        cost=lambda options: {"params": 2.0, "gmacs": options["model.x"]},
    ).run()
    assert [d.name for d in study.optuna.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.optuna.metric_names == ["val/top1", "gmacs"]
    for trial in study.trials():
        assert trial.values == [trial.user_attrs["value"], trial.params["model.x"]]
        assert trial.user_attrs["params"] == 2.0
    # The second generation comes from the first one: its cheapest survive, and so it is cheaper.
    costs = [trial.params["model.x"] for trial in study.trials()]
    assert len(costs) == 24
    found = results(study.optuna, sweep, Path("runs/two"))
    front = {trial.number for trial in study.optuna.best_trials}
    points = [(t.values[1], t.values[0]) for t in found.frozen]
    assert {found.frozen[place].number for place in pareto_front(points, True)} == front
    note = next(note for note in search_sheet(found).notes if "Pareto" in note)
    named = {int(word) for word in note.rstrip(".").rpartition("trial ")[2].split(", ")}
    assert named == front
    write(found, Path("runs/two"))
    table = pandas.read_csv("runs/two/table.csv")
    assert sorted(table["gmacs"]) == pytest.approx(sorted(costs))


def test_a_search_that_goes_on_does_not_draw_the_same_numbers_again():
    run(sweep_of(search=search_of(trials=2)))
    trials = run(sweep_of(search=search_of(trials=4)))
    assert len(trials) == 4
    assert len({trial.params["model.x"] for trial in trials}) == 4


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_trials_taken_before_one_has_ended_do_not_draw_the_same_numbers(sampler):
    sweep = sweep_of(search=search_of(trials=3, sampler=sampler))
    storage = open_storage("sqlite:///early.db")
    Study(sweep, storage, "early", create=True).reconcile()
    # Each worker has a study, and so a sampler, of its own.
    claims = [Study(sweep, storage, "early").take(Request()) for _ in range(3)]
    assert len({claim.trial.params["model.x"] for claim in claims}) == 3


def test_a_failed_trial_of_a_search_keeps_its_parameters_and_folder():
    trials = run(sweep_of(options={"fake.crash": 1}, search=search_of(trials=2)))
    assert [trial.state.name for trial in trials].count("COMPLETE") == 2
    assert [trial.state.name for trial in trials].count("FAIL") == 2
    folders = [trial.user_attrs["folder"] for trial in trials]
    for trial in trials:
        assert folders.count(trial.user_attrs["folder"]) == 2
    assert len({trial.params["model.x"] for trial in trials}) == 2
    assert len([s for s in starts() if s.endswith("last")]) == 2


def test_the_pruner_stops_bad_trials():
    sweep = sweep_of(
        options={"fake.seconds": 0.4, "fake.bad_above": 0.5}, search=search_of("median", 6)
    )
    study = study_of(sweep)
    for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.9):  # the median pruner asks for five to compare with
        study.optuna.enqueue_trial({"model.x": x})
    trials = run(sweep)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    pruned = trials[-1]
    assert pruned.params == {"model.x": 0.9}
    assert len(pruned.intermediate_values) < EPOCHS
    assert pruned.user_attrs["best"] == 0
    assert study_of(sweep).is_complete()
    assert len(run(sweep)) == 6


def test_trials_with_trackers_are_told_what_they_belong_to():
    trials = run(sweep_of({"a": {}, "b": {"logger": ["csv", "mlflow"]}}, seeds=(1,)))
    commands = {trial.user_attrs["row"]: trial.user_attrs["command"] for trial in trials}
    assert "--group" not in commands["a"]
    assert commands["b"].endswith("--group s-p/b")
