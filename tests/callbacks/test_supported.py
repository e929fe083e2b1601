"""Lightning's callbacks and options: each works as documented or is refused, as the docs say."""

import importlib.util
import re
from datetime import timedelta
from pathlib import Path

import lightning.pytorch.callbacks as callbacks
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_overlock.callbacks.supported import REFUSED
from lightning_overlock.cli.main import main
from lightning_overlock.data import DigitsDataModule
from lightning_overlock.errors import InputError
from lightning_overlock.tasks import ClassificationTask

PAGE = Path(__file__).parents[2] / "docs" / "lightning_callbacks.md"


def documented():
    """Return {entry: "works" or "refused"} of the page's two tables."""
    rows = re.findall(r"^\| (\S+) \| (works|refused) \|", PAGE.read_text(), re.MULTILINE)
    return dict(rows)


def fit(folder, *extra, **options):
    """Train two epochs of two batches; return the trainer and the rates that were applied."""
    seed_everything(1, verbose=False)
    data = DigitsDataModule(batch_size=8, image_size=32, num_workers=0)
    task = ClassificationTask(data.class_names, backbone="test_convnext", lr=1e-2, min_lr=1e-3)
    note = Rates()
    arguments = {
        "max_epochs": 2,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **options,
    }
    trainer = Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[*extra, note],
        **arguments,
    )
    trainer.fit(task, data)
    return trainer, note


class Rates(callbacks.Callback):
    def __init__(self):
        self.rates = []
        self.validations = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


class Freezing(callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.model)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


GIVEN = {
    "BackboneFinetuning": lambda: callbacks.BackboneFinetuning(),
    "BaseFinetuning": lambda: Freezing(),
    "BatchSizeFinder": lambda: callbacks.BatchSizeFinder(),
    "EMAWeightAveraging": lambda: callbacks.EMAWeightAveraging(),
    "GradientAccumulationScheduler": lambda: callbacks.GradientAccumulationScheduler({1: 2}),
    "LearningRateFinder": lambda: callbacks.LearningRateFinder(),
    "ModelPruning": lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5),
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(1e-2),
    "WeightAveraging": lambda: callbacks.WeightAveraging(),
}


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_it_is_refused_in_one_line_before_anything_runs(tmp_path, name):
    with pytest.raises(InputError) as raised:
        fit(tmp_path, GIVEN[name](), Never())
    told = str(raised.value)
    assert name.removeprefix("Base") in told or "Freezing" in told
    assert "\n" not in told
    assert len(told) < 200
    assert documented()[name] == "refused"


class Never(callbacks.Callback):
    def on_fit_start(self, trainer, pl_module):
        raise AssertionError("something ran")


# What works: the callback, options beside it, and what must be true afterwards.


def csv(folder):
    return CSVLogger(folder, name="", version="")


def rows(folder):
    return (folder / "metrics.csv").read_text()


def early_stopping(folder):
    stop = callbacks.EarlyStopping("val/top1", mode="max", patience=1, min_delta=2.0)
    trainer, _ = fit(folder, stop, max_epochs=5)
    assert trainer.current_epoch == 2
    assert stop.stopped_epoch == 1


def timer(folder):
    trainer, _ = fit(folder, callbacks.Timer(timedelta(seconds=0)))
    assert trainer.global_step == 0
    clock = callbacks.Timer(timedelta(days=1))
    fit(folder, clock)
    assert clock.time_elapsed() > 0


def learning_rate_monitor(folder):
    monitor = callbacks.LearningRateMonitor("step")
    _, note = fit(folder, monitor, logger=csv(folder))
    text = rows(folder).splitlines()
    column = next(i for i, name in enumerate(text[0].split(",")) if name.startswith("lr-"))
    logged = [float(line.split(",")[column]) for line in text[1:] if line.split(",")[column]]
    assert logged == pytest.approx(note.rates)
    assert len(set(note.rates)) == 4


def device_stats(folder):
    pytest.importorskip("psutil")
    fit(folder, callbacks.DeviceStatsMonitor(), logger=csv(folder))
    assert "DeviceStatsMonitor.on_train_batch_start" in rows(folder)


def model_checkpoint(folder):
    keep = callbacks.ModelCheckpoint(folder / "kept", monitor="val/loss", save_top_k=1)
    trainer, _ = fit(folder, keep, enable_checkpointing=True)
    content = torch.load(keep.best_model_path, weights_only=True)
    assert float(keep.best_model_score) <= float(trainer.callback_metrics["val/loss"])
    task = ClassificationTask.load_from_checkpoint(keep.best_model_path, weights_only=True)
    assert task.state_dict().keys() == content["state_dict"].keys()


def on_exception(folder):
    def broken(*_):
        raise ZeroDivisionError

    keep = callbacks.OnExceptionCheckpoint(folder, "broken")
    stop = callbacks.LambdaCallback(on_train_epoch_end=broken)
    with pytest.raises(ZeroDivisionError):
        fit(folder, keep, stop, enable_checkpointing=True)
    assert torch.load(folder / "broken.ckpt", weights_only=True)["global_step"] == 2


def lambda_callback(folder):
    seen = []
    fit(folder, callbacks.LambdaCallback(on_train_epoch_end=lambda *_: seen.append(1)))
    assert seen == [1, 1]


class Writer(callbacks.BasePredictionWriter):
    def __init__(self):
        super().__init__("batch")
        self.items = []

    def write_on_batch_end(self, trainer, pl_module, prediction, *_):
        self.items += [item for item, *_ in prediction]


def prediction_writer(folder):
    data = DigitsDataModule(batch_size=100, image_size=32, num_workers=0)
    task = ClassificationTask(data.class_names, backbone="test_convnext")
    writer = Writer()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        callbacks=[writer], enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(task, data, return_predictions=False)
    assert len(writer.items) == 300


def spike_detection(folder):
    fit(folder, callbacks.SpikeDetection(warmup=1))


def throughput_monitor(folder):
    monitor = callbacks.ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)
    fit(folder, monitor, logger=csv(folder))
    assert "train|batches_per_sec" in rows(folder) or "batches_per_sec" in rows(folder)


def shown(kind, **options):
    def attempt(folder):
        fit(folder, kind(), **options)

    return attempt


class Bar(callbacks.ProgressBar):
    done = 0

    def on_train_batch_end(self, *given):
        super().on_train_batch_end(*given)
        Bar.done += 1


def own_bar(folder):
    Bar.done = 0
    fit(folder, Bar(), enable_progress_bar=True)
    assert Bar.done == 4


def option(expected_steps=4, validations=None, **options):
    def attempt(folder):
        trainer, note = fit(folder, **options)
        assert trainer.global_step == expected_steps
        assert len(note.rates) == expected_steps
        if validations is not None:
            assert note.validations == validations

    return attempt


def logger(make, proof):
    def attempt(folder):
        fit(folder, logger=make(folder))
        assert list(folder.glob(proof))

    return attempt


def tracker(package, kind, **where):
    """An extra's logger is refused without it; test_trackers.py trains with it."""

    def attempt(folder):
        if importlib.util.find_spec(package) is None:
            with pytest.raises(ModuleNotFoundError, match=package):
                kind(save_dir=str(folder))
        else:
            assert kind(save_dir=str(folder), **where).name

    return attempt


def refused_option(*words):
    def attempt(folder):
        task = ["--model", "ClassificationTask", "--model.backbone", "test_convnext"]
        assert main(["fit", *task, "--data", "DigitsDataModule", *words]) == 2

    return attempt


WORKS = {
    "BasePredictionWriter": prediction_writer,
    "Callback": option(),
    "Checkpoint": shown(callbacks.Checkpoint, enable_checkpointing=True),
    "DeviceStatsMonitor": device_stats,
    "EarlyStopping": early_stopping,
    "LambdaCallback": lambda_callback,
    "LearningRateMonitor": learning_rate_monitor,
    "ModelCheckpoint": model_checkpoint,
    "ModelSummary": shown(callbacks.ModelSummary, enable_model_summary=True),
    "OnExceptionCheckpoint": on_exception,
    "ProgressBar": own_bar,
    "RichModelSummary": shown(callbacks.RichModelSummary, enable_model_summary=True),
    "RichProgressBar": shown(callbacks.RichProgressBar, enable_progress_bar=True),
    "SpikeDetection": spike_detection,
    "TQDMProgressBar": shown(callbacks.TQDMProgressBar, enable_progress_bar=True),
    "ThroughputMonitor": throughput_monitor,
    "Timer": timer,
    "accumulate_grad_batches": option(2, accumulate_grad_batches=2),
    "check_val_every_n_epoch": option(validations=[4], check_val_every_n_epoch=2),
    "deterministic": option(deterministic=True),
    "detect_anomaly": option(detect_anomaly=True),
    "fast_dev_run": option(1, fast_dev_run=1),
    "gradient_clip_val": option(gradient_clip_val=1.0, gradient_clip_algorithm="value"),
    "inference_mode": option(validations=[2, 4], inference_mode=False),
    "limit_train_batches": option(2, limit_train_batches=1),
    "limit_val_batches": option(validations=[2, 4], limit_val_batches=2),
    "max_steps": option(3, max_steps=3, max_epochs=-1),
    "max_time": option(0, max_time={"seconds": 0}),
    "min_epochs": option(4, min_epochs=2, max_epochs=2),
    "overfit_batches": option(2, overfit_batches=1),
    "profiler": option(profiler="simple"),
    "reload_dataloaders_every_n_epochs": option(reload_dataloaders_every_n_epochs=1),
    "val_check_interval": option(validations=[1, 2, 3, 4], val_check_interval=0.5),
    "CSVLogger": logger(csv, "metrics.csv"),
    "TensorBoardLogger": logger(lambda f: TensorBoardLogger(f), "**/events.out*"),
    "WandbLogger": tracker("wandb", WandbLogger, offline=True),
    "MLFlowLogger": tracker("mlflow", MLFlowLogger, tracking_uri="sqlite:///:memory:"),
}
REFUSED_OPTIONS = {
    "--optimizer": refused_option("--optimizer", "SGD"),
    "--lr_scheduler": refused_option("--lr_scheduler", "StepLR"),
}


# Lightning's own words on a bar without a terminal, too few workers, old torch names.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(WORKS))
def test_it_works_as_documented(tmp_path, name):
    assert documented()[name] == "works"
    WORKS[name](tmp_path)


@pytest.mark.parametrize("name", sorted(REFUSED_OPTIONS))
def test_an_option_that_is_the_tasks_is_refused(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setenv("OVERLOCK_RUNS", str(tmp_path))
    REFUSED_OPTIONS[name](tmp_path)
    assert len(capsys.readouterr().err.splitlines()) <= 3
    assert documented()[name] == "refused"


def test_the_page_lists_what_was_tried_and_every_callback_of_lightning():
    assert documented().keys() == GIVEN.keys() | WORKS.keys() | REFUSED_OPTIONS.keys()
    assert set(callbacks.__all__) <= documented().keys()
    assert {kind.__name__ for kind in REFUSED} <= GIVEN.keys()
