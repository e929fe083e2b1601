"""Functions that test files of several rooms share."""

import csv
import resource
from contextlib import contextmanager
from pathlib import Path

import yaml
from lightning.pytorch import Callback, Trainer

from lightning_overlock.runs.recording import RunConfig


def quiet_trainer(folder, **arguments):
    """A trainer on the CPU that writes and prints nothing of its own."""
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


class SaveAfterEpoch(Callback):
    def __init__(self, epoch, path):
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def printed_config(capsys, *arguments):
    """The configuration that `lightning fit` with these arguments would run."""
    from lightning_overlock.cli.main import main

    capsys.readouterr()
    assert main(["fit", *arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def csv_rows(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_checkpoint(path, task, data, config):
    """Write a checkpoint as `lightning fit` does, without training."""
    trainer = quiet_trainer(path.parent, callbacks=[RunConfig(yaml.safe_dump(config), None)])
    trainer.strategy.connect(task)
    task.trainer = trainer
    trainer._data_connector.attach_datamodule(task, datamodule=data)
    trainer.save_checkpoint(path)


@contextmanager
def small_files(limit):
    """No file may grow beyond so many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
