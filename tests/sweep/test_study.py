"""The queue of a sweep: who may take what, and what must be run again."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import optuna
import pytest
import sqlalchemy
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from lightning_overlock.errors import InputError
from lightning_overlock.sweep import storage as storage_module
from lightning_overlock.sweep import study as study_module
from lightning_overlock.sweep.parts import Paper, Row, Search, Tune
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import (
    find_study,
    identity,
    is_gone,
    open_storage,
    own_url,
)
from lightning_overlock.sweep.study import Study, TrialEnded
from lightning_overlock.sweep.trials import Request

KEYS = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


pytestmark = pytest.mark.usefixtures("workplace")


def sweep_of(**changes):
    rows = {"a": Row(label="A"), "b": Row(label="B", options={"model.lr": 0.1})}
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
    return sweep.model_copy(update=changes)


def open_study(sweep=None, url="sqlite:///study.db"):
    study = Study(sweep or sweep_of(), open_storage(url), "s-p", create=True)
    study.reconcile()
    return study


@pytest.mark.parametrize(
    "name",
    [
        "a*[b]", "a{b}", "100%", "%s", "a#b", "a&b=c", "a;b", "it's", '"a"', "caf\u00e9",
        "cafe\u0301", "\N{FOX FACE}" * 60, "x" * 240, "\u0645\u0631\u062d\u0628\u0627", "A", "a",
    ],
    ids=range(16),
)  # fmt: skip
def test_a_study_of_any_name_is_found_again(name):
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    url = own_url(folder)
    made = Study(sweep_of(), open_storage(url), name, create=True)
    made.reconcile()
    assert (folder / "study.db").is_file()
    _, found, where = find_study(name, Path("runs"), None)
    assert found.study_name == name
    assert where == folder
    assert len(found.trials) == len(made.trials())


@pytest.mark.parametrize("name", ["a?b", "what?mode=ro", "100%41"])
def test_a_path_that_a_url_cannot_hold_is_refused(name, monkeypatch):
    """It was cut off at the question mark, and the database lay elsewhere."""
    file = Path("runs", name, "study.db")
    with contextlib.suppress(InputError):  # SQLAlchemy before 2.1
        assert sqlalchemy.make_url(own_url(file.parent)).database == str(file)
    monkeypatch.setattr(sqlalchemy, "make_url", lambda _: sqlalchemy.URL.create("sqlite"))
    with pytest.raises(InputError, match=r"found \? or % in a path that becomes a database's URL"):
        own_url(file.parent)


class Worker:
    """One worker's part of the runner, step by step and without a process."""

    def __init__(self, study, retries=10, only=None):
        self.study = study
        self.request = Request(retries, only=only)
        self.claim = None

    @property
    def key(self):
        return self.claim.job.row, self.claim.job.seed

    def take(self):
        """Take a trial as the runner does; it then counts as running until it ends."""
        self.claim = self.study.take(self.request)
        return self.claim is not None

    def finish(self, value=0.5):
        self.study.finish(self.claim, TrialState.COMPLETE, {}, value)
        self.claim = None

    def fail(self, **attributes):
        self.study.finish(self.claim, TrialState.FAIL, {"error": "broken"} | attributes)
        self.claim = None

    def die(self):
        """Leave the trial running; its runner on this machine is gone."""
        place, _, _ = identity().split()
        self.claim.trial.set_user_attr("runner", f"{place} {os.getpid()} 1")
        self.claim = None


@pytest.mark.long
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_runners_do_each_row_and_seed_completes_once(data, tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    workers = [Worker(open_study(url=url)) for _ in range(3)]
    losses = Counter()

    def check():
        trials = workers[0].study.trials()
        held = Counter(
            t.user_attrs["folder"]
            for t in trials
            if t.state in {TrialState.RUNNING, TrialState.COMPLETE}
            and not is_gone(t.user_attrs["runner"])
        )
        assert all(count == 1 for count in held.values())
        return trials

    for _ in range(data.draw(st.integers(3, 14), "steps")):
        worker = data.draw(st.sampled_from(workers), "worker")
        if worker.claim is None:
            worker.take()
        else:
            step = data.draw(st.sampled_from(["finish", "fail", "die"]), "step")
            if step != "finish":
                losses[worker.key] += 1
            getattr(worker, step)()
        check()
    for worker in workers:
        if worker.claim is not None:
            worker.finish()
    while workers[0].take():
        workers[0].finish()
    trials = check()
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    assert sorted((t.user_attrs["row"], t.user_attrs["seed"]) for t in complete) == KEYS
    # What was lost was run again, once for each loss.
    ran = Counter((t.user_attrs["row"], t.user_attrs["seed"]) for t in trials)
    assert ran == Counter({key: 1 + losses[key] for key in KEYS})
    assert all(trial.params.keys() == {"row", "seed"} for trial in trials)


def test_workers_at_the_same_time_take_every_trial_once():
    """Each thread has a connection of its own, as runners in processes of their own have."""
    sweep = sweep_of(seeds=list(range(6)))
    first = open_study(sweep)
    # By hand, in Optuna's dashboard: nobody asked for it.
    first.optuna.enqueue_trial({"row": "a", "seed": 3})
    taken, errors = [], []

    def work(number):
        worker = Worker(Study(sweep, open_storage("sqlite:///study.db"), "s-p"))
        try:
            while worker.take():
                taken.append(worker.key)
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
    states = Counter(t.state for t in first.trials())
    assert states == {TrialState.COMPLETE: 12, TrialState.FAIL: 1}


def test_a_stale_trial_is_run_again_once_however_many_runners_look():
    workers = [Worker(open_study()) for _ in range(3)]
    workers[0].take()
    workers[0].die()
    for worker in workers:
        while worker.take():
            worker.finish()
    trials = workers[0].study.trials()
    assert Counter(t.state for t in trials) == {TrialState.COMPLETE: 4, TrialState.FAIL: 1}


def test_a_trial_that_shows_signs_of_life_is_left_alone(monkeypatch):
    """Of a runner on another machine; without a change for too long it is given up."""
    worker, other = Worker(open_study()), Worker(open_study())
    worker.take()
    claim = worker.claim
    claim.trial.set_user_attr("runner", "another-machine 1 1")
    number = claim.trial.number
    now = [0.0]
    monkeypatch.setattr(study_module.time, "monotonic", lambda: now[0])
    while other.take():
        other.finish()
    for second in (50, 100):
        now[0] = second
        claim.trial.set_user_attr("heartbeat", f"sign {second}")
        assert not other.take()
    now[0] = 155
    assert not other.take()
    assert other.study.trials()[number].state == TrialState.RUNNING
    now[0] = 165
    assert other.take()
    assert other.key == ("a", 1)
    with pytest.raises(TrialEnded, match="taken by another runner"):
        worker.study.beat(claim)
    with pytest.raises(TrialEnded, match="taken by another runner"):
        worker.finish()


def test_a_dead_runner_on_this_machine_is_noticed_at_once():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place, _, _ = identity().split()
    theirs = f"{place} {child.pid} {storage_module._start(child.pid)}"
    assert not is_gone(theirs)
    assert not is_gone(identity())
    # A later process with its number is another one.
    assert is_gone(f"{place} {os.getpid()} 1")
    assert not is_gone(f"another-machine {os.getpid()} 1")
    worker, other = Worker(open_study()), Worker(open_study())
    worker.take()
    number = worker.claim.trial.number
    worker.claim.trial.set_user_attr("runner", theirs)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass  # killed, but not yet waited for
    assert is_gone(theirs)
    child.communicate()
    other.take()
    assert other.study.trials()[number].state == TrialState.FAIL


def test_waiting_trials_show_row_seed_and_label():
    worker = Worker(open_study())
    worker.take()
    waiting = [t for t in worker.study.trials() if t.state == TrialState.WAITING]
    assert len(waiting) == 3
    for trial in waiting:
        assert {"row", "seed", "label", "folder"} <= trial.user_attrs.keys()
    assert worker.study.optuna.metric_names == ["val/top1"]


def test_a_failure_that_repeats_is_not_tried_again_unless_asked_for():
    worker = Worker(open_study())
    worker.take()
    worker.fail(repeats=True)
    while worker.take():
        assert worker.key != ("a", 1)
        worker.finish()
    count = len(worker.study.trials())
    again = Request(0, ignore_failures_before=count)
    assert worker.study.take(again) is None
    claim = worker.study.take(dataclasses.replace(again, retry_failed=True))
    assert (claim.job.row, claim.job.seed) == ("a", 1)


def test_only_the_rows_asked_for_are_taken():
    everything, some = Worker(open_study()), Worker(open_study(), only=["b"])
    everything.take()  # the others wait in the queue
    everything.finish()
    taken = []
    while some.take():
        taken.append(some.key)
        some.finish()
    assert sorted(taken) == [("b", 1), ("b", 2)]
    while everything.take():
        everything.finish()
    assert everything.study.is_complete()


def tuned(**changes):
    tune = Tune(options={"model.lr": [0.1, 0.2, 0.4]}, seeds=[90, 91])
    return sweep_of(tune=tune, **changes)


@pytest.mark.parametrize(("direction", "best"), [("maximize", 0.2), ("minimize", 0.4)])
def test_each_row_is_tuned_and_its_reported_seeds_use_the_best(direction, best):
    # The mean over the tuning's seeds counts: 0.1 has the best single value.
    scores = {0.1: (0.9, 0.1), 0.2: (0.6, 0.7), 0.4: (0.3, 0.2)}
    worker = Worker(open_study(tuned(direction=direction)))
    order = []
    while worker.take():
        job = worker.claim.job
        order.append(job)
        if job.point is None:
            worker.finish()
        else:
            worker.finish(scores[job.point["model.lr"]][job.seed - 90])
    assert [job.point is None for job in order] == [False] * 12 + [True] * 4
    assert len({job.folder for job in order}) == 16
    assert {job.seed for job in order[:12]} == {90, 91}
    assert {job.options["model.lr"] for job in order[12:]} == {best}
    assert worker.study.is_complete()


def test_a_point_that_fails_is_out_and_a_row_without_any_has_no_result():
    worker = Worker(open_study(tuned()), retries=0)
    taken = []
    while worker.take():
        job = worker.claim.job
        taken.append(job)
        if job.point and (job.row == "a" or job.point["model.lr"] == 0.2):
            worker.fail()
        else:
            worker.finish(job.options["model.lr"])
    reported = [job for job in taken if job.point is None]
    assert {job.row for job in reported} == {"b"}
    assert {job.options["model.lr"] for job in reported} == {0.4}
    assert not worker.study.is_complete()


def test_studies_of_version_0_1_are_refused_with_what_to_do():
    optuna.create_study(study_name="s-p", storage="sqlite:///study.db")
    with pytest.raises(InputError, match=r"another version(.|\n)*--name") as error:
        open_study()
    assert len(str(error.value).splitlines()) <= 3


def test_seeds_come_first_so_that_every_row_is_there_early():
    study = open_study()
    study.take(Request())
    queued = [(t.user_attrs["row"], t.user_attrs["seed"]) for t in study.trials()]
    assert queued == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


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
        ({"metric": "val/loss"}, "metric: found val/loss, but the study s-p was run with val/"),
        ({"configs": ["cluttered"]}, "configs.quickstart: found nothing"),
        (
            {"rows": {"a": Row(options={"model.lr": 3}), "b": Row()}},
            "rows.a.options.model.lr: found 3",
        ),
    ],
)
def test_changed_settings_are_refused_with_their_key(changes, key):
    run_one(open_study())
    assert refused(sweep_of(**changes)).startswith(f"s.yaml, {key}")


def test_what_changes_no_result_may_change():
    run_one(open_study())
    rows = {"a": Row(label="other words", paper=Paper(top1=1.0, source="x")), "c": Row()}
    open_study(sweep_of(title="new", rows=rows, columns=["metric"], data="words"))
    # A row that has not been run has no results to mix.
    open_study(sweep_of(rows={**sweep_of().rows, "b": Row(options={"model.lr": 7})}))


def test_a_row_that_was_left_out_for_a_while_is_remembered():
    run_one(open_study())
    open_study(sweep_of(rows={"b": Row(options={"model.lr": 0.1})}, baseline="b"))
    changed = {**sweep_of().rows, "a": Row(options={"model.lr": 3})}
    assert "rows.a.options.model.lr" in refused(sweep_of(rows=changed))


def test_a_configuration_file_of_ones_own_is_part_of_the_sweep():
    Path("mine.yaml").write_text("trainer:\n  max_epochs: 3\n")
    run_one(open_study(sweep_of(configs=["./mine.yaml"])))
    open_study(sweep_of(configs=["./mine.yaml"]))
    Path("mine.yaml").write_text("trainer:\n  max_epochs: 4\n")
    line = refused(sweep_of(configs=["./mine.yaml"]))
    assert line.startswith("s.yaml, configs.mine.yaml.trainer.max_epochs: found 4, but the study")


def test_rows_may_be_added_while_others_run():
    worker = Worker(open_study())
    worker.take()
    other = Worker(open_study(sweep_of(rows={**sweep_of().rows, "c": Row()})))
    while other.take():
        other.finish()
    worker.finish()
    assert other.study.is_complete()


def test_a_search_goes_on_with_more_trials_but_not_in_another_space():
    search = Search(space={"model.x": {"float": [0, 1]}}, sampler="random", trials=2)
    sweep = sweep_of(rows={}, baseline="", search=search)
    run_one(open_study(sweep))
    open_study(sweep.model_copy(update={"search": search.model_copy(update={"trials": 5})}))
    other = search.model_copy(update={"space": {"model.x": {"float": [0, 2]}}})
    assert "search.space.model.x" in refused(sweep.model_copy(update={"search": other}))
    assert "seeds" in refused(sweep.model_copy(update={"seeds": [7]}))


# Storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("study.db", "--storage study.db: this is no database URL."),
        ("sqlite:////nowhere/at/all.db", "--storage sqlite:////nowhere/at/all.db: cannot be op"),
        ("mysql://host/x", "--storage mysql://host/x: found a database of another kind."),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(url, expected, monkeypatch):
    monkeypatch.setattr(storage_module.time, "sleep", lambda _: None)
    with pytest.raises(InputError) as error:
        open_storage(url)
    assert str(error.value).startswith(expected)
    assert len(str(error.value).splitlines()) <= 3


def test_a_password_is_not_printed(monkeypatch):
    monkeypatch.setattr(storage_module.time, "sleep", lambda _: None)
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
