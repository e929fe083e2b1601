"""The shipped configurations of detection say what the release's do, and run."""

import contextlib
import csv
import io
from pathlib import Path

import pytest
import timm
import torch
import yaml

from lightning_overlock.cli.main import main
from lightning_overlock.configs import shipped

# pycocotools 2.0 decodes masks by an interface that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


pytestmark = pytest.mark.usefixtures("coco")


def parsed(*names):
    """Return the whole configuration, the defaults of classes included."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["fit", *(f"--config={name}" for name in names), "--print_config"]) == 0
    return yaml.safe_load(printed.getvalue())


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "milestones"),
    [("coco_1x", 12, 2e-4, [8, 11]), ("coco_3x", 36, 1e-4, [27, 33])],
)
def test_both_schedules_are_those_of_the_release(name, epochs, lr, milestones):
    config = parsed(name, "coco_overlock_t")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_epochs"] == epochs
    assert (model["lr"], model["scale_lr_with_batch"]) == (lr, False)
    assert (model["schedule"], model["milestones"], model["gamma"]) == (
        "multistep",
        milestones,
        0.1,
    )
    assert (model["warmup_steps"], model["warmup_factor"]) == (500, 0.001)
    assert (model["weight_decay"], model["betas"]) == (0.05, [0.9, 0.999])
    assert model["layer_decay"] is None
    assert config["trainer"]["gradient_clip_val"] is None
    assert config["ema"]["decay"] is None
    # 16 images on the release's eight GPUs
    assert data["batch_size"] == 2
    assert data["hflip"] == 0.5
    assert (model["min_size"][-1], model["max_size"]) == (800, 1333)
    assert (model["masks"], model["overview"]) == (True, True)
    assert (model["fpn_width"], model["box_head_width"], model["mask_head_width"]) == (
        256,
        1024,
        256,
    )
    assert (model["anchor_scale"], model["proposals"]) == (8, 1000)
    assert (model["rpn_batch_size"], model["roi_batch_size"]) == (256, 512)
    assert (model["score_threshold"], model["nms_threshold"]) == (0.05, 0.5)
    assert model["detections_per_image"] == 100
    assert model["geometry"] == "mmdetection"


def test_the_long_schedule_trains_at_many_scales():
    short, long = parsed("coco_1x"), parsed("coco_3x")
    assert short["model"]["init_args"]["min_size"] == [800]
    assert long["model"]["init_args"]["min_size"] == list(range(480, 801, 32))
    assert short["data"]["init_args"]["scale_and_crop"] is False
    assert long["data"]["init_args"]["scale_and_crop"] is True


# Drop path of the release's detection configurations
@pytest.mark.parametrize(("variant", "drop_path"), [("t", 0.2), ("s", 0.4), ("b", 0.6)])
def test_variants_hold_the_backbone_and_its_drop_path(variant, drop_path):
    content = yaml.safe_load(shipped()[f"coco_overlock_{variant}"].read_text())
    name = f"overlock_{variant}"
    assert content == {
        "model": {"init_args": {"backbone": name, "backbone_args": {"drop_path_rate": drop_path}}}
    }
    assert timm.is_model(name)


# What makes the published network and its images small; all else is the configuration's.
SMALL = [
    "--model.min_size=[64]",
    "--model.max_size=96",
    "--model.proposals=50",
    "--model.roi_batch_size=32",
    "--data.root=coco",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
]


def losses(name):
    with Path(f"runs/{name}/metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_steps_of_the_long_schedule_in_the_layout_of_coco():
    words = ["--config=coco_3x", "--config=coco_overlock_t", "--model.backbone=test_overlock"]
    assert main(["fit", *words, *SMALL, "--name=run"]) == 0
    assert all(loss > 0 for loss in losses("run"))
    saved = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]["category_ids"].tolist() == [3, 17, 90]


@pytest.mark.slow
def test_two_steps_of_the_short_schedule_with_overlock_t_itself():
    words = ["--config=coco_1x", "--config=coco_overlock_t", "--trainer.enable_checkpointing=false"]
    assert main(["fit", *words, *SMALL, "--data.batch_size=1", "--name=run"]) == 0
    assert all(loss > 0 for loss in losses("run"))
