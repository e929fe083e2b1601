"""A runner of trials that train nothing, which test_kill.py starts and kills.

It imports neither torch nor Lightning: stand-ins write their checkpoints with the standard library.
"""

import json
import sys
import zipfile
from pathlib import Path

from lightning_overlock.runs import checkpoint, progress
from lightning_overlock.sweep import process, runner, warm
from lightning_overlock.sweep.parts import Row, Tune
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

NAME = "s-p"


def sweep_of(settings):
    return Sweep(
        name="s",
        title="s",
        profile="p",
        configs=["quickstart"],
        metric="val/top1",
        baseline="a",
        columns=["metric", "difference"],
        options={"trainer.max_epochs": settings["epochs"]},
        seeds=list(range(5)),
        rows={"a": Row(options={"model.y": 1}), "b": Row(options={"model.y": 2})},
        tune=Tune(options={"model.x": [1, 2]}, seeds=[90]),
        path=Path("s.yaml"),
    )


def write_checkpoint(epoch):
    with zipfile.ZipFile(f"{epoch}.ckpt", "w") as file:
        content = {"epoch": epoch, "global_step": epoch + 1}
        file.writestr("progress.json", json.dumps(content))


def read_progress(path):
    if not checkpoint.is_whole(path):
        return {}
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("progress.json"))


def main(role, url, settings, folder):
    checkpoint.read_progress = progress.read_progress = read_progress
    process.COMMAND = [sys.executable, "-m", "sweep.fake_fit"]
    warm.PRELOAD = ["sweep.fake_fit", "lightning_overlock.sweep.warm"]
    runner.POLL_SECONDS = runner.QUEUE_SECONDS = 0.05
    runner.write_hparams = lambda *_: None  # it imports torch
    settings = json.loads(settings)
    study = Study(sweep_of(settings), open_storage(url), NAME, create=True)
    study.reconcile()
    runner.Runner(
        study.sweep,
        study.storage,
        NAME,
        Path(folder),
        workers=2 if role == "run" else 1,
        request=Request(retries=1000),
        wait_for_others=role == "run",
        warm=settings["warm"],
    ).run()
