"""What test_streaming.py runs as a node of one process: train, evaluate and predict."""

import json
import sys
from pathlib import Path

import torch
from shared import quiet_trainer

from lightning_overlock.data import StreamingDataModule
from lightning_overlock.tasks import ClassificationTask


def main(root, folder, nodes):
    torch.manual_seed(0)
    data = StreamingDataModule(root, image_size=32, batch_size=4 // nodes, num_workers=0)
    task = ClassificationTask(class_names=data.class_names, backbone="test_convnext", lr=0.1)
    trainer = quiet_trainer(
        folder / str(nodes),
        strategy="ddp",
        num_nodes=nodes,
        devices=1,
        max_epochs=2,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    assert trainer.world_size == nodes
    trainer.fit(task, datamodule=data)
    (metrics,) = trainer.validate(task, datamodule=data, verbose=False)
    weights = sum(parameter.double().abs().sum().item() for parameter in task.parameters())
    trainer.predict(task, datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        rows = (folder / str(nodes) / "predictions.csv").read_text().splitlines()[1:]
        names = [row.split(",")[0] for row in rows]
        found = {"metrics": metrics, "weights": weights, "names": names}
        (folder / f"{nodes}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
