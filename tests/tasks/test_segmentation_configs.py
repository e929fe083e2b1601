"""The shipped segmentation configurations say what the release's recipe says, and run."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import printed_config

from lightning_overlock.cli.main import main

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def ade20k():
    """The layout of ADEChallengeData2016: JPEG photos, grey PNGs with 0 for no class."""
    random = np.random.default_rng(0)
    root = Path("ADEChallengeData2016")
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            name = f"ADE_{split[:5]}_{index:08d}"
            photo = random.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(photo).save(root / "images" / split / f"{name}.jpg")
            classes = random.integers(0, 151, (7, 9), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
            Image.fromarray(classes).save(root / "annotations" / split / f"{name}.png")
    return root


def test_the_ade20k_recipe_is_the_release_s(capsys, ade20k):
    config = printed_config(capsys, "--config=ade20k", f"--data.root={ade20k}")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert config["trainer"]["max_steps"] == 160_000
    assert config["trainer"]["max_epochs"] is None
    assert config["trainer"]["val_check_interval"] == 16_000
    assert config["trainer"]["check_val_every_n_epoch"] is None
    assert (data["batch_size"], data["crop_size"]) == (16, 512)
    assert (data["resize"], data["ratio"]) == ([2048, 512], [0.5, 2.0])
    assert (data["largest_share"], data["hflip"], data["photometric"]) == (0.75, 0.5, True)
    assert (model["lr"], model["weight_decay"], model["betas"]) == (6e-5, 0.01, [0.9, 0.999])
    assert (model["schedule"], model["power"], model["min_lr"]) == ("poly", 1.0, 0.0)
    assert (model["warmup_steps"], model["warmup_factor"]) == (1500, 1e-6)
    assert (model["decoder"], model["decoder_width"], model["dropout"]) == ("upernet", 512, 0.1)
    assert (model["auxiliary_weight"], model["auxiliary_width"]) == (0.4, 256)
    assert (model["test_size"], model["test_max_size"], model["inference"]) == (512, 2048, "whole")
    assert (model["test_flip"], model["test_scales"]) == (False, [1.0])
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["sync_batchnorm"] is True
    assert config["trainer"]["gradient_clip_val"] is None
    assert config["seed_everything"] == 42


@pytest.mark.parametrize(("name", "drop_path_rate"), [("t", 0.2), ("s", 0.3), ("b", 0.5)])
def test_variants_hold_only_what_differs(capsys, ade20k, name, drop_path_rate):
    variant = f"--config=ade20k_overlock_{name}"
    model = printed_config(capsys, "--config=ade20k", variant, f"--data.root={ade20k}")["model"]
    plain = printed_config(capsys, "--config=ade20k", f"--data.root={ade20k}")["model"]
    assert model["init_args"].pop("backbone") == f"overlock_{name}"
    assert model["init_args"].pop("backbone_args") == {"drop_path_rate": drop_path_rate}
    del plain["init_args"]["backbone"], plain["init_args"]["backbone_args"]
    assert model == plain


def three_steps(root, *arguments):
    return main(
        [
            "fit",
            "--config=ade20k",
            "--config=ade20k_overlock_t",
            f"--data.root={root}",
            "--data.batch_size=2",
            "--data.crop_size=64",
            "--data.resize=[256,64]",
            "--data.num_workers=0",
            "--model.test_size=64",
            "--trainer.max_steps=3",
            "--trainer.val_check_interval=3",
            "--trainer.log_every_n_steps=1",
            "--trainer.accelerator=cpu",
            *arguments,
        ]
    )


@pytest.mark.slow
def test_ade20k_runs_beyond_an_epoch_on_its_layout(ade20k):
    small = ["--model.backbone=test_overlock", "--model.decoder_width=8"]
    assert three_steps(ade20k, *small, "--model.auxiliary_width=8") == 0
    # Two steps are an epoch; the last step is validated.
    with Path("runs/ade20k-ade20k_overlock_t/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [row for row in rows if row["stage"] == "fit"]
    (validation,) = [row for row in rows if row["stage"] == "fit/validate"]
    assert [(row["epoch"], row["step"]) for row in epochs] == [("0", "2"), ("1", "3")]
    assert not epochs[0].get("val/miou")
    assert (validation["epoch"], validation["step"]) == ("1", "3")
    assert 0 <= float(validation["val/miou"]) <= 1
    # Early in the warm-up, on the line that ends in 0 after the third step
    lr = 6e-5 * (1 - 2 / 3) * (1e-6 + (1 - 1e-6) * 2 / 1500)
    assert float(epochs[1]["lr"]) == pytest.approx(lr, rel=1e-4)


@pytest.mark.slow
def test_ade20k_runs_beyond_an_epoch_with_overlock_t(ade20k):
    assert three_steps(ade20k) == 0


@pytest.mark.slow
def test_the_quickstart_runs_two_steps(monkeypatch):
    monkeypatch.setenv("OVERLOCK_CACHE", "cache")
    small = ["--data.scenes.train_images=40", "--data.scenes.eval_images=4"]
    small += ["--trainer.fast_dev_run=2"]
    assert main(["fit", "--config=segmentation_quickstart", *small]) == 0
