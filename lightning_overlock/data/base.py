"""What all data modules share: loaders that are exact on resuming and shard themselves."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakSet

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_overlock.data.class_names import alike
from lightning_overlock.data.dense_transforms import to_pixels
from lightning_overlock.data.images import MAX_PIXELS
from lightning_overlock.data.left_out import MAX_LEFT_OUT
from lightning_overlock.data.loaders import Loader, TrainLoader
from lightning_overlock.data.loading import (
    Collate,
    EpochSampler,
    EvalBatches,
    Source,
    TrainBatches,
    default_num_workers,
    global_seed,
    stack,
)
from lightning_overlock.errors import InputError
from lightning_overlock.ranges import AT_LEAST_0, AT_LEAST_1, SHARE, check_range

Split = Literal["train", "val", "test", "predict"]
# The splits that each of Lightning's stages reads.
STAGES: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class BaseDataModule(LightningDataModule, ABC):
    """Makes the loaders; a data module adds `class_names`, `source` and `examine`.

    Works with a trainer (rank, device and position in the epoch come from it) and without one.
    `trainer.use_distributed_sampler` has no say: the loaders shard themselves.

    Args:
        batch_size: Images per process and step.
        num_workers: Processes that read images; None chooses by the cores of this process.
        skip_corrupt: Skip unreadable images with a warning instead of stopping. In prediction they
            are always skipped, and the task says which.
        max_left_out: Largest share of a class or split that may be left out of the data.
        max_image_pixels: Largest number of pixels of an image; None is no limit.

    Raises:
        InputError: An argument is out of its range.
    """

    class_names: list[str]
    # Images are RGB.
    channels = 3
    # Arguments that evaluation and prediction make no use of, and those that prediction for other
    # images from a checkpoint makes no use of.
    training_options: ClassVar[frozenset[str]] = frozenset()
    labelled_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        batch_size: int,
        num_workers: int | None = None,
        skip_corrupt: bool = False,
        max_left_out: float = MAX_LEFT_OUT,
        max_image_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__()
        check_range("data.max_left_out", max_left_out, SHARE)
        if max_image_pixels is not None and max_image_pixels < 1:
            raise InputError(
                f"data.max_image_pixels is {max_image_pixels}; expected at least 1, or null"
            )
        check_range("data.batch_size", batch_size, AT_LEAST_1)
        if num_workers is not None:
            check_range("data.num_workers", num_workers, AT_LEAST_0)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.skip_corrupt = skip_corrupt
        self.max_left_out = max_left_out
        self.max_image_pixels = max_image_pixels
        # Weak: workers in a reference cycle are not told to stop when it is collected, and waited
        # for in vain.
        self._loaders: WeakSet[Loader] = WeakSet()

    @abstractmethod
    def source(self, split: Split) -> Source:
        """Return the images of a split, as items (image (3, H, W), label or name)."""

    def examine(self, split: Split) -> str:  # noqa: ARG002 - for those that have files
        """Check a split before anything long begins.

        Returns:
            How much of it is used and what is left out for which reason; "" where all is used.

        Raises:
            InputError: It cannot be used.
        """
        return ""

    def setup(self, stage: str) -> None:
        """Check the splits of a stage, and say what is left out of them."""
        for split in STAGES[stage]:
            if told := self.examine(split):
                rank_zero_info(f"{split}: {told}")
        if stage != "fit":
            return
        for pair in alike(self.class_names):
            rank_zero_info(f"{pair} are two classes")
        train, val = (sorted(map(os.path.realpath, self.places(s))) for s in ("train", "val"))
        if train and train == val:
            rank_zero_warn(
                f"the validation has the training's own images ({', '.join(val)}): its figures say "
                "nothing about others",
                category=UserWarning,
            )

    def places(self, split: Split) -> list[Path]:  # noqa: ARG002 - for those that have files
        """Return the files and folders that a split is read from."""
        return []

    def prediction_state(self) -> dict[str, Any]:
        """Return what `predict` must know of the training data, in plain types.

        It is stored in checkpoints, so that prediction needs nothing but one and images.
        """
        return {"class_names": list(self.class_names)}

    def load_prediction_state(self, state: dict[str, Any]) -> None:
        """Take what `prediction_state` has returned in training, in place of the data's own."""
        self.class_names = list(state["class_names"])

    def image_transform(self, _: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Return what `predict` makes of an RGB image: a tensor (3, H, W) in [0, 1].

        Takes how the backbone wants its images, as timm says it, for data that normalise.
        """
        return to_pixels

    def collate(self, split: Split) -> Collate:  # noqa: ARG002 - for those that tell them apart
        """Return what makes a batch of the items of a split: `stack`, unless sizes differ."""
        return stack

    def groups(self, source: Any) -> NDArray[np.integer[Any]] | None:  # noqa: ARG002
        """Return a group for each training image where a step should have images of one group."""
        return None

    def train_dataloader(self) -> Loader:
        """Return batches (images (B, 3, H, W) float32, labels (B,) int64), shuffled."""
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Return batches (images (B, 3, H, W) float32, labels (B,) int64)."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Return batches (images (B, 3, H, W) float32, labels (B,) int64)."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """Return batches (images (B, 3, H, W) float32, names: list of B strings)."""
        return self._loader("predict")

    def teardown(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Stop the workers of the loaders handed out."""
        for loader in self._loaders:
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Stop the workers as well when a run breaks off, which skips `teardown`."""
        self.teardown("")

    def _loader(self, split: Split) -> Loader:
        source = self.source(split)
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        workers = self.num_workers
        if workers is None:
            workers = default_num_workers(trainer.num_devices if trainer else 1)
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        loader: Loader
        if split == "train":
            # Lightning sets the attribute from outside the class.
            overfit = trainer is not None and trainer.overfit_batches > 0  # type: ignore[attr-defined]
            sampler = EpochSampler(len(source), global_seed(), shuffle=not overfit)
            loader = TrainLoader(
                source,
                TrainBatches(
                    sampler,
                    self.batch_size,
                    rank,
                    world_size,
                    self._position,
                    None if overfit else self.groups(source),
                ),
                collate=self.collate(split),
                num_workers=workers,
                pin_memory=on_gpu,
                skip_corrupt=self.skip_corrupt,
                max_left_out=self.max_left_out,
            )
        else:
            loader = Loader(
                source,
                EvalBatches(len(source), self.batch_size, rank, world_size),
                collate=self.collate(split),
                num_workers=workers,
                pin_memory=on_gpu,
                skip_corrupt=self.skip_corrupt,
                max_left_out=self.max_left_out,
                skip_unreadable=split == "predict",
            )
        self._loaders.add(loader)
        return loader

    def _position(self) -> int:
        """Return the batch of the epoch that comes next: not 0 where a run is resumed inside it."""
        trainer = self.trainer
        if trainer is not None and trainer.training and trainer.fit_loop.restarting:
            return trainer.fit_loop.batch_idx + 1
        return 0
