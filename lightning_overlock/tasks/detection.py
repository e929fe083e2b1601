"""Object detection with instance masks on any timm backbone."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor, nn

from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.backbones.weights import Renamed
from lightning_overlock.errors import InputError
from lightning_overlock.heads.geometry import Geometry
from lightning_overlock.heads.mask_rcnn import mask_rcnn
from lightning_overlock.heads.release import released_heads
from lightning_overlock.metrics.coco import (
    Evaluator,
    average_precision,
    coco_results,
    find_evaluator,
)
from lightning_overlock.ranges import ABOVE_0, AT_LEAST_1, SHARE, Range
from lightning_overlock.runs.disk import replace_file
from lightning_overlock.runs.layout import DETECTED_IMAGES, DETECTIONS, DRAWN
from lightning_overlock.tasks.base import BaseTask
from lightning_overlock.tasks.drawing import draw_detections
from lightning_overlock.tasks.predictions import (
    ROWS_ARE_GOOD,
    Rows,
    keep_earlier,
    write_prediction,
)
from lightning_overlock.tasks.results import DetectedObjects

Target = dict[str, Any]
Detections = dict[str, Tensor]


class _Seen(NamedTuple):
    """What the average precision is computed of, for one image: entries of COCO files."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    results: list[dict[str, Any]]


class DetectionTask(BaseTask):
    """Train, evaluate and apply Mask R-CNN, or Faster R-CNN without masks.

    The network is `heads.mask_rcnn`; its docstring says how it follows the release's configuration
    and where torchvision differs. Batches are (images, targets), lists with an entry per image: an
    image (3, H, W) float32 in [0, 1] of any size, in training a target with `boxes` (N, 4) float32
    x1, y1, x2, y2 in pixels, `labels` (N,) int64 from 1 and `masks` (N, H, W) uint8, in evaluation
    one with `image_id`, `size` (H, W) and `annotations` as in the COCO file, in prediction one with
    `image_id`, `file_name` and `size`.

    Logs `train/loss` (mean of the epoch) and its parts by torchvision's names, and under `val/` and
    `test/` the average precision of boxes `map`, `map50`, `map75`, `map_small`, `map_medium` and
    `map_large`, and of masks the same with `mask_` before it; NaN where there is no object (of this
    size). They are pycocotools' own numbers: each process keeps COCO results with compressed
    masks, the first gathers them and evaluates. torchmetrics' MeanAveragePrecision was not taken:
    it wants ground truth masks as dense arrays, keeps every process waiting for a gathering of
    tensors one by one, and cannot be held against a written file image by image.

    Prediction writes into the trainer's `default_root_dir`: `detections.json`, a COCO result file
    with the categories' ids of the training data, `images.json`, the images and categories that it
    speaks of, and on request the images with boxes and masks in `drawn/`.

    Args:
        class_names: Names of the classes; linked from the data.
        masks: Train and predict masks as well (Mask R-CNN).
        overview: Add the overview to the last map as the release does, for backbones that have it.
        min_size: Short side of the images after resizing. From several, training draws one for each
            image and evaluation takes the last.
        max_size: Limit of the long side, which the short one gives way to.
        fpn_width: Channels of the feature pyramid.
        box_head_width: Width of the two layers of the box head.
        mask_head_width: Channels of the four convolutions of the mask head.
        anchor_scale: Side of a square anchor over the stride (4 to 64) of its pyramid level.
        proposals: Boxes per image that the first stage hands to the second.
        rpn_batch_size: Anchors per image that the first stage's losses are computed of.
        roi_batch_size: Proposals per image that the second stage's losses are computed of.
        score_threshold: Detections have at least this score.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped.
        detections_per_image: Largest number of detections, those of the highest scores.
        geometry: By whose conventions boxes and masks lie, to the fraction of a pixel: those of
            torchvision, or of mmdetection, with which the release's detectors were trained.
        draw_score: Prediction draws the detections of at least this score; None draws nothing.
        evaluator: What computes the average precision; the figures are the same. auto takes
            faster_coco_eval, several times as fast, where it is installed.
        kwargs: Arguments of `BaseTask`.

    Raises:
        InputError: An argument is out of range, the backbone refuses its own, or the data have no
            masks where they are wanted.
    """

    monitor = "val/map"
    ranges: ClassVar[dict[str, Range]] = BaseTask.ranges | {
        "min_size": Range(32),
        "max_size": Range(32),
        "fpn_width": AT_LEAST_1,
        "box_head_width": AT_LEAST_1,
        "mask_head_width": AT_LEAST_1,
        "anchor_scale": ABOVE_0,
        "proposals": AT_LEAST_1,
        "rpn_batch_size": AT_LEAST_1,
        "roi_batch_size": AT_LEAST_1,
        "score_threshold": SHARE,
        "nms_threshold": SHARE,
        "detections_per_image": AT_LEAST_1,
        "draw_score": SHARE,
    }
    overridable_options = BaseTask.overridable_options | {
        "score_threshold",
        "nms_threshold",
        "detections_per_image",
        "draw_score",
        "evaluator",
    }
    min_classes = 1
    category_ids: Tensor

    def __init__(
        self,
        class_names: list[str],
        masks: bool = True,
        overview: bool = True,
        min_size: list[int] = [800],  # noqa: B006 - read only; the CLI shows it
        max_size: int = 1333,
        fpn_width: int = 256,
        box_head_width: int = 1024,
        mask_head_width: int = 256,
        anchor_scale: float = 8.0,
        proposals: int = 1000,
        rpn_batch_size: int = 256,
        roi_batch_size: int = 512,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 100,
        geometry: Geometry = "torchvision",
        draw_score: float | None = None,
        evaluator: Evaluator = "auto",
        **kwargs: Any,
    ) -> None:
        _check_sizes(min_size, max_size)
        find_evaluator(evaluator)  # before anything long begins
        super().__init__(class_names, **kwargs)
        # In the checkpoint, so that prediction on plain images can name the file's categories.
        self.register_buffer("category_ids", torch.arange(1, len(class_names) + 1))

    def build_model(self, num_classes: int) -> nn.Module:
        """Return the detector."""
        hparams = self.hparams
        overview = None if hparams["overview"] else False
        features = DenseFeatures(self.backbone, hparams["backbone_args"], overview)
        return mask_rcnn(
            features,
            num_classes,
            hparams["masks"],
            min_size=hparams["min_size"],
            max_size=hparams["max_size"],
            fpn_width=hparams["fpn_width"],
            box_head_width=hparams["box_head_width"],
            mask_head_width=hparams["mask_head_width"],
            anchor_scale=hparams["anchor_scale"],
            proposals=hparams["proposals"],
            rpn_batch_size=hparams["rpn_batch_size"],
            roi_batch_size=hparams["roi_batch_size"],
            score_threshold=hparams["score_threshold"],
            nms_threshold=hparams["nms_threshold"],
            detections_per_image=hparams["detections_per_image"],
            geometry=hparams["geometry"],
        )

    def rename_heads(self, weights: Mapping[str, Tensor]) -> Renamed:
        """Return the heads of a released detector among a file's weights, by our names."""
        heads = released_heads(weights)
        if heads and self.hparams["geometry"] != "mmdetection":
            rank_zero_info(
                "The heads in this file were trained by mmdetection and detect as they did there "
                "with model.geometry mmdetection, as coco_1x and coco_3x have it"
            )
        return heads

    def setup(self, stage: str) -> None:
        """Refuse a precision that torchvision's detectors cannot compute boxes in."""
        super().setup(stage)
        precision = str(self.trainer.precision)
        if precision in {"16-true", "bf16-true"}:
            raise InputError(
                f"trainer.precision is {precision}; torchvision's detectors want boxes in 32 bits\n"
                "expected bf16-mixed, 16-mixed or 32-true"
            )

    def on_fit_start(self) -> None:
        """Take the categories' ids from the data."""
        super().on_fit_start()
        self.category_ids.copy_(torch.tensor(self._categories()))

    def _categories(self) -> list[int]:
        """Return the category of each label: the data's where they say them."""
        ids: Sequence[int] = getattr(self.trainer.datamodule, "category_ids", ())  # type: ignore[attr-defined]
        return list(ids) or self.category_ids.tolist()

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Map images (3, H, W) to detections, in evaluation mode; see `heads.mask_rcnn`.

        Only images of one size share a batch: padded to the size of another, an image would have
        results that depend on its neighbours, and so on the batch size and number of processes.
        """
        groups: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        detections: dict[int, Detections] = {}
        for group in groups.values():
            found = self.model([images[index] for index in group])
            detections |= zip(group, found, strict=True)
        return [detections[index] for index in range(len(images))]

    def draw(self, images: list[Tensor]) -> list[Tensor]:
        """Return images (3, H, W) uint8 with what scores at least `draw_score`, or one half."""
        least = self.hparams["draw_score"]
        return [
            self._drawn(image, found, 0.5 if least is None else least)
            for image, found in zip(images, self(images), strict=True)
        ]

    def _drawn(self, image: Tensor, found: Detections, least: float) -> Tensor:
        keep = found["scores"] >= least
        kept = {name: value[keep] for name, value in found.items()}
        return draw_detections(image, kept, self.class_names)

    def training_step(self, batch: tuple[list[Tensor], list[Target]], batch_idx: int) -> Tensor:
        """Return the sum of the losses."""
        images, targets = batch
        needed = ("boxes", "labels", "masks") if self.hparams["masks"] else ("boxes", "labels")
        if "masks" in needed and any("masks" not in target for target in targets):
            raise InputError(
                "the training data have no masks\n"
                "expected model.masks false, or annotations with a segmentation"
            )
        losses: dict[str, Tensor] = self.model(
            images, [{name: target[name] for name in needed} for target in targets]
        )
        loss = torch.stack(list(losses.values())).sum()
        count = len(images)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        parts = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(
            {"train/loss": loss.detach(), **parts},
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=count,
        )
        return loss

    def pass_for_statistics(self, batch: tuple[list[Tensor], list[Target]]) -> None:
        """Run the network on images that are padded to one size, as in training."""
        self.model(batch[0])

    def reset_evaluation(self, stage: str) -> None:
        """Start an evaluation."""
        self._seen: dict[int, _Seen] = {}

    def evaluate(self, batch: tuple[list[Tensor], list[Target]], stage: str) -> None:
        """Keep a batch's detections beside its annotations."""
        images, targets = batch
        for found, target in zip(self(images), targets, strict=True):
            height, width = target["size"]
            image_id = target["image_id"]
            self._seen[image_id] = _Seen(
                {"id": image_id, "height": height, "width": width},
                target["annotations"],
                coco_results(found, image_id, self._categories()),
            )

    def evaluation(self, stage: str) -> dict[str, float | Tensor]:
        """Return the average precisions of boxes and, with `mask_` before them, of masks."""
        seen = self._gather(self._seen)
        self._seen = {}
        values: dict[str, float] = {}
        if self.trainer.is_global_zero:
            images = [entry.image for entry in seen]
            annotations = list(chain.from_iterable(entry.annotations for entry in seen))
            results = list(chain.from_iterable(entry.results for entry in seen))
            for kind, prefix in (("bbox", ""), ("segm", "mask_")):
                if kind == "bbox" or self.hparams["masks"]:
                    found = average_precision(
                        images,
                        annotations,
                        results,
                        self._categories(),
                        kind,
                        self.hparams["evaluator"],
                    )
                    values |= {f"{prefix}{name}": v for name, v in found.items()}
        # One evaluates and all log the same: checkpoints are chosen by every process.
        return dict(self.trainer.strategy.broadcast(values))

    def _gather(self, own: dict[int, _Seen]) -> list[_Seen]:
        """Return what all processes have seen, on the first; an image seen twice counts once."""
        parts: list[dict[int, _Seen]] = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            first = self.trainer.is_global_zero
            parts = [{}] * self.trainer.world_size if first else []
            torch.distributed.gather_object(own, parts if first else None)
        together: dict[int, _Seen] = {}
        for part in parts:
            together |= {image: entry for image, entry in part.items() if image not in together}
        return list(together.values())

    def results_of(self, images: list[Tensor]) -> list[DetectedObjects]:
        """Return the objects of each image."""
        return [self._plain(found) for found in self(images)]

    def _plain(self, found: Detections) -> DetectedObjects:
        values = {name: value.cpu().numpy() for name, value in found.items()}
        labels = values["labels"] - 1  # 0 is the background
        masks = values["masks"][:, 0] > 0.5 if "masks" in values else None
        names = [self.class_names[label] for label in labels]
        return DetectedObjects(names, labels, values["scores"], values["boxes"], masks)

    def on_predict_start(self) -> None:
        """Start the files of predictions."""
        super().on_predict_start()
        self._seen = {}
        if self.hparams["draw_score"] is not None:
            keep_earlier(self.trainer, DRAWN)
        keep_earlier(self.trainer, DETECTED_IMAGES)
        self._rows = Rows(self.trainer, keep_earlier(self.trainer, DETECTIONS), "[\n", ",\n")

    def predict_step(
        self, batch: tuple[list[Tensor], list[Target]], batch_idx: int
    ) -> list[list[dict[str, Any]]]:
        """Return an image's COCO results per image, and draw them on request."""
        images, metas = batch
        rows = []
        for image, found, meta in zip(images, self(images), metas, strict=True):
            height, width = image.shape[1:]
            entry = {"id": meta["image_id"], "file_name": meta["file_name"]}
            results = coco_results(found, meta["image_id"], self._categories())
            self._seen[meta["image_id"]] = _Seen(entry | {"height": height, "width": width}, [], [])
            rows.append(results)
            if (least := self.hparams["draw_score"]) is not None:
                self._save_drawn(self._drawn(image, found, least), meta["file_name"])
        for result in chain.from_iterable(rows):
            self._rows.add(json.dumps(result))
        return rows

    def _save_drawn(self, drawn: Tensor, file_name: str) -> None:
        # A file's name may have folders in it, but must not lead out of this one.
        parts = [part for part in PurePosixPath(file_name).parts if part not in {"/", ".."}]
        path = Path(self.trainer.default_root_dir, DRAWN, *parts)
        write_prediction(Image.fromarray(drawn.permute(1, 2, 0).numpy()), path)

    def on_predict_epoch_end(self) -> None:
        """Close `detections.json` and write `images.json`."""
        self._rows.close("\n]\n")
        seen = self._gather(self._seen)
        if not self.trainer.is_global_zero:
            return
        named = zip(self._categories(), self.class_names, strict=True)
        spoken_of = {
            "images": [entry.image for entry in seen],
            "categories": [{"id": category, "name": name} for category, name in named],
        }
        folder = Path(self.trainer.default_root_dir)
        replace_file(folder / DETECTED_IMAGES, json.dumps(spoken_of).encode(), ROWS_ARE_GOOD)
        rank_zero_info(f"Detections: {folder / DETECTIONS}")
        if self.hparams["draw_score"] is not None:
            rank_zero_info(f"Drawn: {folder / DRAWN}")


def _check_sizes(min_size: list[int], max_size: int) -> None:
    if not min_size:
        raise InputError("model.min_size is empty; expected sizes of at least 32 pixels")
    if max_size < max(min_size):
        raise InputError(
            f"model.max_size is {max_size}; expected at least min_size, {max(min_size)}"
        )
