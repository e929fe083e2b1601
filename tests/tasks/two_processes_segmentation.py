"""What test_segmentation_two_processes.py runs in two processes on CPU; results go to a folder."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from shared import quiet_trainer
from torch.utils.data import DataLoader, Subset

from lightning_overlock.tasks import SegmentationTask

CLASSES = ["ant", "bee", "cat", "dog"]
SIZES = [(40, 64), (33, 50), (64, 64), (64, 40), (50, 50), (64, 64), (41, 70)]


def lists(items):
    return [list(part) for part in zip(*items, strict=True)]


class Data(LightningDataModule):
    """Eight training images in batches of four; seven to evaluate, four and three of them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = [torch.rand(3, *size, generator=generator) for size in SIZES]
        self.labels = [torch.randint(0, len(CLASSES), size, generator=generator) for size in SIZES]
        for label in self.labels:
            label[:9] = 255
        self.train = [
            (
                torch.rand(3, 64, 64, generator=generator),
                torch.randint(0, len(CLASSES), (64, 64), generator=generator),
            )
            for _ in range(8)
        ]
        self.train[5][1].fill_(255)  # all that the second process sees in the second step
        self.train[7][1].fill_(255)

    def share(self, items):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return Subset(items, torch.arange(len(items)).tensor_split(world)[rank].tolist())

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        order = list(range(rank, 8, world))
        return DataLoader(Subset(self.train, order), batch_size=4 // world)

    def evaluation_loader(self, second):
        items = list(zip(self.images, second, strict=True))
        return DataLoader(self.share(items), batch_size=2, collate_fn=lists)

    def val_dataloader(self):
        return self.evaluation_loader(self.labels)

    def predict_dataloader(self):
        return self.evaluation_loader([f"folder{i % 2}/{i}.jpg" for i in range(len(SIZES))])


def run(folder, processes):
    """Evaluate one network and predict with it, then train it for an epoch."""
    torch.manual_seed(0)
    model = SegmentationTask(
        class_names=CLASSES,
        backbone="test_overlock",
        decoder_width=8,
        auxiliary_width=8,
        test_size=64,
        boundary_metrics=True,
    )
    distributed = {"strategy": "ddp_fork", "devices": 2} if processes == 2 else {}
    trainer = quiet_trainer(
        folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        log_every_n_steps=1,
        **distributed,
    )
    (metrics,) = trainer.validate(model, datamodule=Data(), verbose=False)
    torch.save(metrics, folder / "metrics.pt")
    trainer.predict(model, datamodule=Data(), return_predictions=False)
    trainer.fit(model, datamodule=Data())
    torch.save(trainer.callback_metrics["val/miou"], folder / "trained.pt")


def main(folder):
    for processes in (1, 2):
        (folder / str(processes)).mkdir()
        run(folder / str(processes), processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
