"""Every shipped configuration runs, and says what the papers' recipes say."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from lightning_overlock.cli.main import main
from lightning_overlock.configs import find, listing, shipped
from lightning_overlock.errors import InputError

VARIANTS = sorted(name for name in shipped() if re.match(r"(overlock|convneur)_", name))
# Those of detection and segmentation are run by the tests of their tasks.
DENSE = sorted(n for n in shipped() if re.match(r"(coco|detection|ade20k|segmentation)_?", n))
# Those of torchvision's data sets are run by tests/data/test_torchvision_images.py.
SETS = sorted(
    name
    for name, file in shipped().items()
    if name.startswith("pixels_32_") or "TorchvisionDataModule" in file.read_text()
)
BASES = sorted(set(shipped()) - set(VARIANTS) - set(DENSE) - set(SETS))


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = random.integers(0, 255, (70, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def content(name):
    return yaml.safe_load(shipped()[name].read_text())


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights to fine-tune from, of the backbones that stand in for larger ones here."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("test_overlock", "test_convnext"):
        torch.save(timm.create_model(name, num_classes=2).state_dict(), folder / f"{name}.pt")
    return folder


def options(config, images):
    """Return what makes a configuration small; its own values otherwise stay."""
    family = "convneur" if "convneur" in str(config["model"]) else "overlock"
    small = [
        f"--model.backbone=test_{family}",
        "--data.batch_size=2",
        "--trainer.fast_dev_run=true",
    ]
    if config["data"]["class_path"] == "ImageFolderDataModule":
        small += [f"--data.root={images}", "--data.image_size=64", "--data.num_workers=0"]
    return small


@pytest.mark.parametrize("name", BASES)
def test_each_configuration_runs(name, images, weights):
    small = options(content(name), images)
    start = [f"--model.init_from={weights}/test_overlock.pt"] if name == "finetune" else []
    assert main(["fit", "--config", name, *small, *start]) == 0


@pytest.mark.parametrize("base", ["imagenet", "finetune"])
def test_variants_go_after_a_recipe(base, images, weights):
    small = options(content(base), images)

    def start(name):
        return [f"--model.init_from={weights}/{name}.pt"] if base == "finetune" else []

    variant = ["--config", "overlock_xxt", *small, *start("test_overlock")]
    assert main(["fit", "--config", base, *variant]) == 0
    # Another model than the paper's, by the same configuration
    other = ["--model.backbone=test_convnext", *start("test_convnext")]
    assert main(["fit", "--config", base, *small, *other]) == 0


def test_fine_tuning_from_nothing_is_refused(images, capsys):
    assert main(["fit", "--config=finetune", f"--data.root={images}"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "lightning: --config finetune: found no trained weights to start from."
    assert second.startswith("Expected --model.init_from FILE, or --model.pretrained true")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_hold_only_what_differs(name, capsys):
    config = content(name)
    assert config.keys() == {"model"}
    assert config["model"].keys() == {"init_args"}
    assert config["model"]["init_args"].keys() == {"backbone", "backbone_args"}
    assert config["model"]["init_args"]["backbone"] == name
    assert timm.is_model(name)
    assert main(["fit", "--config=imagenet", f"--config={name}", "--print_config"]) == 0
    merged = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert merged["backbone"] == name
    assert merged["backbone_args"] == config["model"]["init_args"]["backbone_args"]
    assert merged["mixup"] == 0.8


# Drop path of the release's ImageNet training scripts
@pytest.mark.parametrize(
    ("name", "drop_path_rate"),
    [("xxt", 0.0), ("xt", 0.1), ("t", 0.15), ("s", 0.4), ("b", 0.5)],
)
def test_drop_path_is_that_of_the_release(name, drop_path_rate):
    args = content(f"overlock_{name}")["model"]["init_args"]["backbone_args"]
    assert args == {"drop_path_rate": drop_path_rate}


def test_the_imagenet_recipe_is_the_release_s(capsys):
    """Held against the release's training scripts, defaults of classes included."""
    assert main(["fit", "--config=imagenet", "--config=overlock_t", "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert 8 * data["batch_size"] * model["lr"] / 1024 == 2e-3
    assert model["scale_lr_with_batch"] is True
    assert (model["weight_decay"], model["betas"]) == (0.05, [0.9, 0.999])
    assert (model["warmup_epochs"], model["warmup_lr"], model["min_lr"]) == (5, 1e-6, 1e-5)
    assert config["trainer"]["max_epochs"] - model["cooldown_epochs"] == 300
    assert config["ema"] == {"decay": 0.9999, "warmup": False}
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["gradient_clip_val"] == 5
    assert config["trainer"]["sync_batchnorm"] is True
    assert (model["mixup"], model["cutmix"], model["mixup_switch_prob"]) == (0.8, 1.0, 0.5)
    assert (model["label_smoothing"], model["overview_weight"]) == (0.1, 0.4)
    assert data["auto_augment"] == "rand-m9-mstd0.5-inc1"
    assert (data["color_jitter"], data["re_prob"], data["re_mode"]) == (0.4, 0.25, "pixel")
    assert (data["scale"], data["hflip"]) == ([0.08, 1.0], 0.5)
    assert config["seed_everything"] == 42


def test_every_configuration_says_what_it_is_for():
    for name, file in shipped().items():
        line = file.read_text().splitlines()[0]
        assert re.fullmatch(r"# [A-Z].{20,110}\.", line), name
        assert f"{name} " in listing()


def test_bare_words_are_shipped_and_the_rest_are_paths(tmp_path):
    assert find("quickstart") == shipped()["quickstart"]
    for path in ("mine.yaml", "./mine", "mine.yml"):
        Path(path).write_text("{}")
        assert find(path) == Path(path)
    with pytest.raises(InputError, match=r"^--config mine: no configuration of this name"):
        find("mine")
    with pytest.raises(InputError, match=r"Did you mean 'mine.yaml'"):
        find("./min.yaml")


@pytest.mark.slow
def test_quickstart_reads_the_digits():
    assert main(["fit", "--config", "quickstart"]) == 0
    table = Path("runs/quickstart/metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("val/top1")
    assert float(table[-1].split(",")[column]) >= 0.97
