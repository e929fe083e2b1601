"""Predictions drawn to TensorBoard: once per validation, of the first images."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_overlock.callbacks.prediction_images import PredictionImages
from lightning_overlock.errors import InputError


class Inverts(LightningModule):
    """Draws an image's negative."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch[0].mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def draw(self, images):
        return [(255 * (1 - image)).to(torch.uint8) for image in images]


def fit(folder, callback, module):
    images = [(torch.full((3, 8, 12), value / 10), value) for value in range(6)]
    loader = DataLoader(images, batch_size=4)
    Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[callback],
        max_epochs=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    ).fit(module, loader, loader)
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    return events.Reload()


# Lightning asks for more workers than a test needs.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
class TestDrawing:
    def test_the_first_images_of_every_validation(self, tmp_path):
        events = fit(tmp_path, PredictionImages(3), Inverts())
        assert sorted(events.Tags()["images"]) == [f"predictions/{n}" for n in range(3)]
        drawn = events.Images("predictions/1")
        assert [image.step for image in drawn] == [2, 4]
        assert (drawn[0].height, drawn[0].width) == (8, 12)

    @pytest.mark.parametrize("images", [0, 4])
    def test_nothing_where_nothing_is_wanted_or_drawn(self, tmp_path, images, monkeypatch):
        if images:
            monkeypatch.delattr(Inverts, "draw")
        assert fit(tmp_path, PredictionImages(images), Inverts()).Tags()["images"] == []


def test_a_negative_number_is_an_input_error():
    with pytest.raises(InputError, match=r"images is -1; expected at least 0"):
        PredictionImages(-1)
