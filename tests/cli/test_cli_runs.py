"""Runs from the command line: their folder, their end and their continuation."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from shared import csv_rows

from lightning_overlock.cli.main import main
from lightning_overlock.runs.lock import claim_run_folder
from lightning_overlock.tasks import ClassificationTask

# Randomness everywhere: augmentation, mixup, drop path; an average to continue as well.
TINY = [
    "--config=quickstart",
    "--model.backbone=test_convnext",
    "--model.backbone_args.drop_path_rate=0.3",
    "--model.mixup=0.8",
    "--ema.decay=0.9",
    "--data.batch_size=32",
    "--data.image_size=32",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
]
# The schedule depends on the number of epochs unless the learning rate stays the same.
CONSTANT = ["--model.lr=1e-3", "--model.min_lr=1e-3", "--model.warmup_epochs=0"]


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_training(first, second):
    """Hold weights, their average and the optimiser of two checkpoints against each other."""
    for key in ("state_dict", "current_model_state"):
        assert first[key].keys() == second[key].keys()
        for name, value in first[key].items():
            assert torch.equal(value, second[key][name]), f"{key} {name}"
    assert (first["epoch"], first["global_step"]) == (second["epoch"], second["global_step"])
    for state, other in zip(
        first["optimizer_states"][0]["state"].values(),
        second["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert torch.equal(state["exp_avg"], other["exp_avg"])
        assert torch.equal(state["exp_avg_sq"], other["exp_avg_sq"])


def test_a_run_folder_holds_what_the_run_was(capsys):
    assert main(["fit", *TINY, "--trainer.max_epochs=2", "--name=mine"]) == 0
    folder = Path("runs/mine")
    best, last = load(folder / "checkpoints/best.ckpt"), load(folder / "checkpoints/last.ckpt")
    assert list(folder.glob("events.out.tfevents.*"))
    text = (folder / "config.yaml").read_text()
    assert best["config"] == last["config"] == text
    config = yaml.safe_load(text)
    assert config["name"] == "mine"
    assert config["model"]["init_args"]["backbone"] == "test_convnext"
    assert config["ema"]["decay"] == 0.9
    assert "ckpt_path" not in config
    assert last["hyper_parameters"]["class_names"] == list("0123456789")
    table = csv_rows(folder / "metrics.csv")
    assert [(row["stage"], row["epoch"], row["step"]) for row in table] == [
        ("fit", "0", "3"),
        ("fit", "1", "6"),
    ]
    for name in ("train/loss", "val/loss", "val/top1", "val/top5", "lr", "train/images_per_second"):
        assert float(table[1][name]) >= 0
    better = max(float(row["val/top1"]) for row in table)
    shown = capsys.readouterr().out
    assert f"best val/top1 {better:.4g}: runs/mine/checkpoints/best.ckpt" in shown
    assert "logs: runs/mine" in shown
    # The folder's own configuration repeats the run.
    assert main(["fit", "--config=runs/mine/config.yaml", "--name=again"]) == 0
    assert_same_training(last, load("runs/again/checkpoints/last.ckpt"))


def test_four_epochs_are_two_and_two(capsys):
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=4", "--name=whole"]) == 0
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=2", "--name=halves"]) == 0
    # The run's own configuration is enough to continue it.
    assert main(["fit", "--ckpt_path=last", "--name=halves", "--trainer.max_epochs=4"]) == 0
    whole, halves = (load(f"runs/{name}/checkpoints/last.ckpt") for name in ("whole", "halves"))
    assert whole["global_step"] == 12
    assert_same_training(whole, halves)
    for one, other in zip(
        *(csv_rows(f"runs/{n}/metrics.csv") for n in ("whole", "halves")), strict=True
    ):
        for name in ("epoch", "step", "val/loss", "val/top1", "train/loss", "lr"):
            assert one[name] == other[name]
    assert not Path("runs/halves.1").exists()


def test_the_best_checkpoint_is_kept_when_a_continued_run_is_worse(monkeypatch):
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=1", "--name=a"]) == 0
    path = Path("runs/a/checkpoints/best.ckpt")
    # A best score that no epoch reaches; the folder moves as well.
    for name in ("last", "best"):
        content = load(path.with_stem(name))
        content["callbacks"]["BestAndLast"]["best_model_score"] = 2.0
        torch.save(content, path.with_stem(name))
    before = path.read_bytes()
    Path("runs").rename("moved")
    monkeypatch.setenv("OVERLOCK_RUNS", "moved")
    assert main(["fit", "--ckpt_path=last", "--name=a", "--trainer.max_epochs=2"]) == 0
    assert Path("moved/a/checkpoints/best.ckpt").read_bytes() == before
    assert load("moved/a/checkpoints/last.ckpt")["epoch"] == 1


def test_an_earlier_run_of_the_name_is_moved_aside(capsys):
    Path("runs/quickstart/checkpoints").mkdir(parents=True)
    Path("runs/quickstart/checkpoints/last.ckpt").write_text("precious")
    Path("runs/quickstart.1").mkdir()
    assert main(["fit", *TINY, "--trainer.max_epochs=1"]) == 0
    assert "runs/quickstart held an earlier run; it is now runs/quickstart.2." in (
        capsys.readouterr().out
    )
    assert Path("runs/quickstart.2/checkpoints/last.ckpt").read_text() == "precious"
    assert load("runs/quickstart/checkpoints/last.ckpt")["epoch"] == 0


def test_a_run_that_never_starts_leaves_the_earlier_one_in_place(capsys):
    Path("runs/quickstart/checkpoints").mkdir(parents=True)
    Path("runs/quickstart/checkpoints/last.ckpt").write_text("precious")
    wrong = ["--data.batch_size=2000"]  # more than there are images
    assert main(["fit", *TINY, *wrong]) == 2
    assert Path("runs/quickstart/checkpoints/last.ckpt").read_text() == "precious"
    assert [path.name for path in Path("runs").iterdir()] == ["quickstart"]
    said = capsys.readouterr()
    assert said.out == ""  # nothing of a folder that was moved and moved back
    assert len(said.err.strip().splitlines()) <= 3


def test_a_run_in_use_is_refused(capsys):
    with claim_run_folder(Path("runs/quickstart"), continued=False):
        assert main(["fit", *TINY]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-2:] == [
        "lightning: runs/quickstart is in use: another process is training into it.",
        "Wait for it, or give this run a name of its own with --name.",
    ]


def test_fast_dev_run_leaves_no_folder():
    assert main(["fit", *TINY, "--trainer.fast_dev_run=true"]) == 0
    assert not Path("runs").exists()


def test_checkpointing_can_be_turned_off():
    assert (
        main(["fit", *TINY, "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false"]) == 0
    )
    assert not Path("runs/quickstart/checkpoints").exists()
    assert len(csv_rows("runs/quickstart/metrics.csv")) == 1


def test_a_configuration_s_callbacks_drop_none_of_ours():
    callbacks = "--trainer.callbacks=LearningRateMonitor"
    assert main(["fit", *TINY, "--trainer.max_epochs=1", callbacks]) == 0
    last = load("runs/quickstart/checkpoints/last.ckpt")
    assert {"BestAndLast", "EMA"} <= set(last["callbacks"])
    assert "current_model_state" in last


def test_a_requeued_job_continues_its_run(monkeypatch):
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=1"]) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=2"]) == 0
    assert [row["epoch"] for row in csv_rows("runs/quickstart/metrics.csv")] == ["0", "1"]
    assert not Path("runs/quickstart.1").exists()


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(capsys, monkeypatch):
    step = ClassificationTask.training_step

    def diverging(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (float("nan") if self.global_step == 4 else 1)

    monkeypatch.setattr(ClassificationTask, "training_step", diverging)
    assert main(["fit", *TINY, *CONSTANT, "--trainer.max_epochs=3"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-2].startswith(
        "lightning: the loss is nan at step 4 (epoch 1), learning rate 0.00"
    )
    last = load("runs/quickstart/checkpoints/last.ckpt")
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def command(*arguments):
    return [sys.executable, "-m", "lightning_overlock", *arguments]


def start(*arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PL_")}
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("batch", [1, 2], ids=["amid an epoch", "in its last batch"])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    number, batch, capsys, monkeypatch
):
    assert main(["fit", *TINY, "--trainer.max_epochs=3", "--name=whole"]) == 0
    start_batch = ClassificationTask.on_train_batch_start

    def interrupted(self, *arguments):
        start_batch(self, *arguments)
        if self.global_step == 3 + batch:
            os.kill(os.getpid(), number)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "on_train_batch_start", interrupted)
        result = main(["fit", *TINY, "--trainer.max_epochs=3", "--name=stopped"])
    assert result == 128 + number
    out = capsys.readouterr().out
    assert "Saved runs/stopped/checkpoints/last.ckpt. Continue with" in out
    resume = re.search(r"^  lightning (.*)$", out, re.M)[1]
    assert resume == "fit --name stopped --ckpt_path last"
    stopped = load("runs/stopped/checkpoints/last.ckpt")
    assert (stopped["epoch"], stopped["global_step"]) == (1, 4 + batch)
    assert main(resume.split()) == 0
    assert_same_training(*(load(f"runs/{n}/checkpoints/last.ckpt") for n in ("stopped", "whole")))
    table, whole = (csv_rows(f"runs/{n}/metrics.csv") for n in ("stopped", "whole"))
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert [row["val/loss"] for row in table] == [row["val/loss"] for row in whole]
    # The continued epoch's clock starts with it, not with the machine.
    assert float(table[1]["train/images_per_second"]) > 1


def test_ctrl_c_in_a_terminal():
    run = start("fit", *TINY, "--trainer.max_epochs=1000", "--model.warmup_epochs=0")
    for line in run.stdout:
        if line.startswith("epoch 2/1000"):
            break
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert "Stopping after this step to save it; once more stops at once." in out
    assert out.endswith("  lightning fit --name quickstart --ckpt_path last\n")
    assert load("runs/quickstart/checkpoints/last.ckpt")["epoch"] >= 1


@pytest.mark.slow
def test_two_processes_share_one_run_folder():
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    first = start("fit", *TINY, *ddp, "--trainer.max_epochs=1")
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    second = start("fit", "--name=quickstart", "--ckpt_path=last", "--trainer.max_epochs=2")
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert "Starting with 2 processes" in err
    assert [path.name for path in Path("runs").iterdir()] == ["quickstart"]
    assert [row["epoch"] for row in csv_rows("runs/quickstart/metrics.csv")] == ["0", "1"]
    assert out.count("logs: runs/quickstart") == 1
    assert load("runs/quickstart/checkpoints/last.ckpt")["global_step"] == 6
