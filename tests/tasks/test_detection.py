"""Detection: losses, results and their ids, average precision from the command line."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shared import csv_rows

from lightning_overlock import load
from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.metrics.coco import NAMES
from lightning_overlock.tasks import DetectionTask
from lightning_overlock.tasks.drawing import draw_detections

# pycocotools 2.0 decodes masks by an interface that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = ["box", "disc", "unicorn"]

# The published network in small.
SMALL = {
    "backbone": "test_convnext",
    "min_size": [64],
    "max_size": 96,
    "fpn_width": 16,
    "box_head_width": 32,
    "mask_head_width": 16,
    "anchor_scale": 4.0,
    "proposals": 50,
    "rpn_batch_size": 32,
    "roi_batch_size": 32,
}
OPTIONS = [f"--model.{name}={value}" for name, value in SMALL.items()]
FIT = [
    "fit",
    "--model=DetectionTask",
    "--data=CocoDataModule",
    "--data.root=coco",
    "--data.batch_size=2",
    "--data.num_workers=0",
    *OPTIONS,
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
]


pytestmark = pytest.mark.usefixtures("coco")


def by_pycocotools(truth, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats[:6].tolist(), strict=True))


def assert_validation_is_pycocotools_own(row, results):
    """Hold a row of metrics.csv against pycocotools on the file that predict wrote."""
    truth = "coco/annotations/instances_val2017.json"
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        for name, expected in by_pycocotools(truth, results, kind).items():
            found = float(row[f"val/{prefix}{name}"])
            if expected == -1:
                assert math.isnan(found)
            else:
                assert found == pytest.approx(expected, abs=1e-6)


def scene(count=2, size=(64, 80)):
    """Return one image with so many objects and its target."""
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(count))
    boxes = torch.tensor([[4.0, 4, 34, 30], [30, 20, 70, 60]])[:count]
    masks = torch.zeros(count, *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.tensor([1, 2])[:count]
    return image, {"boxes": boxes, "labels": labels, "masks": masks, "image_id": count}


class TestTraining:
    # In DDP a parameter without a gradient stops the run.
    @pytest.mark.parametrize("backbone", ["test_overlock", "test_convneur", "test_resnet"])
    def test_every_parameter_learns_also_from_images_without_objects(self, backbone, monkeypatch):
        task = DetectionTask(CLASSES, **SMALL | {"backbone": backbone})
        logged = {}
        monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
        monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
        for batch in ([scene(2), scene(0)], [scene(0)]):
            images, targets = (list(field) for field in zip(*batch, strict=True))
            task.zero_grad()
            loss = task.training_step((images, targets), 0)
            loss.backward()
            parts = [value for name, value in logged.items() if name.startswith("train/loss_")]
            assert len(parts) == 6  # five losses and that of the step
            assert logged["train/loss"].item() == pytest.approx(
                sum(float(v) for n, v in logged.items() if n.count("_") and "step" not in n),
                rel=1e-5,
            )
            lacking = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
            assert lacking == []

    def test_the_backbone_gets_images_normalised_as_it_wants_them(self):
        task = DetectionTask(CLASSES, **SMALL)
        seen = []
        task.model.backbone.features.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        task.eval()
        mean, std = (torch.tensor(task.data_config[key]) for key in ("mean", "std"))
        with torch.no_grad():
            task([(mean + 2 * std).view(3, 1, 1).expand(3, 64, 64).clone()])
        torch.testing.assert_close(seen[0], torch.full((1, 3, 64, 64), 2.0))

    def test_masks_that_the_data_lack_are_an_input_error(self):
        image, target = scene()
        del target["masks"]
        with pytest.raises(
            InputError, match=r"the training data have no masks\nexpected model\.masks false"
        ):
            DetectionTask(CLASSES, **SMALL).training_step(([image], [target]), 0)


class TestCommands:
    def test_validate_says_what_pycocotools_says_of_the_json_of_predict(self, capsys):
        # All hundred detections per image, since so short a training finds nothing for sure.
        loose = ["--model.score_threshold=0", "--trainer.max_epochs=2", "--name=mine"]
        assert main([*FIT, *loose, "--model.lr=1e-3"]) == 0
        fitted = csv_rows("runs/mine/metrics.csv")[-1]
        for part in ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg"):
            assert float(fitted[f"train/loss_{part}"]) >= 0
        last = "--ckpt_path=runs/mine/checkpoints/last.ckpt"
        assert main(["validate", last]) == 0
        assert main(["predict", last]) == 0
        row = csv_rows("runs/mine/metrics.csv")[-1]
        assert row["stage"] == "validate"
        assert_validation_is_pycocotools_own(row, "runs/mine/detections.json")
        for name in ("val/map", "val/mask_map50"):
            assert row[name] == fitted[name]
        results = json.loads(Path("runs/mine/detections.json").read_text())
        assert {entry["category_id"] for entry in results} <= {3, 17, 90}
        assert {entry["image_id"] for entry in results} == {100, 200, 300, 400}
        # Options of inference are free to differ from the checkpoint's.
        assert main(["predict", last, "--model.detections_per_image=3"]) == 0
        assert len(json.loads(Path("runs/mine/detections.json").read_text())) <= 12

    def test_predict_on_plain_images_names_the_categories_of_the_training_file(self):
        once = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--name=mine"]
        assert (
            main([*FIT, *once, "--model.score_threshold=0", "--trainer.limit_val_batches=1"]) == 0
        )
        folder = Path("photos/below")
        folder.mkdir(parents=True)
        for index in range(3):
            Image.fromarray(np.full((50 + index, 70, 3), 80, np.uint8)).save(
                folder / f"{index}.jpg"
            )
        words = ["--data.predict_dir=photos", "--model.draw_score=0.0"]
        assert main(["predict", "--ckpt_path=runs/mine/checkpoints/last.ckpt", *words]) == 0
        content = json.loads(Path("runs/mine/images.json").read_text())
        assert content["categories"] == [
            {"id": 3, "name": "box"},
            {"id": 17, "name": "disc"},
            {"id": 90, "name": "unicorn"},
        ]
        assert [image["id"] for image in content["images"]] == [1, 2, 3]
        assert [image["file_name"] for image in content["images"]] == [
            f"below/{index}.jpg" for index in range(3)
        ]
        results = json.loads(Path("runs/mine/detections.json").read_text())
        assert results
        assert {entry["category_id"] for entry in results} <= {3, 17, 90}
        task = load("runs/mine/checkpoints/last.ckpt")
        assert task.hparams["draw_score"] is None
        path = folder / "1.jpg"
        (found,) = task.predict_images(path)
        (again,) = task.predict_images(np.asarray(Image.open(path)))
        expected = [entry for entry in results if entry["image_id"] == 2]
        assert len(found.scores) == len(expected) > 0
        assert found.masks.shape == (len(expected), 51, 70)
        for entry, box, score, name in zip(
            expected, found.boxes, found.scores, found.class_names, strict=True
        ):
            left, top, width, height = entry["bbox"]
            np.testing.assert_allclose(box, [left, top, left + width, top + height], atol=0.02)
            assert score == pytest.approx(entry["score"], abs=1e-4)
            assert {"box": 3, "disc": 17, "unicorn": 90}[name] == entry["category_id"]
        np.testing.assert_array_equal(again.masks, found.masks)
        for entry in results:
            image = content["images"][entry["image_id"] - 1]
            size = [image["height"], image["width"]]
            assert entry["segmentation"]["size"] == size == [49 + entry["image_id"], 70]
        for index in range(3):
            with Image.open(f"runs/mine/drawn/below/{index}.jpg") as drawn:
                assert drawn.size == (70, 50 + index)

    def test_boxes_alone_need_no_masks(self):
        for split in ("train", "val"):
            path = Path(f"coco/annotations/instances_{split}2017.json")
            content = json.loads(path.read_text())
            for annotation in content["annotations"]:
                del annotation["segmentation"]
            path.write_text(json.dumps(content))
        assert main([*FIT, "--model.masks=false", "--trainer.max_epochs=1", "--name=boxes"]) == 0
        row = csv_rows("runs/boxes/metrics.csv")[-1]
        assert "val/map" in row
        assert not [name for name in row if "mask" in name]

    @pytest.mark.slow
    def test_four_steps_are_two_and_two(self):
        words = [*FIT, "--model.backbone_args={drop_path_rate: 0.3}", "--model.min_lr=1e-3"]
        words += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
        words += ["--model.min_size=[48, 64]", "--ema.decay=0.9"]
        assert main([*words, "--trainer.max_epochs=2", "--name=whole"]) == 0
        assert main([*words, "--trainer.max_epochs=1", "--name=halves"]) == 0
        assert main(["fit", "--ckpt_path=last", "--name=halves", "--trainer.max_epochs=2"]) == 0
        whole, halves = (
            torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
            for name in ("whole", "halves")
        )
        for part in ("state_dict", "current_model_state"):
            for name, value in whole[part].items():
                assert torch.equal(value, halves[part][name]), name

    def test_boxes_cannot_be_computed_in_sixteen_bits(self, capsys):
        assert main([*FIT, "--trainer.precision=bf16-true", "--trainer.max_epochs=1"]) == 2
        assert "trainer.precision is bf16-true; torchvision" in capsys.readouterr().err

    def test_mixed_precision_trains_on_the_cpu(self):
        mixed = ["--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=true"]
        assert main([*FIT, *mixed]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score_threshold": 1.5},
            r"score_threshold: found 1\.5, expected a number from 0 to 1",
        ),
        ({"min_size": []}, r"model\.min_size is empty; expected sizes of at least 32 pixels"),
        ({"min_size": [800], "max_size": 700}, r"model\.max_size is 700; expected at least"),
        ({"proposals": 0}, r"model\.proposals: found 0, expected a number of at least 1"),
        ({"backbone": "test_vit"}, r"reductions"),
    ],
)
def test_options_out_of_range_are_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        DetectionTask(CLASSES, **SMALL | options)


def test_boxes_masks_and_words_are_drawn_where_they_are():
    image = torch.full((3, 60, 80), 0.5)
    masks = torch.zeros(1, 1, 60, 80)
    masks[0, 0, 20:30, 20:40] = 0.9
    found = {"boxes": torch.tensor([[10.0, 15, 50, 40]]), "labels": torch.tensor([2])}
    drawn = draw_detections(image, {**found, "masks": masks}, CLASSES)
    assert drawn.shape == (3, 60, 80)
    assert drawn.dtype == torch.uint8
    changed = (drawn != 128).any(0)
    assert changed[15, 10:51].all()  # the box's upper edge
    assert changed[21:29, 21:39].all()  # the mask
    assert not changed[:, 60:].any()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert (draw_detections(image, none, CLASSES) == 128).all()
