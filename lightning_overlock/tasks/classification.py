"""Image classification with any timm model."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lightning_overlock.backbones.create import refusal_explained
from lightning_overlock.data.normalisation import Normalisation
from lightning_overlock.errors import InputError
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_0, SHARE, Range
from lightning_overlock.runs.layout import PREDICTIONS, confusion_matrix, per_class
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.distillation import (
    DTYPES,
    PREFIX,
    Distillation,
    load_teacher,
)
from lightning_overlock.tasks.drawing import draw_class
from lightning_overlock.tasks.per_class import write_classes, write_confusion
from lightning_overlock.tasks.predictions import Rows, keep_earlier
from lightning_overlock.tasks.results import Classification

Prediction = tuple[str, list[str], list[float]]


class ClassificationTask(BaseTask):
    """Train, evaluate and apply an image classifier.

    Batches are (images (B, 3, H, W) float32, labels (B,) int64); in prediction (images, items),
    with a file path or name per image. Logs `train/loss` (mean of the epoch), `train/loss_step`,
    and `loss` (cross-entropy of the plain labels), `top1`, `top5` under `val/` and `test/`.
    `validate` and `test` print the accuracy of each class and write it to `per_class_val.csv` (or
    `_test`) in the trainer's `default_root_dir`, with `confusion_val.csv` and a picture of it;
    prediction writes `predictions.csv` there, row by row.

    Args:
        class_names: Names of the classes; linked from the data.
        overview_weight: Weight of the loss on the overview logits, for backbones that have them
            (`forward_overview`); with 0 the model is built without that head.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of mixup (arXiv 1710.09412); 0 turns it off.
        cutmix: Alpha of cutmix (arXiv 1905.04899); 0 turns it off.
        mixup_prob: Share of the batches that are mixed.
        mixup_switch_prob: Share of cutmix among the mixed batches when both are on.
        teacher: Training: a network to learn from besides the labels: a checkpoint or a run's
            folder of a classifier, or the name of a timm model. It is frozen and not saved.
        teacher_init_from: Training: a file of weights for a timm model that teaches; its own
            weights otherwise.
        teacher_weight: Training: share w of the teacher's logits in the loss,
            (1 - w) labels + w T^2 KL (arXiv 2012.12877, equation 2).
        teacher_temperature: Training: T of both logits (arXiv 1503.02531).
        teacher_features: Training: weight of one less the cosine between the teacher's pooled
            features and a learned linear map of the student's.
        teacher_dtype: Training: what the teacher computes in.
        kwargs: Arguments of `BaseTask`.

    Raises:
        InputError: An argument is out of range, or the backbone refuses its own.
    """

    monitor = "val/top1"
    losses: Any
    ranges: ClassVar[dict[str, Range]] = BaseTask.ranges | {
        "overview_weight": AT_LEAST_0,
        "label_smoothing": SHARE,
        "mixup": AT_LEAST_0,
        "cutmix": AT_LEAST_0,
        "mixup_prob": SHARE,
        "mixup_switch_prob": SHARE,
        "teacher_weight": SHARE,
        "teacher_temperature": ABOVE_0,
        "teacher_features": AT_LEAST_0,
    }

    def __init__(
        self,
        class_names: list[str],
        overview_weight: float = 0.4,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        teacher: str | None = None,
        teacher_init_from: str | None = None,
        teacher_weight: float = 0.5,
        teacher_temperature: float = 3.0,
        teacher_features: float = 0.0,
        teacher_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(class_names, **kwargs)
        self.distillation: Distillation | None = None

    def build_model(self, num_classes: int) -> nn.Module:
        """Return the classifier, with an overview head if there can be one and its loss counts."""
        model: Any = super().build_model(num_classes)
        overview = getattr(model, "overview_index", None)
        if self.hparams["overview_weight"] > 0 and overview is not None:
            model.add_overview_head()
        return model

    def configure_losses(self) -> None:
        """Set up mixup and cutmix."""
        hparams = self.hparams
        self.mixup = None
        if hparams["mixup"] > 0 or hparams["cutmix"] > 0:
            self.mixup = Mixup(
                mixup_alpha=hparams["mixup"],
                cutmix_alpha=hparams["cutmix"],
                prob=hparams["mixup_prob"],
                switch_prob=hparams["mixup_switch_prob"],
                label_smoothing=hparams["label_smoothing"],
                num_classes=len(self.class_names),
            )

    def configure_metrics(self) -> None:
        """Set up the loss of plain labels, top-1 and top-5 (of fewer classes: of all)."""
        count = len(self.class_names)
        metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(count, average="micro"),
                "top5": MulticlassAccuracy(count, top_k=min(5, count), average="micro"),
                "confusion": MulticlassConfusionMatrix(count),
            }
        )
        self.metrics = nn.ModuleDict({stage: metrics.clone() for stage in ("val", "test")})
        self.losses = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Read the teacher before a training begins.

        Raises:
            InputError: It cannot be read, or does not fit the data.
        """
        super().setup(stage)
        hparams = self.hparams
        if stage != "fit" or hparams["teacher"] is None:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "image_transform"):
            raise InputError(
                "model.teacher: expected a data module, which says how images are normalised."
            )
        self.distillation = Distillation(
            load_teacher(hparams["teacher"], hparams["teacher_init_from"]),
            self.model,
            self.class_names,
            Normalisation.of(data.image_transform(self.data_config)),
            logits=hparams["teacher_weight"] > 0,
            features=hparams["teacher_features"] > 0,
            temperature=hparams["teacher_temperature"],
            dtype=DTYPES[hparams["teacher_dtype"]],
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what training alone has."""
        if self.distillation is None:
            weights = checkpoint["state_dict"]
            kept = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
            checkpoint["state_dict"] = kept
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build AdamW, also for the map from the student's features to the teacher's."""
        optimizer = super().configure_optimizers()
        if self.distillation is not None and self.distillation.feature_map is not None:
            weights = list(self.distillation.feature_map.parameters())
            optimizer.add_param_group({"params": weights, "lr_scale": 1.0})
        return optimizer

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, classes)."""
        with refusal_explained(self.backbone, self.model, images):
            return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss: main and weighted overview logits against the same targets."""
        images, targets = self.mix(*batch)
        with self._features_of_student() as seen:
            logits, loss = self._loss_of_labels(images, targets)
        if self.distillation is not None:
            loss = self._with_teacher(loss, images, logits, *seen)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def _loss_of_labels(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # Mixup's targets are smoothed already.
        smoothing = self.hparams["label_smoothing"] if self.mixup is None else 0.0
        if getattr(self.model, "overview_head", None) is None:
            logits = self(images)
            return logits, F.cross_entropy(logits, targets, label_smoothing=smoothing)
        with refusal_explained(self.backbone, self.model, images):
            logits, overview_logits = self.model.forward_overview(images)
        overview_loss = F.cross_entropy(overview_logits, targets, label_smoothing=smoothing)
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return logits, loss + self.hparams["overview_weight"] * overview_loss

    @contextmanager
    def _features_of_student(self) -> Iterator[list[Tensor]]:
        """Yield a list that is given what the classifier sees, where a teacher's is compared."""
        seen: list[Tensor] = []
        if self.distillation is None or self.distillation.feature_map is None:
            yield seen
            return

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(1))

        handle = self.model.get_classifier().register_forward_pre_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    def _with_teacher(
        self, loss: Tensor, images: Tensor, logits: Tensor, features: Tensor | None = None
    ) -> Tensor:
        assert self.distillation is not None
        of_logits, of_features = self.distillation(images, logits, features)
        if of_logits is not None:
            share = self.hparams["teacher_weight"]
            loss = (1 - share) * loss + share * of_logits
            self.log("train/teacher_loss", of_logits, on_step=False, on_epoch=True, sync_dist=True)
        if of_features is not None:
            loss = loss + self.hparams["teacher_features"] * of_features
            self.log(
                "train/feature_loss", of_features, on_step=False, on_epoch=True, sync_dist=True
            )
        return loss

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images and return them with soft targets (B, classes), or as they are without mixup.

        Raises:
            InputError: The batch has an odd number of images; they are mixed in pairs.
        """
        if self.mixup is None:
            return images, labels
        if len(images) % 2:
            raise InputError(
                f"mixup and cutmix mix images in pairs, found a batch of {len(images)}\n"
                "expected an even data.batch_size"
            )
        return self.mixup(images, labels)

    def pass_for_statistics(self, batch: tuple[Tensor, Tensor]) -> None:
        """Run the network with the head of the overview, which analyses read."""
        if getattr(self.model, "overview_head", None) is not None:
            self.model.forward_overview(batch[0])
        else:
            self(batch[0])

    def reset_evaluation(self, stage: str) -> None:
        """Start an evaluation: "val" or "test"."""
        self.losses[stage].reset()
        self.metrics[stage].reset()

    def evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Count a batch."""
        images, labels = batch
        logits = self(images).float()
        self.outputs.count(logits)
        # Per image, so that batches of unequal size and several processes weigh right.
        self.losses[stage].update(F.cross_entropy(logits, labels, reduction="none"))
        self.metrics[stage].update(logits, labels)

    def evaluation(self, stage: str) -> dict[str, float | Tensor]:
        """Return `loss`, `top1` and `top5`."""
        values = self.metrics[stage].compute()
        self._confusion = values.pop("confusion").cpu()
        return {"loss": self.losses[stage].compute(), **values}

    def report_classes(self, stage: str) -> None:
        """Print and write the accuracy of each class and the confusion matrix."""
        folder, confusion = Path(self.trainer.default_root_dir), self._confusion
        images = confusion.sum(1)
        shares = {"accuracy": confusion.diagonal() / images}
        write_classes(folder / per_class(stage), self.class_names, shares, {"images": images})
        write_confusion(folder / confusion_matrix(stage), self.class_names, confusion)

    def draw(self, images: Tensor) -> list[Tensor]:
        """Return each image (3, H, W) with the likeliest class written on it, uint8."""
        likeliest = self(images).argmax(dim=1).tolist()
        return [
            draw_class(image, self.class_names[index])
            for image, index in zip(images, likeliest, strict=True)
        ]

    def results_of(self, images: list[Tensor]) -> list[Classification]:
        """Return the class of each image; images of one size go through together."""
        together = [torch.stack(images)] if len({x.shape for x in images}) == 1 else images
        logits = [self(x if x.ndim == 4 else x[None]).float() for x in together]
        return [
            Classification(self.class_names[int(each.argmax())], each.cpu().numpy())
            for each in torch.cat(logits).softmax(dim=1)
        ]

    def on_predict_start(self) -> None:
        """Start the file of predictions."""
        super().on_predict_start()
        ranks = range(1, min(5, len(self.class_names)) + 1)
        head = ["item", *(f"class{r}" for r in ranks), *(f"probability{r}" for r in ranks)]
        self._rows = Rows(self.trainer, keep_earlier(self.trainer, PREDICTIONS), _csv([head]))

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> list[Prediction]:
        """Write and return (item, top-5 class names, their probabilities) per image."""
        images, items = batch
        logits = self(images).float()
        self.outputs.count(logits)
        self.outputs.refuse(self.trainer, together=False)
        top = logits.softmax(dim=1).topk(min(5, len(self.class_names)))
        rows = [
            (item, [self.class_names[index] for index in indices], probabilities)
            for item, indices, probabilities in zip(
                items, top.indices.tolist(), top.values.tolist(), strict=True
            )
        ]
        self._rows.add(
            _csv([item, *names, *(f"{p:.6f}" for p in shares)] for item, names, shares in rows)
        )
        return rows

    def on_predict_epoch_end(self) -> None:
        """Join the rows of all processes, those of the first first."""
        self._rows.close()
        rank_zero_info(f"Predictions: {self._rows.path}")


def _csv(rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
