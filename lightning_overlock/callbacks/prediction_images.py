"""Predictions of a few validation images in TensorBoard, W&B or MLflow."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_overlock.callbacks.trackers import log_image
from lightning_overlock.errors import InputError

HAVE_IMAGES = (TensorBoardLogger, WandbLogger, MLFlowLogger)


class PredictionImages(Callback):
    """Logs the predictions of the first validation images while a run trains.

    What is drawn is the task's matter: its `draw` takes images, as its batches have them, and
    returns one (3, H, W) uint8 each. For a task without `draw` nothing is drawn.

    Args:
        images: How many, at most the first batch; 0 draws none.

    Raises:
        InputError: `images` is negative.
    """

    def __init__(self, images: int = 4) -> None:
        if images < 0:
            raise InputError(f"images is {images}; expected at least 0")
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, after the first batch of a validation."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, HAVE_IMAGES)]
        draw: Any = getattr(pl_module, "draw", None)
        wanted = batch_idx == 0 and self.images > 0 and draw is not None
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (boards and wanted and training and trainer.is_global_zero):
            return
        for number, drawn in enumerate(draw(batch[0][: self.images])):
            for board in boards:
                log_image(board, f"predictions/{number}", drawn, trainer.global_step)
