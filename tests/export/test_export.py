"""Exported networks agree with their tasks, in processes that have never seen this package."""

import itertools
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import timm
import torch
import trained_runs
from PIL import Image
from safetensors.torch import load_file

import lightning_overlock
from lightning_overlock.bench.exported import as_runner, exported_row
from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.export import comparison
from lightning_overlock.export.network import exported_network
from lightning_overlock.tasks.detection import DetectionTask

# Runs files where the import of this package fails, on images that were stored beside them.
ALONE = """
import json
import sys
import numpy as np
import torch

sys.modules["lightning_overlock"] = None  # an import of it raises
for path in sys.argv[1:]:
    images = np.load(path + ".npy")
    if path.endswith(".onnx"):
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = [output.name for output in session.get_outputs()]
        results = dict(zip(outputs, session.run(None, {"images": images})))
        meta = session.get_modelmeta().custom_metadata_map
    elif path.endswith(".aoti.pt2"):
        import zipfile
        from torch._inductor import aoti_load_package
        with zipfile.ZipFile(path) as package:
            (name,) = [n for n in package.namelist() if n.endswith("extra/lightning_overlock.json")]
            meta = json.loads(package.read(name))
        results = {meta["outputs"]: aoti_load_package(path)(torch.from_numpy(images)).numpy()}
    else:
        import torchvision  # whose operations detectors have
        extra = {"lightning_overlock.json": ""}
        program = torch.export.load(path, extra_files=extra)
        meta = json.loads(extra["lightning_overlock.json"])
        with torch.no_grad():
            results = program.module()(torch.from_numpy(images))
        results = [results] if isinstance(results, torch.Tensor) else results
        results = {name: x.numpy() for name, x in zip(meta["outputs"].split(", "), results)}
    np.savez(path + ".npz", class_names=meta["class_names"], **results)
"""
# The same of timm folders; a name of a package is imported first.
TIMM = """
import importlib
import sys
import numpy as np
import timm
import torch

for path in sys.argv[1:]:
    if not path.startswith("/"):
        importlib.import_module(path)
        continue
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(np.load(path + ".npy")))
    np.savez(path + ".npz", logits=logits.numpy(), names=model.pretrained_cfg["label_names"])
"""


def export(run, *words):
    assert main(["export", "--ckpt_path", str(run), "--seconds", "0.01", *map(str, words)]) == 0


def run_afresh(code, *words):
    line = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def store_images(path, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    np.save(f"{path}.npy", images.numpy())


def assert_agree_alone(run, shapes, tolerance=1e-5):
    """Hold files, run in a process that lacks this package, against the task in this one.

    `shapes` has the shape of the images by file.
    """
    for path, shape in shapes.items():
        store_images(path, shape)
    run_afresh(ALONE, *shapes)
    task = lightning_overlock.load(run)
    network = exported_network(task, torch.float32)
    for path in shapes:
        loaded = dict(np.load(f"{path}.npz"))
        assert json.loads(str(loaded.pop("class_names"))) == task.class_names
        found = {name: torch.from_numpy(x) for name, x in loaded.items()}
        images = torch.from_numpy(np.load(f"{path}.npy"))
        expected = as_runner(network, network.outputs)(images)
        match = comparison._objects if "boxes" in expected else comparison._logits
        difference, equal = match(expected, found, tolerance)
        assert difference < tolerance, path
        assert equal > 0.99, path


@pytest.fixture(scope="module")
def convnext_run(tmp_path_factory):
    return trained_runs.classifier(tmp_path_factory.mktemp("trained") / "run", "test_convnext")


def test_a_timm_folder_is_the_network_with_its_classes_and_its_card(tmp_path):
    run = trained_runs.classifier(tmp_path / "sweep/trial", "test_convnext")
    (run.parent / "table.md").write_text("| row | top1 |\n| --- | --- |\n| all | 0.9 |\n")
    export(run, "--format", "timm")
    folder = run / "export/timm"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    task = lightning_overlock.load(run)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), task.model(images), rtol=0, atol=0)
    assert json.loads((folder / "config.json").read_text())["label_names"] == task.class_names
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 32, 32)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    normalised = timm.data.create_transform(**config | {"crop_pct": 1.0})(Image.fromarray(pixels))
    expected = task.image_transform(Image.fromarray(pixels))
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-4)
    card = (folder / "README.md").read_text()
    for words in ("DigitsDataModule", "val/top1 | 0.25", "seed | 42", "torch 2.", "apache-2.0"):
        assert words in card, words
    assert "| all | 0.9 |" in card, "the table of the sweep that it is a trial of"


def test_a_program_of_one_size_runs_without_this_package(convnext_run, tmp_path):
    run = convnext_run
    path = tmp_path / "net.pt2"
    export(run, "--format", "torch", "--output", path, "--size", "40x48")
    assert_agree_alone(run, {path: (1, 3, 40, 48)})
    report = json.loads((tmp_path / "net.pt2.json").read_text())
    assert report["size"] == [40, 48]
    assert report["open"] == []
    assert report["class_names"] == [str(digit) for digit in range(10)]
    assert report["checks"][0]["difference"] < 1e-5
    assert min(report["latency_ms"].values()) > 0


@pytest.mark.slow
def test_a_compiled_package_runs_without_this_package_and_in_the_table(convnext_run, tmp_path):
    path = tmp_path / "net.aoti.pt2"
    export(convnext_run, "--format", "aoti", "--output", path, "--size", "40x48")
    assert_agree_alone(convnext_run, {path: (1, 3, 40, 48)})
    assert json.loads((tmp_path / "net.aoti.pt2.json").read_text())["format"] == "aoti"
    row = exported_row(path, 1, (40, 48))
    assert row["model"] == str(path)
    assert row["parameters M"] is row["multiply-adds G"] is None, "it does not tell them"
    foreign = tmp_path / "foreign.aoti.pt2"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(foreign, "w") as other:
        for name in whole.namelist():
            code = name.endswith(".so")
            other.writestr(name, b"of another machine" if code else whole.read(name))
    with pytest.raises(InputError, match="cannot be loaded on this machine"):
        exported_row(foreign, 1, (40, 48))


def test_what_differs_is_refused_and_leaves_nothing(convnext_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(comparison.TOLERANCES, torch.float32, -1.0)
    line = ["export", "--ckpt_path", str(convnext_run), "--format", "torch", "--output"]
    assert main([*line, str(tmp_path / "net.pt2")]) == 2
    assert "the exported network differs from the task's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file_format", "dtype"), [("timm", "bfloat16"), ("torch", "float16")])
def test_half_precision_is_held_against_the_network_as_it_was_trained(
    file_format, dtype, convnext_run, tmp_path
):
    path = tmp_path / ("timm" if file_format == "timm" else "net.pt2")
    export(convnext_run, "--format", file_format, "--dtype", dtype, "--output", path)
    if file_format == "timm":
        report = json.loads((path / "report.json").read_text())
        weights = load_file(path / "model.safetensors").values()
    else:
        report = json.loads((tmp_path / "net.pt2.json").read_text())
        program = torch.export.load(path)
        weights = [parameter for _, parameter in program.named_parameters()]
        size = report["size"]
        assert program.module()(torch.rand(1, 3, *size)).dtype == torch.float32
    assert {x.dtype for x in weights if x.is_floating_point()} == {getattr(torch, dtype)}
    for row in report["checks"]:
        # Not zero, as it would be if a network of the same type were compared.
        assert 1e-6 < row["difference"] < comparison.TOLERANCES[getattr(torch, dtype)]
        assert row["equal"] == 1


def test_labels_may_differ_where_two_classes_tie_within_the_tolerance_only():
    def runner(*logits):
        return lambda images: {"logits": torch.tensor([logits])}

    shapes, half = [(1, 3, 8, 8)], torch.float16
    (row,) = comparison.compare(runner(1.0, 0.99, 0.0), runner(0.99, 1.0, 0.0), shapes, half)
    assert row["equal"] == 1
    for found in (runner(0.9, 1.0, 0.0), runner(float("nan"), 0.0, 0.0)):
        with pytest.raises(InputError, match="differs from the task's"):
            comparison.compare(runner(1.0, 0.9, 0.0), found, shapes, half)
    labels = {"logits": torch.tensor([[1.0, 0.9, 0.0]]), "labels": torch.tensor([1])}
    with pytest.raises(InputError, match="differs from the task's"):
        comparison.compare(runner(1.0, 0.9, 0.0), lambda images: labels, shapes, half)


def test_a_detector_stays_in_float32():
    task = DetectionTask(["cat"], backbone="test_convnext", fpn_width=8, box_head_width=8)
    with pytest.raises(InputError, match="--dtype bfloat16: a detector's boxes need float32"):
        exported_network(task, torch.bfloat16)


def test_a_size_below_the_least_and_dense_tasks_for_timm_have_their_line(tmp_path, capsys):
    run = trained_runs.classifier(tmp_path / "run", "test_overlock", overview_weight=0)
    line = ["export", "--ckpt_path", str(run), "--format", "torch", "--size"]
    assert main([*line, "16"]) == 2
    assert "takes no images of" in capsys.readouterr().err
    assert main([*line, "64", "--dynamic"]) == 2
    assert "expected a larger --size" in capsys.readouterr().err
    run = trained_runs.segmenter(tmp_path / "dense", "test_convnext")
    assert main(["export", "--ckpt_path", str(run), "--format", "timm"]) == 2
    assert "--format timm takes a classifier" in capsys.readouterr().err


OVERLOCK = ("test_overlock", {"focus_depths": (1, 1)})
CONVNEUR = ("test_convneur", {"depths": (1, 1, 1, 1)})
CONVNEXT = ("test_convnext", {})
OPEN = "--dynamic --size"
# The task and its backbone; for each format what is typed, and images that the file then takes: of
# open sizes some that the export has never seen.
MATRIX = [
    (
        *("classifier", *OVERLOCK),
        {"onnx": (f"{OPEN} 224", (3, 3, 230, 250)), "torch": ("--size 64", (1, 3, 64, 64))},
    ),
    (
        *("classifier", *CONVNEUR),
        {"onnx": (f"{OPEN} 64", (3, 3, 71, 90)), "torch": ("--size 48", (1, 3, 48, 48))},
    ),
    (
        *("classifier", *CONVNEXT),
        {"onnx": ("--size 48x40", (1, 3, 48, 40)), "torch": (f"{OPEN} 64", (3, 3, 70, 90))},
    ),
    (
        *("segmenter", *OVERLOCK),
        {"onnx": ("--size 64", (1, 3, 64, 64)), "torch": (f"{OPEN} 224", (1, 3, 193, 224))},
    ),
    (
        *("segmenter", *CONVNEUR),
        {"onnx": ("--size 64", (1, 3, 64, 64)), "torch": (f"{OPEN} 64", (3, 3, 96, 70))},
    ),
    (
        *("segmenter", *CONVNEXT),
        {"onnx": (f"{OPEN} 64", (3, 3, 97, 131)), "torch": ("--size 64x80", (1, 3, 64, 80))},
    ),
    (
        *("detector", *OVERLOCK),
        {"onnx": ("--size 96", (1, 3, 96, 96)), "torch": ("--size 96x64", (1, 3, 96, 64))},
    ),
    (
        *("detector", *CONVNEUR),
        {"onnx": ("--size 96", (1, 3, 96, 96)), "torch": (f"{OPEN} 96", (1, 3, 131, 97))},
    ),
    (
        *("detector", *CONVNEXT),
        {"onnx": (f"{OPEN} 96", (1, 3, 131, 97)), "torch": ("--size 64", (1, 3, 64, 64))},
    ),
]
SUFFIXES = {"onnx": "onnx", "torch": "pt2"}


def test_every_task_is_exported_from_every_family_in_every_format():
    kinds = {(kind, backbone) for kind, backbone, _, _ in MATRIX}
    backbones = ("test_overlock", "test_convneur", "test_convnext")
    assert kinds == set(itertools.product(("classifier", "segmenter", "detector"), backbones))
    assert all(set(formats) == {"onnx", "torch"} for *_, formats in MATRIX)


# Each takes a minute or more; every task and format is in one of the slow ones, and ConvNeur, whose
# take two to three, in test_open_sizes.py.
SLOW = {
    ("classifier", "test_convnext"),
    ("segmenter", "test_overlock"),
    ("segmenter", "test_convnext"),
    ("detector", "test_overlock"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "backbone", "arguments", "formats"),
    [
        pytest.param(
            *row,
            id=f"{row[0]}-{row[1]}",
            marks=pytest.mark.slow if row[:2] in SLOW else pytest.mark.long,
        )
        for row in MATRIX
    ],
)
def test_exported_files_agree_without_this_package(kind, backbone, arguments, formats, tmp_path):
    run = getattr(trained_runs, kind)(tmp_path / "run", backbone, backbone_args=arguments)
    shapes = {}
    for name, (words, shape) in formats.items():
        path = tmp_path / f"net.{SUFFIXES[name]}"
        export(run, "--format", name, "--output", path, *words.split())
        shapes[path] = shape
        report = json.loads((tmp_path / f"{path.name}.json").read_text())
        several = 2 if kind == "detector" else 4
        assert len(report["checks"]) == (several if OPEN in words else 1)
    assert_agree_alone(run, shapes)
    if kind != "classifier":
        assert main(["export", "--ckpt_path", str(run), "--format", "timm"]) == 2
        return
    folder = run / "export/timm"
    export(run, "--format", "timm")
    store_images(folder, (2, 3, 64, 64))
    ours = backbone != "test_convnext"  # whose architecture timm does not bring
    run_afresh(TIMM, *(["lightning_overlock"] if ours else []), folder)
    task, loaded = lightning_overlock.load(run), np.load(f"{folder}.npz")
    assert loaded["names"].tolist() == task.class_names
    with torch.no_grad():
        expected = task.model(torch.from_numpy(np.load(f"{folder}.npy")))
    np.testing.assert_allclose(loaded["logits"], expected.numpy(), rtol=0, atol=1e-6)
