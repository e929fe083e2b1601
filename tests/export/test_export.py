"""Exported networks agree with their tasks, in processes that have never seen this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import trained_runs
from PIL import Image

import lightning_overlock
from lightning_overlock.bench.exported import as_runner
from lightning_overlock.cli.main import main
from lightning_overlock.export import comparison
from lightning_overlock.export.network import exported_network

# Runs a file where the import of this package fails, on images that were stored.
ALONE = """
import sys
import numpy as np

sys.modules["lightning_overlock"] = None  # an import of it raises
path, images, found = sys.argv[1:]
images = np.load(images)
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    results = dict(zip(outputs, session.run(None, {"images": images})))
    meta = session.get_modelmeta().custom_metadata_map
else:
    import json
    import torch
    import torchvision  # whose operations detectors have
    extra = {"lightning_overlock.json": ""}
    program = torch.export.load(path, extra_files=extra)
    meta = json.loads(extra["lightning_overlock.json"])
    with torch.no_grad():
        results = program.module()(torch.from_numpy(images))
    results = [results] if isinstance(results, torch.Tensor) else results
    results = {name: x.numpy() for name, x in zip(meta["outputs"].split(", "), results)}
np.savez(found, class_names=meta["class_names"], **results)
"""


def export(run, *words):
    assert main(["export", "--ckpt_path", str(run), "--seconds", "0.01", *map(str, words)]) == 0


def assert_agrees_alone(path, run, shape, tmp_path, tolerance=1e-5):
    """Hold a file, run in a process of its own, against the task in this one."""
    images = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "images.npy", images.numpy())
    words = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "found.npz")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = dict(np.load(tmp_path / "found.npz"))
    task = lightning_overlock.load(run)
    assert json.loads(str(loaded.pop("class_names"))) == task.class_names
    found = {name: torch.from_numpy(x) for name, x in loaded.items()}
    network = exported_network(task, torch.float32)
    expected = as_runner(network, network.outputs)(images)
    match = comparison._objects if "boxes" in expected else comparison._logits
    difference, equal = match(expected, found)
    assert difference < tolerance
    assert equal > 0.99
    return expected


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


def test_a_program_of_one_size_runs_without_this_package(tmp_path):
    run = trained_runs.classifier(tmp_path / "run", "test_convnext")
    path = tmp_path / "net.pt2"
    export(run, "--format", "torch", "--output", path, "--size", "40x48")
    assert_agrees_alone(path, run, (1, 3, 40, 48), tmp_path)
    report = json.loads((tmp_path / "net.pt2.json").read_text())
    assert report["size"] == [40, 48]
    assert report["open"] == []
    assert report["class_names"] == [str(digit) for digit in range(10)]
    assert report["checks"][0]["difference"] < 1e-5
    assert min(report["latency_ms"].values()) > 0


def test_what_differs_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    run = trained_runs.classifier(tmp_path / "run", "test_convnext")
    monkeypatch.setitem(comparison.TOLERANCES, torch.float32, -1.0)
    line = ["export", "--ckpt_path", str(run), "--format", "torch", "--output"]
    assert main([*line, str(tmp_path / "net.pt2")]) == 2
    assert "the exported network differs from the task's" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


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


SLOW = [
    # task, backbone, its arguments, size, format, words, shapes never seen
    ("classifier", "test_overlock", {"focus_depths": (1, 1)}, 224, "onnx", (3, 3, 230, 250)),
    ("segmenter", "test_convneur", {"depths": (1, 1, 1, 1)}, 64, "torch", (3, 3, 96, 70)),
    ("detector", "test_convnext", {}, 96, "onnx", (1, 3, 131, 97)),
    ("classifier", "test_convneur", {"depths": (1, 1, 1, 1)}, 64, "onnx", (3, 3, 71, 90)),
    ("segmenter", "test_overlock", {"focus_depths": (1, 1)}, 224, "torch", (1, 3, 193, 224)),
    ("detector", "test_convneur", {"depths": (1, 1, 1, 1)}, 96, "torch", (1, 3, 131, 97)),
    ("segmenter", "test_convnext", {}, 64, "onnx", (3, 3, 97, 131)),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "backbone", "arguments", "size", "file_format", "shape"),
    SLOW,
    ids=[f"{case[0]}-{case[1]}-{case[4]}" for case in SLOW],
)
def test_open_sizes_without_this_package(
    kind, backbone, arguments, size, file_format, shape, tmp_path
):
    make = getattr(trained_runs, kind)
    run = make(tmp_path / "run", backbone, backbone_args=arguments)
    path = tmp_path / f"net.{'onnx' if file_format == 'onnx' else 'pt2'}"
    export(run, "--format", file_format, "--dynamic", "--size", size, "--output", path)
    assert_agrees_alone(path, run, shape, tmp_path)
    report = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert len(report["checks"]) == (2 if kind == "detector" else 4)
