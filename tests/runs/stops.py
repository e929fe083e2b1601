"""A small run in memory that can be stopped in every way, for the tests of continuing."""

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.data.base import BaseDataModule
from lightning_overlock.data.loading import seeded
from lightning_overlock.errors import Interrupted
from lightning_overlock.runs.layout import BEST, LAST, METRICS
from lightning_overlock.runs.metrics_file import ALL_OF_TRAINING, read_curve
from lightning_overlock.runs.recording import MetricsFile
from lightning_overlock.runs.resume import ExactResume
from lightning_overlock.runs.saving import BestAndLast
from lightning_overlock.tasks import ClassificationTask
from lightning_overlock.tasks.batch_norm import TRAINING_STATISTICS


class Noise:
    """Points of two classes, with noise that depends on seed, epoch and index."""

    def __init__(self, count, train):
        self.count, self.train = count, train

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        with seeded(5, key.epoch if self.train else 99, key.index):
            label = key.index % 2
            return torch.randn(6) + label, label


class Points(BaseDataModule):
    def __init__(self, batches, batch_size=2, processes=1):
        super().__init__(batch_size, num_workers=0)
        self.class_names = ["a", "b"]
        self.images = 2 * batches * processes + 1

    def source(self, split):
        return Noise(self.images, True) if split == "train" else Noise(6, False)


class Network(nn.Sequential):
    pretrained_cfg: ClassVar = {}  # as timm's models have


class Task(ClassificationTask):
    """Running statistics, dropout and weights."""

    def build_model(self, num_classes):
        return Network(
            nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, num_classes)
        )


@dataclass(frozen=True)
class Plan:
    """What all parts of a run have in common."""

    epochs: int = 3
    batches: int = 5
    accumulate: int = 1
    interval: int | float = 1.0
    every: int | None = 1
    decay: float | None = 0.8
    max_steps: int = -1
    limit: int | None = None  # batches of an epoch
    reestimate: int = 0
    precision: str = "32-true"

    @property
    def epoch(self):
        """Batches of an epoch."""
        return self.limit or self.batches

    @property
    def total(self):
        """Batches of the run."""
        epochs, steps = divmod(self.max_steps, -(-self.epoch // self.accumulate))
        by_steps = epochs * self.epoch + steps * self.accumulate
        return self.epochs * self.epoch if self.max_steps < 0 else by_steps


@dataclass(frozen=True)
class Stop:
    """How a part of a run ends.

    `at` counts, by `kind`, the batches of all epochs, those of this part's validations, the saves
    of this part, optimiser steps (also of a part with another interval between validations),
    epochs, or the batches of the epoch in hand.
    """

    kind: str
    at: int


# Signals that come while a validation is made.
IN_VALIDATION = {
    "signal in validation": [signal.SIGINT],
    "SIGTERM in validation": [signal.SIGTERM],
    "SIGTERM three times in validation": [signal.SIGTERM] * 3,
    "SIGINT and SIGTERM in validation": [signal.SIGINT, signal.SIGTERM],
    "SIGUSR1 of SLURM in validation": [signal.SIGUSR1],
    "SIGTERM and SIGUSR1 of SLURM in validation": [signal.SIGTERM, signal.SIGUSR1],
}


class Killed(Exception):
    pass


class Stopper(Callback):
    def __init__(self, stop):
        self.stop = stop
        self.validated = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.stop.kind == "signal" and self._now(trainer):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self._now(trainer):
            if self.stop.kind == "time":  # as Lightning's Timer does it
                trainer.should_stop = True
            if self.stop.kind == "kill":
                raise Killed

    def on_validation_batch_end(self, trainer, *args):
        if trainer.sanity_checking:
            return
        self.validated += 1
        if self.validated == self.stop.at:
            for number in IN_VALIDATION.get(self.stop.kind, []):
                os.kill(os.getpid(), number)
            if self.stop.kind == "kill in validation":
                raise Killed

    def _now(self, trainer):
        return trainer.fit_loop.total_batch_idx + 1 == self.stop.at


class KilledWhileSaving(BestAndLast):
    """Ends the process after so many saves: before the last, or between it and the best."""

    def __init__(self, *arguments, stop):
        super().__init__(*arguments)
        self.stop, self.saves = stop, 0

    @property
    def state_key(self):
        return "BestAndLast"

    def _save(self, trainer):
        self.saves += 1
        if self.stop.kind == "kill before save" and self.saves == self.stop.at:
            raise Killed
        super()._save(trainer)

    def _copy_to_best(self, path):
        if self.stop.kind == "kill amid save" and self.saves == self.stop.at:
            raise Killed
        super()._copy_to_best(path)


def train(folder, plan, stop=Stop("none", 0), seed=1, allow_changes=False, **changes):
    """Train, from the last checkpoint if there is one, until the end or a stop.

    Args:
        changes: Arguments of the trainer; `data`, those of the data.
    """
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    options = {
        "max_epochs": plan.epochs,
        "max_steps": plan.max_steps,
        "limit_train_batches": plan.limit,
        "accumulate_grad_batches": plan.accumulate,
        "val_check_interval": plan.interval,
        "check_val_every_n_epoch": plan.every,
    }
    epoch = load(folder / LAST)["position"]["epoch"] if (folder / LAST).is_file() else 0
    if stop.kind in {"steps", "interval"}:
        options["max_steps"] = stop.at if plan.max_steps < 0 else min(stop.at, plan.max_steps)
        if stop.kind == "interval":  # a part that validates after every batch
            options["val_check_interval"] = 1
    elif stop.kind == "epochs":
        options["max_epochs"] = max(stop.at, epoch + 1)
    elif stop.kind == "limit":  # the epoch in hand ends after so many batches, and with it the part
        # A step is made at the end; amid accumulated batches the other run has none.
        limit = min(max(stop.at // plan.accumulate, 1) * plan.accumulate, plan.epoch)
        options["max_epochs"], options["limit_train_batches"] = epoch + 1, limit
        # A share of the epoch, or more batches than it has now, would be other batches.
        interval = int(plan.epoch * plan.interval) if plan.interval == 0.5 else plan.interval
        fits = plan.every is None or interval == 1.0 or interval <= limit
        options["val_check_interval"] = interval if fits else 1.0
    torch.manual_seed(0)
    data = Points(plan.batches, **changes.pop("data", {}))
    saving = KilledWhileSaving(folder, "val/loss", "min", stop=stop)
    if "of SLURM" in stop.kind:
        changes["plugins"] = [SLURMEnvironment(auto_requeue=True)]
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        precision=plan.precision,
        default_root_dir=folder,
        callbacks=[
            EMA(plan.decay),
            ExactResume(allow_changes),
            Stopper(stop),
            MetricsFile(folder),
            saving,
        ],
        **options,
        **changes,
    )
    model = Task(class_names=data.class_names, lr=0.05, min_lr=0.05, reestimate_bn=plan.reestimate)
    last = folder / LAST
    path = str(last) if last.is_file() else None
    with contextlib.suppress(Killed, Interrupted):
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    return model


def load(path):
    return torch.load(path, weights_only=True)


def result(folder):
    """Return all that must be the same, however often the run was stopped."""
    # Time, and what is measured in addition where a part of a run ends.
    found = {
        "rows": [
            {
                name: value
                for name, value in row.items()
                if name != "train/images_per_second" and not name.startswith("val_bn/")
            }
            for row in read_curve(folder, *ALL_OF_TRAINING)
        ]
    }
    for name, path in (("last", LAST), ("best", BEST)):
        if not (folder / path).is_file():
            found[name] = None
            continue
        content = load(folder / path)
        keys = ("state_dict", "current_model_state", TRAINING_STATISTICS, "optimizer_states")
        found[name] = {key: content.get(key) for key in (*keys, "global_step", "epoch")}
        found[name]["position"] = content["position"] if name == "last" else None
        callbacks = content["callbacks"]
        found[name]["ema"] = callbacks.get("EMA")
        found[name]["score"] = callbacks["BestAndLast"]["best_model_score"]
        found[name]["best step"] = callbacks["BestAndLast"]["best_step"]
    assert not list(folder.glob("**/*.part"))
    assert (folder / METRICS).is_file()
    return found


def of_training(found):
    """Return what does not depend on when a run was evaluated."""
    of_validations = {"score", "best step", "position"}
    return {name: value for name, value in found["last"].items() if name not in of_validations}


def differences(found, expected, where=""):
    """Yield where two results differ; tensors bit by bit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            yield f"{where}: keys {sorted(map(str, found))} not {sorted(map(str, expected))}"
        for key in found.keys() & expected.keys():
            yield from differences(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        if len(found) != len(expected):
            yield f"{where}: {len(found)} entries, not {len(expected)}"
        for number, (one, other) in enumerate(zip(found, expected, strict=False)):
            yield from differences(one, other, f"{where}/{number}")
    elif isinstance(expected, torch.Tensor):
        if not torch.equal(found, expected):
            yield f"{where}: {found} not {expected}"
    elif found != expected:
        yield f"{where}: {found} not {expected}"
