"""The queue of a sweep: who may take what, and what must be run again."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from lightning_overlock.errors import InputError
from lightning_overlock.sweep import study as study_module
from lightning_overlock.sweep.spec import Row, Search, Sweep
from lightning_overlock.sweep.study import Ended, Study, identity, open_storage

KEYS = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep_of(**changes):
    rows = {"a": Row("a", "A", {}), "b": Row("b", "B", {"model.lr": 0.1})}
    sweep = Sweep(
        name="s",
        title="s",
        profile="p",
        data="",
        configs=["quickstart"],
        options={"model.backbone": "x"},
        metric="val/top1",
        direction="maximize",
        seeds=[1, 2],
        rows=rows,
        baseline="a",
        columns=[],
        search=None,
        path=Path("s.yaml"),
    )
    return dataclasses.replace(sweep, **changes)


def open_study(sweep=None, url="sqlite:///study.db"):
    study = Study(sweep or sweep_of(), open_storage(url), "s-p", create=True)
    with study.alone():
        study.settle()
    return study


class Worker:
    """One worker's part of the runner, step by step and without a process."""

    def __init__(self, study, retries=10):
        self.study = study
        self.retries = retries
        self.trial = None

    def take(self):
        """Take a trial as the runner does; it then counts as running until it ends."""
        study = self.study
        with study.alone():
            if not study.prepare(self.retries):
                return False
            study.optuna._thread_local.in_optimize_loop = True  # as in `optimize`
            trial = study.optuna.ask()
            study.storage.record_heartbeat(trial._trial_id)
            try:
                study.claim(trial)
            except Ended:
                study.optuna.tell(trial, state=TrialState.FAIL)
            else:
                self.trial = trial
        return True

    def finish(self):
        self.study.optuna.tell(self.trial, 0.5)
        self.trial = None

    def fail(self):
        self.trial.set_user_attr("error", "broken")
        self.study.optuna.tell(self.trial, state=TrialState.FAIL)
        self.trial = None

    def die(self):
        """Leave the trial running, with no sign of life since long ago."""
        self.trial.set_user_attr("runner", "elsewhere 1 1")
        with self.study.storage.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00' "
                f"WHERE trial_id = {self.trial._trial_id}"
            )
        self.trial = None


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_runners_do_each_row_and_seed_completes_once(data, tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    workers = [Worker(open_study(url=url)) for _ in range(3)]
    losses = Counter()

    def check():
        trials = workers[0].study.trials()
        held = Counter(
            (t.params["row"], t.params["seed"])
            for t in trials
            if t.state in {TrialState.RUNNING, TrialState.COMPLETE}
            and t.user_attrs.get("runner") != "elsewhere 1 1"
        )
        assert all(count == 1 for count in held.values())
        return trials

    for _ in range(data.draw(st.integers(3, 14), "steps")):
        worker = data.draw(st.sampled_from(workers), "worker")
        if worker.trial is None:
            step = data.draw(st.sampled_from(["take", "take", "queue"]), "step")
        else:
            step = data.draw(st.sampled_from(["finish", "fail", "die"]), "step")
        if step == "queue":  # by hand, or by a runner of another make
            row, seed = data.draw(st.sampled_from(KEYS), "key")
            worker.study.optuna.enqueue_trial({"row": row, "seed": seed})
        elif step in {"fail", "die"}:
            losses[worker.trial.params["row"], worker.trial.params["seed"]] += 1
            getattr(worker, step)()
        else:
            getattr(worker, step)()
        check()
    for worker in workers:
        if worker.trial is not None:
            worker.finish()
    while workers[0].take():
        if workers[0].trial is not None:
            workers[0].finish()
    trials = check()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert sorted((t.params["row"], t.params["seed"]) for t in complete) == KEYS
    # What was lost was run again once for each loss; what stood twice in the queue never ran.
    ran = Counter(
        (t.params["row"], t.params["seed"]) for t in trials if "duplicate_of" not in t.user_attrs
    )
    assert ran == Counter({key: 1 + losses[key] for key in KEYS})
    for trial in trials:
        assert trial.params.keys() == {"row", "seed"}
        if "duplicate_of" in trial.user_attrs:
            assert trial.state == TrialState.FAIL
            other = trials[trial.user_attrs["duplicate_of"]]
            assert other.params == trial.params


@pytest.mark.parametrize("twice", [False, True])
def test_workers_at_the_same_time_take_every_trial_once(twice):
    """Each thread has a connection of its own, as runners in processes of their own have."""
    sweep = sweep_of(seeds=list(range(6)))
    first = open_study(sweep)
    if twice:
        for seed in sweep.seeds:
            for row in ("a", "b", "a"):
                first.optuna.enqueue_trial({"row": row, "seed": seed})
    taken, errors = [], []

    def work(number):
        worker = Worker(Study(sweep, open_storage("sqlite:///study.db"), "s-p"))
        try:
            while worker.take():
                if worker.trial is not None:
                    taken.append((worker.trial.params["row"], worker.trial.params["seed"]))
                    worker.finish()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(taken) == [(row, seed) for row in "ab" for seed in sweep.seeds]
    trials = first.trials()
    assert all(t.params.keys() == {"row", "seed"} for t in trials)  # none that nobody asked for
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 12
    assert len(trials) == (18 if twice else 12)


def test_a_stale_trial_is_queued_once_however_many_runners_look():
    workers = [Worker(open_study()) for _ in range(3)]
    workers[0].take()
    workers[0].die()
    for worker in workers:
        with worker.study.alone():
            assert worker.study.prepare(retries=0)
    trials = workers[0].study.trials()
    waiting = [t for t in trials if t.state == TrialState.WAITING]
    assert len(waiting) == 3  # the first queue's rest
    for worker in workers:
        while worker.take():
            worker.finish()
    trials = workers[0].study.trials()
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 4, TrialState.FAIL: 1}


def test_a_trial_with_a_fresh_heartbeat_is_left_alone():
    worker, other = Worker(open_study()), Worker(open_study())
    worker.take()
    worker.trial.set_user_attr("runner", "elsewhere 1 1")
    other.study.optuna.enqueue_trial(worker.trial.params)
    while other.take():
        if other.trial is not None:
            other.finish()
    trials = other.study.trials()
    assert trials[worker.trial.number].state == TrialState.RUNNING
    assert trials[4].user_attrs["duplicate_of"] == worker.trial.number
    worker.finish()


def test_a_dead_runner_on_this_machine_is_noticed_at_once():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place, _, _ = identity().split()
    theirs = f"{place} {child.pid} {study_module._start(child.pid)}"
    assert not study_module._is_gone(theirs)
    assert not study_module._is_gone(identity())
    # A later process with its number is another one.
    assert study_module._is_gone(f"{place} {os.getpid()} 1")
    assert not study_module._is_gone(f"another-machine {os.getpid()} 1")
    worker, other = Worker(open_study()), Worker(open_study())
    worker.take()
    worker.trial.set_user_attr("runner", theirs)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass  # killed, but not yet waited for
    assert study_module._is_gone(theirs)
    child.communicate()
    with other.study.alone():
        other.study.prepare(retries=0)
    assert other.study.trials()[worker.trial.number].state == TrialState.FAIL


def test_a_trial_that_nobody_asked_for_ends_at_once():
    study = open_study()
    study.optuna._thread_local.in_optimize_loop = True
    trial = study.optuna.ask()  # what `optimize` does past the end of the queue
    with study.alone(), pytest.raises(Ended, match="no row was queued"):
        study.claim(trial)
    assert trial.params == {}


def test_seeds_come_first_so_that_every_row_is_there_early():
    study = open_study()
    with study.alone():
        study.prepare(retries=1)
    queued = [t.system_attrs["fixed_params"] for t in study.trials()]
    assert [tuple(q.values()) for q in queued] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


# A sweep file that has changed


def run_one(study):
    worker = Worker(study)
    worker.take()
    worker.finish()


def refused(sweep):
    with pytest.raises(InputError) as error:
        open_study(sweep)
    lines = str(error.value).splitlines()
    assert len(lines) <= 3
    assert "--name" in lines[-1]
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"options": {"model.backbone": "y"}}, "options.model.backbone: found y, but the study "),
        ({"options": {"model.backbone": "x", "model.lr": 1}}, "options.model.lr: found 1, but "),
        ({"metric": "val/loss"}, "metric: found val/loss, but the study s-p was started with val/"),
        ({"configs": ["cluttered"]}, "configs.quickstart: found nothing"),
        (
            {"rows": {"a": Row("a", "A", {"model.lr": 3}), "b": Row("b", "B", {})}},
            "rows.a.options.model.lr: found 3",
        ),
    ],
)
def test_changed_settings_are_refused_with_their_key(changes, key):
    run_one(open_study())
    assert refused(sweep_of(**changes)).startswith(f"s.yaml, {key}")


def test_what_changes_no_result_may_change():
    run_one(open_study())
    rows = {"a": Row("a", "other words", {}, {"top1": 1.0, "source": "x"}), "c": Row("c", "C", {})}
    open_study(sweep_of(title="new", rows=rows, columns=["metric"], data="words"))
    # A row that has not been run has no results to mix.
    open_study(sweep_of(rows={**sweep_of().rows, "b": Row("b", "B", {"model.lr": 7})}))


def test_a_row_that_was_left_out_for_a_while_is_remembered():
    run_one(open_study())
    open_study(sweep_of(rows={"b": Row("b", "B", {"model.lr": 0.1})}, baseline="b"))
    changed = {**sweep_of().rows, "a": Row("a", "A", {"model.lr": 3})}
    assert "rows.a.options.model.lr" in refused(sweep_of(rows=changed))


def test_a_configuration_file_of_ones_own_is_part_of_the_sweep():
    Path("mine.yaml").write_text("trainer:\n  max_epochs: 3\n")
    run_one(open_study(sweep_of(configs=["./mine.yaml"])))
    open_study(sweep_of(configs=["./mine.yaml"]))
    Path("mine.yaml").write_text("trainer:\n  max_epochs: 4\n")
    line = refused(sweep_of(configs=["./mine.yaml"]))
    assert line.startswith("s.yaml, configs.mine.yaml.trainer.max_epochs: found 4, but the study")


def test_rows_are_not_added_while_others_run():
    worker = Worker(open_study())
    worker.take()
    rows = {**sweep_of().rows, "c": Row("c", "C", {})}
    with pytest.raises(InputError, match="while trials of s-p are running"):
        open_study(sweep_of(rows=rows))
    worker.finish()
    open_study(sweep_of(rows=rows))


def test_a_search_goes_on_with_more_trials_but_not_in_another_space():
    space = {"model.x": FloatDistribution(0, 1)}
    search = Search(space, "random", "none", 2)
    sweep = sweep_of(rows={}, baseline="", search=search)
    run_one(open_study(sweep))
    open_study(dataclasses.replace(sweep, search=dataclasses.replace(search, trials=5)))
    other = dataclasses.replace(search, space={"model.x": FloatDistribution(0, 2)})
    assert "search.space.model.x" in refused(dataclasses.replace(sweep, search=other))
    assert "seeds" in refused(dataclasses.replace(sweep, seeds=[7]))


def test_added_rows_leave_the_parameters_of_earlier_trials_alone():
    names = list("dbeacf")
    rows = {name: Row(name, name, {}) for name in names}
    for count in (2, 3, 6):
        some = {name: rows[name] for name in names[:count]}
        study = open_study(sweep_of(rows=some, baseline=names[0], seeds=[1, *range(9, 6 + count)]))
        worker = Worker(study)
        while worker.take():
            worker.finish()
    trials = study.trials()
    expected = [t.user_attrs["folder"] for t in trials]
    assert ["{row}-seed{seed}".format(**t.params) for t in trials] == expected
    assert len(set(expected)) == len(trials)
    assert {t.distributions["row"].choices for t in trials} == {tuple(names)}


# Storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("study.db", "--storage study.db: this is no database URL."),
        ("sqlite:////nowhere/at/all.db", "--storage sqlite:////nowhere/at/all.db: cannot be op"),
        ("nosql://host/x", "--storage nosql://host/x: the driver of this database is not inst"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(url, expected, monkeypatch):
    monkeypatch.setattr(study_module.time, "sleep", lambda _: None)
    with pytest.raises(InputError) as error:
        open_storage(url)
    assert str(error.value).startswith(expected)
    assert len(str(error.value).splitlines()) <= 3


def test_a_password_is_not_printed(monkeypatch):
    monkeypatch.setattr(study_module.time, "sleep", lambda _: None)
    with pytest.raises(InputError) as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)
    assert "postgresql+psycopg://me:***@127.0.0.1:1/x" in str(error.value)


def test_a_study_that_was_never_started_is_named():
    open_study()
    with pytest.raises(InputError, match=r"(?s)^t-p: no study of this name.*There are: s-p\."):
        Study(sweep_of(), open_storage("sqlite:///study.db"), "t-p")


def test_the_study_holds_plain_types_that_other_programs_read():
    study = open_study()
    run_one(study)
    text = yaml.safe_dump(study.optuna.user_attrs)  # refuses anything but plain types
    assert yaml.safe_load(text)["sweep"]["options"] == {"model.backbone": "x"}
    loaded = optuna.load_study(study_name="s-p", storage="sqlite:///study.db")
    assert loaded.best_value == 0.5
    assert str(Path.cwd()) not in text
