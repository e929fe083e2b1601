"""Where figures go: names, refusals, and what W&B and MLflow hold after real runs."""

import importlib.util
import json
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml
from callbacks.wandb_file import finished_records
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from shared import csv_rows

from lightning_overlock.callbacks.trackers import (
    TrackedRun,
    log_results,
    loggers_of,
    tracker_names,
)
from lightning_overlock.cli.build import build
from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.runs.config import hash_of

FIT = [
    "fit", "--config", "quickstart", "--model.backbone", "test_convnext",
    "--model.reestimate_bn", "0", "--trainer.limit_train_batches", "2",
    "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1",
    "--data.num_workers", "0", "--data.image_size", "32",
]  # fmt: skip
needs = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed (an extra)"
    )
    for name in ("wandb", "mlflow")
}
# Both libraries use what newer ones deprecate, and Lightning an argument that W&B has dropped.
quiet = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["tensorboard"]),
        ("csv", ["csv"]),
        ("csv, TensorBoard,csv", ["csv", "tensorboard"]),
        (["csv", "tensorboard"], ["csv", "tensorboard"]),
        ("none", []),
        ("", ["tensorboard"]),
    ],
)
def test_names_of_trackers(given, expected):
    assert tracker_names(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wand", "Did you mean 'wandb'"),
        ("none,csv", "'none' stands alone"),
        (["csv", "None"], "'none' stands alone"),
        ("tensorboard;csv", "no logger of this name"),
    ],
)
def test_other_names_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        tracker_names(given)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"pip install 'lightning-overlock\[{name}\]'"):
        tracker_names(name)


def test_loggers_write_into_the_run_folder(tmp_path):
    run = TrackedRun("a", tmp_path / "a", "", {})
    board, table = loggers_of(["tensorboard", "csv"], run)
    assert isinstance(board, TensorBoardLogger)
    assert isinstance(table, CSVLogger)
    assert Path(board.log_dir) == tmp_path / "a"
    assert table.log_dir == str(tmp_path / "a" / "csv" / "version_0")
    assert not (tmp_path / "a").exists()


def test_the_hash_is_that_of_the_recipe():
    config = {"model": {"init_args": {"lr": 0.1}}, "seed_everything": 1, "logger": "csv"}
    same = config | {"seed_everything": 2, "logger": ["wandb"], "group": "x", "name": "y"}
    assert hash_of(config) == hash_of(same)
    assert hash_of(config) != hash_of(config | {"model": {"init_args": {"lr": 0.2}}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logger", "tensorbord"], "Did you mean 'tensorboard'"),
        (["--logger", "csv", "--logger", "none"], "'none' stands alone"),
        (["--logger", "csv", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir=x"],
         "--trainer.logger is given as well"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_training(workplace, words, message, capsys):
    assert main([*FIT, *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) <= 3
    assert not (workplace / "runs").exists()


def test_a_sweeps_row_with_an_unknown_logger_is_refused_when_it_is_built():
    with pytest.raises(InputError, match="no logger of this name"):
        build([*FIT, "--logger=mlfow"])


def test_evaluations_have_no_use_for_a_logger(workplace, capsys):
    assert main(["validate", "--config", "quickstart", "--logger", "csv"]) == 2
    assert "makes no use of this option" in capsys.readouterr().err


@quiet
def test_csv_beside_tensorboard(workplace, capsys):
    words = ["--trainer.max_epochs", "1", "--name", "both"]
    assert main([*FIT, *words, "--logger", "csv", "--logger", "tensorboard"]) == 0
    folder = workplace / "runs" / "both"
    rows = csv_rows(folder / "csv" / "version_0" / "metrics.csv")
    assert [row["train/loss_step"] for row in rows if row["train/loss_step"]]
    hparams = yaml.safe_load((folder / "csv" / "version_0" / "hparams.yaml").read_text())
    assert hparams["model.backbone"] == "test_convnext"
    assert hparams["seed_everything"] == 42
    assert list(folder.glob("events.out*"))


@pytest.fixture
def no_network(monkeypatch):
    """Notes every connection to another machine than this one."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, abroad = socket.socket.connect, []

    def connect(self, address):
        local = self.family == socket.AF_UNIX or address[0] in {"127.0.0.1", "::1", "localhost"}
        if not local:
            abroad.append(address)
            raise OSError("no network here")
        return before(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return abroad


@quiet
@needs["mlflow"]
@pytest.mark.slow
def test_mlflow_holds_a_run_that_was_continued(workplace, no_network):
    from mlflow.tracking import MlflowClient

    words = [*FIT, "--name", "a run (1)", "--group", "sweep/row", "--logger", "mlflow"]
    assert main([*words, "--trainer.max_epochs", "1", "--ema.decay", "0.9"]) == 0
    again = ["fit", "--name", "a run (1)", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main(again) == 0
    client = MlflowClient(f"sqlite:///{workplace / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_overlock").experiment_id])
    folder = workplace / "runs" / "a run (1)"
    assert run.info.run_name == "a run (1)"
    assert run.info.status == "FINISHED"
    assert {key: run.data.tags[key] for key in ("seed", "group")} == {
        "seed": "42",
        "group": "sweep/row",
    }
    assert len(run.data.tags["hash"]) == 16
    assert run.data.params["model.backbone"] == "test_convnext"
    assert run.data.params["ema.decay"] == "0.9"
    history = client.get_metric_history(run.info.run_id, "val/top1")
    expected = [float(row["val/top1"]) for row in csv_rows(folder / "metrics.csv")]
    assert [found.value for found in history] == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 2
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"checkpoints", "config.yaml", "metrics.csv", "predictions"}
    pictures = client.list_artifacts(run.info.run_id, "predictions/0")
    assert [p.path for p in pictures] == [f"predictions/0/step_{s:08d}.png" for s in (2, 4)]
    model = client.get_model_version_by_alias("a-run--1-", "best")
    assert model.run_id == run.info.run_id
    path = client.download_artifacts(run.info.run_id, "checkpoints/best.ckpt", str(workplace))
    kept = torch.load(path, weights_only=True)
    assert "current_model_state" in kept  # `state_dict` is the average
    assert kept["global_step"] == torch.load(folder / "checkpoints/best.ckpt")["global_step"]
    assert no_network == []
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@quiet
@needs["wandb"]
@pytest.mark.slow
def test_wandb_writes_a_run_offline(workplace, no_network):
    words = [*FIT, "--name", "a run (1)", "--group", "sweep/row", "--logger", "wandb,tensorboard"]
    assert main([*words, "--trainer.max_epochs", "1"]) == 0
    again = ["fit", "--name", "a run (1)", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main(again) == 0
    folder = workplace / "runs" / "a run (1)"
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    first, second = map(finished_records, paths)
    runs = [r.run for found in (first, second) for kind, r in found if kind == "run"]
    identity = json.loads((folder / "trackers.json").read_text())["wandb"]
    assert {run.run_id for run in runs} == {identity}
    assert {(run.display_name, run.run_group) for run in runs} == {("a run (1)", "sweep/row")}
    seed, recipe = runs[0].tags
    assert seed == "seed 42"
    assert recipe.startswith("hash ")
    options = {
        entry.key: json.loads(entry.value_json)
        for kind, r in first
        if kind == "config"
        for entry in r.config.update
    }
    assert options["model.backbone"] == "test_convnext"
    values = [
        json.loads(item.value_json)
        for found in (first, second)
        for kind, r in found
        if kind == "history"
        for item in r.history.item
        if "val/top1" in (item.key, *item.nested_key)
    ]
    expected = [float(row["val/top1"]) for row in csv_rows(folder / "metrics.csv")]
    assert values == pytest.approx(expected, abs=1e-6)
    for found in (first, second):
        artifacts = {r.artifact.type: r.artifact for kind, r in found if kind == "artifact"}
        assert artifacts["model"].name == "a-run--1-"
        assert "best" in artifacts["model"].aliases
        contents = [file.path for file in artifacts["results"].manifest.contents]
        assert contents == ["config.yaml", "metrics.csv"]
        assert [r.exit.exit_code for kind, r in found if kind == "exit"] == [0]
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/predictions/*.png"))) == 8
    assert no_network == []


@quiet
@needs["mlflow"]
@needs["wandb"]
@pytest.mark.slow
def test_a_sweeps_tables_become_a_run_of_their_own(tmp_path, no_network):
    from mlflow.tracking import MlflowClient

    files = [tmp_path / "table.csv", tmp_path / "report.html", tmp_path / "missing"]
    for file in files[:2]:
        file.write_text("content")
    run = TrackedRun("a sweep", tmp_path / "results", "a sweep", {})
    log_results(["tensorboard", "wandb", "mlflow"], run, files)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (found,) = client.search_runs(
        [client.get_experiment_by_name("lightning_overlock").experiment_id]
    )
    assert found.info.status == "FINISHED"
    assert {f.path for f in client.list_artifacts(found.info.run_id)} == {
        "table.csv",
        "report.html",
    }
    (path,) = tmp_path.glob("results/wandb/offline-run-*/*.wandb")
    (artifact,) = (r.artifact for kind, r in finished_records(path) if kind == "artifact")
    assert [f.path for f in artifact.manifest.contents] == ["report.html", "table.csv"]
    assert no_network == []
