"""Semantic segmentation with any timm backbone that has maps at four scales."""

import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.errors import InputError
from lightning_overlock.heads.fcn import FCNHead
from lightning_overlock.heads.semantic_fpn import SemanticFPNHead
from lightning_overlock.heads.sliding_window import likeliest, slide
from lightning_overlock.heads.upernet import UPerHead
from lightning_overlock.metrics.boundary import BoundaryF1, HausdorffDistance, TrimapIoU, class_iou
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range
from lightning_overlock.runs.layout import SEGMENTATION, per_class
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.drawing import class_colors, overlay
from lightning_overlock.tasks.per_class import write_classes
from lightning_overlock.tasks.predictions import keep_earlier, write_prediction
from lightning_overlock.tasks.results import Segmentation

# The label of pixels that count neither in the loss nor in a metric.
IGNORED = 255
# Sides of the images that the network sees in evaluation are multiples of this.
DIVISOR = 32


class Segmenter(nn.Module):
    """Normalises images; dense features, the decoder, and an auxiliary head for training.

    Args:
        features: The backbone; its mean and standard deviation normalise the images.
        decoder: Maps the four maps to logits (B, classes, H / 4, W / 4).
        auxiliary: Maps the third map to logits (B, classes, H / 16, W / 16); None for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, features: DenseFeatures, decoder: nn.Module, auxiliary: nn.Module | None
    ) -> None:
        super().__init__()
        self.features = features
        self.decoder = decoder
        self.auxiliary = auxiliary
        config = resolve_model_data_config(features.backbone)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes, H / 4, W / 4)."""
        return self.decoder(self.maps(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the four maps of images (B, 3, H, W) in [0, 1]."""
        return self.features((images - self.mean) / self.std)


class SegmentationTask(BaseTask):
    """Train, evaluate and apply a network that gives each pixel a class.

    Images are float32 RGB in [0, 1]; the task normalises them for the backbone. Training batches
    are (images (B, 3, H, W), labels (B, H, W) int64), evaluation batches lists of images (3, H, W)
    and of labels (H, W) at the size of their files, prediction batches lists of images and of
    their paths. Label 255 is ignored.

    The loss is the mean cross-entropy over all pixels, where ignored ones count as 0 (the default
    of mmsegmentation, and right over several processes): `train/loss` is `train/decoder_loss` plus
    the weighted `train/auxiliary_loss`. Under `val/` and `test/` are `miou` and `pixel_accuracy`
    of all pixels of the set together; a class that is neither predicted nor there is left out of
    the mean. On request there are `boundary_f1`, `trimap_miou` and `hausdorff` (95th percentile, in
    pixels), see `metrics.boundary`. `validate` and `test` print the classes' IoU and
    write it to `per_class_val.csv` and `per_class_test.csv` in the run folder.

    In evaluation an image is resized to the test size, its sides rounded up to multiples of 32; the
    logits are resized to the size of its label. `predict` writes label PNGs, with the values of
    the data's own files, into `segmentation/` of the run folder.

    Args:
        class_names: Names of the classes; linked from the data.
        decoder: UPerNet's head or Semantic FPN's.
        decoder_width: Channels of the decoder; None is 512 for UPerNet, 128 for Semantic FPN (with
            a pyramid twice as wide). Small backbones do with 64.
        dropout: Probability of dropping a channel before the classifiers.
        auxiliary_weight: Weight of the loss of an FCN head on the map of H/16; with 0 there is no
            such head.
        auxiliary_width: Channels of that head.
        class_weights: Weight of each class in the losses, 1 by default; a low one for a background
            that fills most of the pixels lets the other classes be learned sooner.
        test_size: Short side of images in evaluation; None keeps their size.
        test_max_size: Limit of their long side.
        inference: "whole", the image at once, or "slide", overlapping windows, averaged.
        window: Side of the square windows.
        stride: Distance from one window to the next.
        test_scales: Factors on the test size; the probabilities of several are averaged.
        test_flip: Average with the probabilities of the mirrored image, too.
        boundary_metrics: Measure boundaries as well, which takes a while on large images.
        save_overlays: `predict` also writes the images with the classes' colours laid over them.
        kwargs: Arguments of `BaseTask`.

    Raises:
        InputError: An argument is out of range, or the backbone lacks maps.
    """

    monitor = "val/miou"
    ranges: ClassVar[dict[str, Range]] = BaseTask.ranges | {
        "decoder_width": AT_LEAST_1,
        "dropout": Range(0, 1, open="high"),
        "auxiliary_weight": AT_LEAST_0,
        "auxiliary_width": AT_LEAST_1,
        "class_weights": AT_LEAST_0,
        "test_size": AT_LEAST_1,
        "test_max_size": AT_LEAST_1,
        "window": AT_LEAST_1,
        "stride": AT_LEAST_1,
        "test_scales": ABOVE_0,
    }
    overridable_options = BaseTask.overridable_options | {
        "test_size",
        "test_max_size",
        "inference",
        "window",
        "stride",
        "test_scales",
        "test_flip",
        "boundary_metrics",
        "save_overlays",
    }

    def __init__(
        self,
        class_names: list[str],
        decoder: Literal["upernet", "semantic_fpn"] = "upernet",
        decoder_width: int | None = None,
        dropout: float = 0.1,
        auxiliary_weight: float = 0.4,
        auxiliary_width: int = 256,
        class_weights: list[float] | None = None,
        test_size: int | None = 512,
        test_max_size: int = 2048,
        inference: Literal["whole", "slide"] = "whole",
        window: int = 512,
        stride: int = 341,
        test_scales: tuple[float, ...] = (1.0,),
        test_flip: bool = False,
        boundary_metrics: bool = False,
        save_overlays: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(class_names) >= IGNORED:
            raise InputError(
                f"{len(class_names)} classes; label PNGs of 8 bits have room for {IGNORED - 1}"
            )
        if class_weights is not None and (
            len(class_weights) != len(class_names) or min(class_weights) < 0
        ):
            raise InputError(
                f"model.class_weights is {class_weights}; expected {len(class_names)} numbers of "
                f"at least 0, in the order {', '.join(class_names[:4])}, …"
            )
        if stride > window:
            raise InputError(
                f"model.stride is {stride}, expected at most the window's side, {window}: "
                "what lies between windows would have no class"
            )
        if not test_scales:
            raise InputError("model.test_scales is empty, expected at least one factor")
        if test_size is not None and test_max_size < test_size:
            raise InputError(
                f"model.test_max_size is {test_max_size}, expected at least test_size, {test_size}"
            )
        super().__init__(class_names, **kwargs)

    def build_model(self, num_classes: int) -> Segmenter:
        """Return the network for so many classes."""
        hparams = self.hparams
        features = DenseFeatures(self.backbone, hparams["backbone_args"])
        channels, dropout = features.channels, hparams["dropout"]
        decoder: nn.Module
        if hparams["decoder"] == "upernet":
            width = hparams["decoder_width"] or 512
            decoder = UPerHead(channels, num_classes, width, dropout=dropout)
        else:
            width = hparams["decoder_width"] or 128
            decoder = SemanticFPNHead(channels, num_classes, width, 2 * width, dropout)
        auxiliary = None
        if hparams["auxiliary_weight"] > 0:
            width = hparams["auxiliary_width"]
            auxiliary = FCNHead(channels[2], num_classes, width, dropout=dropout)
        return Segmenter(features, decoder, auxiliary)

    def configure_metrics(self) -> None:
        """Set up the confusion matrix and, on request, what is measured at boundaries."""
        count = len(self.class_names)
        metrics: dict[str, Any] = {
            "confusion": MulticlassConfusionMatrix(count, ignore_index=IGNORED, validate_args=False)
        }
        if self.hparams["boundary_metrics"]:
            metrics["boundary_f1"] = BoundaryF1(count, IGNORED)
            metrics["trimap_miou"] = TrimapIoU(count, IGNORED)
            metrics["hausdorff"] = HausdorffDistance(count, IGNORED)
        collection = MetricCollection(metrics, compute_groups=False)
        self.metrics = nn.ModuleDict({stage: collection.clone() for stage in ("val", "test")})

    # Training

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, classes, H / 4, W / 4)."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss: the decoder's and the weighted one of the auxiliary head."""
        images, labels = batch
        maps = self.model.maps(images)
        loss = self._cross_entropy(self.model.decoder(maps), labels)
        parts = {"train/loss": loss}
        if self.model.auxiliary is not None:
            auxiliary_loss = self._cross_entropy(self.model.auxiliary(maps[2]), labels)
            parts["train/decoder_loss"] = loss
            parts["train/auxiliary_loss"] = auxiliary_loss
            loss = parts["train/loss"] = loss + self.hparams["auxiliary_weight"] * auxiliary_loss
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log_dict(parts, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over all pixels of labels (B, H, W), to whose size logits are resized."""
        resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear").float()
        weights = self.hparams["class_weights"]
        losses = F.cross_entropy(
            resized,
            labels,
            weight=None if weights is None else resized.new_tensor(weights),
            ignore_index=IGNORED,
            reduction="sum",
        )
        return losses / labels.numel()

    # Inference

    def predict_labels(
        self, images: list[Tensor], sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Return the class of every pixel.

        Args:
            images: (3, H, W) each, in [0, 1].
            sizes: (height, width) of the results; None: those of the images.

        Returns:
            (height, width) int64 each.
        """
        views: list[list[Tensor]] = [[] for _ in images]
        for scale in self.hparams["test_scales"]:
            resized = [self._resized(image, scale) for image in images]
            for view, logits in zip(views, self._logits(resized), strict=True):
                view.append(logits)
            if self.hparams["test_flip"]:
                mirrored = self._logits([image.flip(-1) for image in resized])
                for view, logits in zip(views, mirrored, strict=True):
                    view.append(logits.flip(-1))
        wanted = sizes or [(image.shape[-2], image.shape[-1]) for image in images]
        return [likeliest(view, size) for view, size in zip(views, wanted, strict=True)]

    def _resized(self, image: Tensor, scale: float) -> Tensor:
        """Resize an image (3, H, W) to the test size."""
        height, width = image.shape[-2:]
        if self.hparams["test_size"] is not None:
            scale *= min(
                self.hparams["test_size"] / min(height, width),
                self.hparams["test_max_size"] / max(height, width),
            )
        size = [
            max(math.ceil(int(side * scale + 0.5) / DIVISOR), 1) * DIVISOR
            for side in (height, width)
        ]
        if size == [height, width]:
            return image
        resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)
        return resized[0]

    def _logits(self, images: list[Tensor]) -> list[Tensor]:
        """Return the logits (classes, h, w) of images; those of one size go through together."""
        groups = defaultdict(list)
        for index, image in enumerate(images):
            groups[image.shape].append(index)
        window, stride = self.hparams["window"], self.hparams["stride"]
        found: dict[int, Tensor] = {}
        for indices in groups.values():
            together = torch.stack([images[index] for index in indices])
            if self.hparams["inference"] == "slide":
                logits = slide(self, together, len(self.class_names), window, stride)
            else:
                logits = self(together).float()
            self.outputs.count(logits)
            found |= dict(zip(indices, logits, strict=True))
        return [found[index] for index in range(len(images))]

    # Evaluation

    def reset_evaluation(self, stage: str) -> None:
        """Start an evaluation: "val" or "test"."""
        self.metrics[stage].reset()

    def evaluate(self, batch: tuple[list[Tensor], list[Tensor]], stage: str) -> None:
        """Count a batch."""
        images, labels = batch
        sizes = [(label.shape[0], label.shape[1]) for label in labels]
        for found, wanted in zip(self.predict_labels(images, sizes), labels, strict=True):
            self.metrics[stage].update(found, wanted)

    def evaluation(self, stage: str) -> dict[str, float | Tensor]:
        """Return `miou`, `pixel_accuracy` and what was asked for."""
        values = self.metrics[stage].compute()
        self._confusion = values.pop("confusion").cpu()
        values["miou"] = class_iou(self._confusion).nanmean()
        values["pixel_accuracy"] = self._confusion.trace() / self._confusion.sum()
        return {name: value.float() for name, value in values.items()}

    def report_classes(self, stage: str) -> None:
        """Print a row per class and write it to a CSV file."""
        confusion = self._confusion
        pixels = confusion.sum(1)
        # Neither predicted nor there, or not there: no number.
        shares = {"iou": class_iou(confusion), "accuracy": confusion.diagonal() / pixels}
        path = Path(self.trainer.default_root_dir) / per_class(stage)
        write_classes(path, self.class_names, shares, {"pixels": pixels})

    # Prediction

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """The RGB of every class, 0 to 255: the data's own where they have some."""
        data = getattr(self._trainer, "datamodule", None)
        given = getattr(data, "palette", None) or class_colors(len(self.class_names))
        return [(int(r), int(g), int(b)) for r, g, b in given]

    def draw(self, images: list[Tensor]) -> list[Tensor]:
        """Return each image (3, H, W) with its predicted classes laid over it, uint8."""
        predicted = self.predict_labels(images)
        return [
            overlay(image, labels, self.palette)
            for image, labels in zip(images, predicted, strict=True)
        ]

    def results_of(self, images: list[Tensor]) -> list[Segmentation]:
        """Return the class of every pixel of each image."""
        return [Segmentation(labels.cpu().numpy()) for labels in self.predict_labels(images)]

    def on_predict_start(self) -> None:
        """Find out how the data's files number their classes, and where they lie."""
        super().on_predict_start()
        keep_earlier(self.trainer, SEGMENTATION)
        data: Any = getattr(self.trainer, "datamodule", None)
        self._label_image = getattr(data, "label_image", Image.fromarray)
        # Paths below the data's folder keep their subfolders.
        source = getattr(self.trainer.predict_dataloaders, "source", None)
        self._folder = getattr(source, "folder", None)
        written: dict[Path, str] = {}
        for file in map(os.fsdecode, getattr(source, "files", [])):
            other = written.setdefault(Path(file).with_suffix(""), file)
            if other != file:
                raise InputError(
                    f"{self._folder} has {other} and {file}, whose label PNGs would be one file\n"
                    "expected images whose names differ without their suffix, too"
                )

    def predict_step(self, batch: tuple[list[Tensor], list[str]], batch_idx: int) -> list[str]:
        """Write the label PNG, and on request the overlay, of each image; return the PNGs."""
        images, paths = batch
        written = []
        predicted = self.predict_labels(images)
        self.outputs.refuse(self.trainer, together=False)
        for image, path, labels in zip(images, paths, predicted, strict=True):
            target = self._target(path)
            label_image = self._label_image(labels.to(torch.uint8).cpu().numpy())
            write_prediction(label_image, target)
            written.append(str(target))
            if self.hparams["save_overlays"]:
                drawn = overlay(image, labels, self.palette).permute(1, 2, 0)
                write_prediction(Image.fromarray(drawn.numpy()), target.with_suffix(".overlay.png"))
        return written

    def _target(self, path: str) -> Path:
        """Return the label PNG of an image: in the same subfolder, by the same name."""
        name = Path(path)
        if self._folder is not None and name.is_relative_to(self._folder):
            name = name.relative_to(self._folder)
        elif name.is_absolute():
            name = Path(name.name)
        return Path(self.trainer.default_root_dir) / SEGMENTATION / name.with_suffix(".png")

    def on_predict_epoch_end(self) -> None:
        """Say where the predictions are."""
        rank_zero_info(f"Predictions: {Path(self.trainer.default_root_dir) / SEGMENTATION}")
