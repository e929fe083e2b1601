"""Every command and every line of Python in the README runs."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import fill
from PIL import Image

from lightning_overlock.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
# What keeps a command of the README small; nothing here changes which code it runs.
TINY = {
    "fit": [
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
    ],
    "validate": ["--trainer.limit_val_batches=1"],
    "test": ["--trainer.limit_test_batches=1"],
    "predict": ["--trainer.limit_predict_batches=1"],
    "bench": ["--seconds=0.01"],
}
SMALL_MODELS = {
    "overlock_t": "test_overlock",
    "convneur_m3": "test_convneur",
    "convnext_tiny": "test_convnext",
    "convnext_base": "test_convnext2",
    "resnet18": "test_resnet",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("lightning ")]


def smaller(words):
    """The same command on little work: small models, few batches, one epoch more than so far."""
    command, *rest = words
    rest = list(rest)
    if command == "bench":
        rest = [SMALL_MODELS.get(word, word) for word in rest]
        rest += ["--sizes", "1x9x9x5"] if "--ops" in rest else []
        rest += ["--memory-sizes", "1x12x4x3"] if "--memory" in rest else []
    if "--model.backbone" in rest:
        place = rest.index("--model.backbone") + 1
        rest[place] = SMALL_MODELS.get(rest[place], rest[place])
    if command == "fit":
        rest += ["--data.batch_size=4"]
        if "--trainer.max_epochs" in rest:
            rest[rest.index("--trainer.max_epochs") + 1] = "2"
        else:
            rest += ["--trainer.max_epochs=1"]
        if "imagenet" in rest:
            rest += ["--model.cooldown_epochs=0"]  # of one epoch none is left for them
        if "--data.root" in rest:
            rest += ["--data.image_size=64", "--data.num_workers=0", "--trainer.precision=32"]
    return [command, *rest, *TINY.get(command, [])]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    rng = np.random.default_rng(0)
    for root in ("photos", "imagenet"):
        for split, count in (("train", 6), ("val", 3)):
            for name in ("cat", "dog"):
                folder = tmp_path / root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 255, (80, 90, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    keys = Path(fill.__file__).parent / "keys_overlock_xt.json"
    weights = fill.state_dict(json.loads(keys.read_text()))
    torch.save(weights, tmp_path / "overlock_xt_in1k_224.pth")
    return tmp_path


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_readme(workplace, capsys):
    found = commands()
    assert len(found) > 8
    for command in found:
        words = shlex.split(command)[1:]
        code = main(smaller(words))
        shown = capsys.readouterr()
        assert code == 0, f"{command}\n{shown.out}\n{shown.err}"
    assert (workplace / "runs/finetune-overlock_xt/predictions.csv").is_file()


def test_every_line_of_python_runs():
    scope = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["fast"](torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert len(scope["maps"](torch.zeros(1, 3, 64, 64))) == 4


def test_make_targets_of_the_readme_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
    assert targets == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
