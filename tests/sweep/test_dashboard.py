"""What optuna-dashboard shows of a study, and the command that starts it."""

import json
import socket
import sys
import threading
from pathlib import Path
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna_dashboard
import pytest
from optuna.trial import TrialState

from lightning_overlock.cli.main import main
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

FILE = """\
metric: val/top1
baseline: b
rows: {a: {label: without gate, options: {model.lr: 1}}, b: {label: with gate}}
profiles: {p: {configs: [quickstart], seeds: [1, 2]}}
"""


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A study of which one trial is complete and three wait."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(FILE)
    Path("runs/mine-p").mkdir(parents=True)
    found = open_storage("sqlite:///runs/mine-p/study.db")
    study = Study(read("./mine.yaml"), found, "mine-p", create=True)
    study.reconcile()
    claim = study.take(Request())
    claim.trial.report(0.4, 0)
    study.finish(claim, TrialState.COMPLETE, {}, 0.5)
    return found


@pytest.fixture
def ask(storage):
    """Answers of optuna-dashboard, which listens on 127.0.0.1."""

    class Silent(WSGIRequestHandler):
        def log_message(self, *args):
            pass

    server = make_server("127.0.0.1", 0, optuna_dashboard.wsgi(storage), handler_class=Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(path):
        with urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=20) as answer:
            return json.load(answer)

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_row_seed_metric_and_label_are_seen(ask):
    (listed,) = ask("/api/studies")["study_summaries"]
    assert listed["study_name"] == "mine-p"
    found = ask(f"/api/studies/{listed['study_id']}?after=0")
    assert found["objective_names"] == ["val/top1"]
    attributes = [
        {mark["key"]: mark["value"] for mark in trial["user_attrs"]} for trial in found["trials"]
    ]
    # Those that wait too.
    assert [(a["row"], a["seed"], a["label"]) for a in attributes] == [
        ("a", "1", "without gate"),
        ("b", "1", "with gate"),
        ("a", "2", "without gate"),
        ("b", "2", "with gate"),
    ]
    complete, *waiting = found["trials"]
    assert {trial["state"] for trial in waiting} == {"Waiting"}
    # Parameters, which the dashboard's plots and filters go by.
    parameters = {p["name"]: p["param_external_value"] for p in complete["params"]}
    assert parameters == {"row": "a", "seed": "1"}
    assert complete["values"] == [0.5]
    assert [step["value"] for step in complete["intermediate_values"]] == [0.4]
    fixed = {p["name"]: p["param_external_value"] for p in waiting[0].get("fixed_params", [])}
    assert fixed in ({"row": "b", "seed": "1"}, {})


def test_the_command_serves_this_machine_alone_and_says_where(storage, monkeypatch, capsys):
    served = []
    monkeypatch.setattr(
        optuna_dashboard, "run_server", lambda *arguments: served.append(arguments[1:])
    )
    assert main(["sweep", "dashboard", "mine", "--port", "8123"]) == 0
    assert served == [("127.0.0.1", 8123)]
    assert "http://127.0.0.1:8123/dashboard lists mine-p" in capsys.readouterr().out


def test_without_optuna_dashboard_it_says_how_to_install_it(storage, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["sweep", "dashboard", "mine"]) == 2
    assert "pip install 'lightning-overlock[dashboard]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_so(storage, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["sweep", "dashboard", "mine", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be listened on" in capsys.readouterr().err
    assert main(["sweep", "dashboard", "mine", "--port", "99999"]) == 2
    assert "expected a number from 1 to 65535" in capsys.readouterr().err
