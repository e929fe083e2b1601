"""What test_two_processes.py runs in two processes on CPU; results go to the folder given."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule
from shared import quiet_trainer
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.tasks import ClassificationTask

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
ITEMS = [f"image{index}" for index in range(7)]


class Data(LightningDataModule):
    """Sixteen images in batches of eight, and seven to evaluate; shared out among processes."""

    def __init__(self, poison=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.train = TensorDataset(
            torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % len(CLASSES)
        )
        self.images = torch.randn(7, 3, 32, 32, generator=generator)
        self.poison = poison

    def share(self, count):
        """Return the first of seven, uneven: four and three images."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return torch.arange(count).tensor_split(world)[rank].tolist()

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        each = 8 // world
        order = [8 * batch + each * rank + i for batch in (0, 1) for i in range(each)]
        images = Subset(self.train, order)
        if self.poison and rank == 1:
            images = TensorDataset(torch.full((8, 3, 32, 32), torch.nan), torch.arange(8) % 7)
        return DataLoader(images, batch_size=each)

    def val_dataloader(self):
        images = TensorDataset(self.images, torch.arange(7))
        return DataLoader(Subset(images, self.share(7)), batch_size=2)

    def predict_dataloader(self):
        images = list(zip(self.images, ITEMS, strict=True))
        return DataLoader(Subset(images, self.share(7)), batch_size=2)


class SaveAtTheEnd(Callback):
    """Saves in the processes that train; their parent has no state to save."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "run.ckpt")


def trainer(folder, processes, **arguments):
    distributed = {"strategy": "ddp_fork", "devices": 2} if processes == 2 else {}
    return quiet_trainer(
        folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        max_epochs=2,
        log_every_n_steps=1,
        **distributed,
        **arguments,
    )


def run(folder, processes):
    """Train a network without batch norm, save it, evaluate it and predict with it."""
    torch.manual_seed(0)
    model = ClassificationTask(
        class_names=CLASSES, backbone="test_convnext", lr=0.5, scale_lr_with_batch=True
    )
    callbacks = [EMA(0.9), SaveAtTheEnd()]
    training = trainer(folder, processes, callbacks=callbacks, gradient_clip_val=0.5)
    training.fit(model, datamodule=Data())
    (metrics,) = trainer(folder, processes).validate(model, datamodule=Data(), verbose=False)
    metrics["lr"] = training.callback_metrics["lr"].item()
    torch.save(metrics, folder / "metrics.pt")
    trainer(folder, processes).predict(model, datamodule=Data(), return_predictions=False)


def main(folder):
    for processes in (1, 2):
        (folder / str(processes)).mkdir()
        run(folder / str(processes), processes)
    # DDP raises in the second step if a parameter was left without a gradient.
    for weight in (0.4, 0.0):
        model = ClassificationTask(
            class_names=CLASSES, backbone="test_overlock", overview_weight=weight, mixup=0.8
        )
        trainer(folder, 2, sync_batchnorm=False).fit(model, datamodule=Data())
    stopped = ClassificationTask(class_names=CLASSES, backbone="test_convnext")
    try:
        trainer(folder, 2).fit(stopped, datamodule=Data(poison=True))
    except ProcessRaisedException as error:  # has the traceback of the first that raised
        (folder / "stopped.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
