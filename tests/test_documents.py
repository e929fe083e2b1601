"""Every command and every line of Python in the README and the documentation runs."""

import json
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.worker_steps import SameProcess
from export import trained_runs
from parity import fill
from PIL import Image
from tasks.coco_layout import write_layout

from lightning_overlock.bench import models
from lightning_overlock.bench.options import read_options
from lightning_overlock.cli.main import main
from lightning_overlock.cli.request import read_request
from lightning_overlock.convert.options import read_options as read_conversion
from lightning_overlock.errors import InputError
from lightning_overlock.sweep import arguments as sweep_arguments
from lightning_overlock.sweep.read import read

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXPORT = ROOT / "docs" / "export.md"  # its lines need runs, which a test of its own makes
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
    "sweep": ["--set", "seeds=[1]", "--set", "rows=[full, no_aux]"],
}
# For networks and images of the published sizes
SMALL_DETECTION = [
    "--model.min_size=[64]",
    "--model.max_size=96",
    "--model.proposals=20",
    "--model.roi_batch_size=16",
    "--data.num_workers=0",
    "--trainer.precision=32",
]
SMALL_SEGMENTATION = [
    "--model.test_size=64",
    "--data.crop_size=64",
    "--data.resize=[256,64]",
    "--data.num_workers=0",
    "--trainer.precision=32",
]
SMALL_SCENES = ["--data.scenes.train_images=8", "--data.scenes.eval_images=2"]
SMALL_MODELS = {
    "overlock_t": "test_overlock",
    "convneur_m3": "test_convneur",
    "convnext_tiny": "test_convnext",
    "convnext_base": "test_convnext2",
    "resnet18": "test_resnet",
}


def blocks(language, page):
    pattern = rf"^```{language}\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    """Each command once, those of the README first."""
    pages = [page for page in PAGES if page != EXPORT]
    shown = [block.replace("\\\n", " ") for page in pages for block in blocks("sh", page)]
    lines = [line for block in shown for line in block.splitlines()]
    typed = [line.partition("#")[0].strip() for line in lines if line.startswith("lightning ")]
    return list(dict.fromkeys(typed))


def mentioned():
    """Commands amid a sentence or in blocks of text: they need a GPU, a queue or hours."""
    found = []
    for page in PAGES:
        found += re.findall(r"`(lightning [\w-]+ [^`\n]+)`", page.read_text())
        shown = [block.replace("\\\n", " ") for block in blocks("text", page)]
        lines = [line for block in shown for line in block.splitlines()]
        found += [line for line in lines if line.startswith("lightning ")]
    return sorted({command for command in found if not re.search(r"\b(FILE|NAME)\b", command)})


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
    if command == "sweep":  # a study is read with the settings it was run with
        few = ("data.train_images=64", "data.eval_images=20", "trainer.max_epochs=1", "seeds=[1]")
        for option in few:
            rest += ["--set", option]
    if command == "fit":
        rest += ["--data.batch_size=2" if "coco_1x" in rest else "--data.batch_size=4"]
        rest += SMALL_DETECTION if "coco_1x" in rest else []
        rest += SMALL_SEGMENTATION if "ade20k" in rest else []
        rest += SMALL_SCENES if "detection_quickstart" in rest else []
        rest += SMALL_SCENES if "segmentation_quickstart" in rest else []
        if "--trainer.max_epochs" in rest:
            rest[rest.index("--trainer.max_epochs") + 1] = "2"
        elif "--trainer.max_steps" in rest:
            rest[rest.index("--trainer.max_steps") + 1] = "1"
            rest[rest.index("--trainer.val_check_interval") + 1] = "1"
        else:
            rest += ["--trainer.max_epochs=1"]
        if "imagenet" in rest:
            rest += ["--model.cooldown_epochs=0"]  # of one epoch none is left for them
        if "--data.root" in rest and "ade20k" not in rest:
            rest += ["--data.image_size=64", "--data.num_workers=0", "--trainer.precision=32"]
    return [command, *rest, *TINY.get(command, [])]


@pytest.fixture
def workplace(workplace, monkeypatch):
    tmp_path = workplace
    monkeypatch.setenv("OVERLOCK_CACHE", "cache")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    for root in ("photos", "imagenet"):
        for split, count in (("train", 6), ("val", 3)):
            for name in ("cat", "dog"):
                folder = tmp_path / root / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 255, (80, 90, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    for size in ("xt", "t"):
        keys = Path(fill.__file__).parent / f"keys_overlock_{size}.json"
        weights = fill.state_dict(json.loads(keys.read_text()))
        torch.save(weights, tmp_path / f"overlock_{size}_in1k_224.pth")
    write_parts(tmp_path / "parts")
    write_plots(tmp_path / "plots", rng)
    return tmp_path


def write_parts(root):
    """Objects in COCO's format, in a layout of one's own."""
    write_layout(root)
    for split in ("train", "val"):
        (root / f"{split}2017").rename(root / split)
        (root / "annotations" / f"instances_{split}2017.json").rename(root / f"{split}.json")


def write_plots(root, rng):
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / f"{i}.jpg")
            classes = rng.integers(0, 3, (7, 9), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
            Image.fromarray(classes).save(root / "labels" / split / f"{i}.png")
    (root / "classes.txt").write_text("soil\nwheat\nweed\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight minutes on an idle core
def test_every_command_runs_in_the_order_of_the_pages(workplace, capsys):
    found = commands()
    assert len(found) > 8
    for command in found:
        words = shlex.split(command)[1:]
        code = main(smaller(words))
        shown = capsys.readouterr()
        assert code == 0, f"{command}\n{shown.out}\n{shown.err}"
    runs = workplace / "runs"
    assert (runs / "finetune-overlock_xt/predictions.csv").is_file()
    assert (runs / "parts/detections.json").is_file()
    assert list((runs / "plots/segmentation").rglob("*.overlay.png"))
    assert "auxiliary loss" in (runs / "overlock_components-mini/table.md").read_text()


@pytest.mark.parametrize("command", mentioned())
def test_commands_that_are_only_mentioned_are_read(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)[1:]
    if name == "sweep" and words[0] in sweep_arguments.ACTIONS:
        if "./gate.yaml" in words:
            yaml, *_ = blocks("yaml", ROOT / "docs" / "sweeps.md")
            Path("gate.yaml").write_text(yaml)
        options = sweep_arguments.parse(words)
        if words[0] in sweep_arguments.OF_FILES:
            assert read(options.file, options.profile, options.set).rows
    elif name == "bench":
        with pytest.raises(SystemExit) if "--help" in words else nullcontext():
            read_options(words)
    elif name == "data":
        with pytest.raises(InputError, match="this is no folder"):
            read_conversion(words)
    else:
        read_request(name, words)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p != EXPORT and blocks("python", p)], ids=lambda page: page.name
)
def test_every_line_of_python_runs(page):
    scope = {}
    for block in blocks("python", page):
        exec(compile(block, page.name, "exec"), scope)
    if page == README:
        assert scope["fast"](torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_line_on_exports_runs_in_the_order_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "Worker", SameProcess)
    for name, make in (
        ("quickstart", trained_runs.classifier),
        ("parts", trained_runs.detector),
        ("plots", trained_runs.segmenter),
    ):
        make(tmp_path / "runs" / name, "test_convnext")
    for name in ("a.png", "b.png", "photo.jpg"):
        Image.new("RGB", (70, 50)).save(tmp_path / name)
    scope = {}
    shown = re.findall(r"^```(sh|python)\n(.*?)^```", EXPORT.read_text(), re.MULTILINE | re.DOTALL)
    for language, block in shown:
        if language == "python":
            exec(compile(block, EXPORT.name, "exec"), scope)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            assert main([*shlex.split(line)[1:], "--seconds=0.01"]) == 0, line
    files = sorted(path.name for path in (tmp_path / "runs/quickstart/export").iterdir())
    names = ["model.aoti.pt2", "model.onnx", "model.pt2", "timm"]
    assert files == sorted(names + [f"{name}.json" for name in names[:-1]])
    np.testing.assert_allclose(
        scope["session"].run(None, {"images": scope["images"].numpy()})[0],
        scope["logits"].numpy(),
        rtol=0,
        atol=1e-5,
    )
    assert (tmp_path / "runs/plots/export/model.pt2").is_file()


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh", README)), re.MULTILINE)
    assert targets == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_readme_has_at_most_200_lines():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose):
        if "://" not in link:
            assert (page.parent / link).exists(), link
