"""`lightning bench --exported`: files of `lightning export` as rows of the table."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from bench.test_bench import bench
from timm.models import save_for_hf
from torch import nn
from worker_steps import SameProcess

from lightning_overlock.bench import exported, measure, models, options
from lightning_overlock.errors import InputError
from lightning_overlock.export.onnx_file import save_onnx
from lightning_overlock.export.program import export_program, least_sizes, save_program

LEAST = 24


class Network(nn.Module):
    """Two convolutions, the second of which has a kernel of many pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, LEAST, bias=False)

    def forward(self, images):
        return self.second(self.first(images)).amax((2, 3))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network as an ONNX file of one size, a program of open size, and a timm folder."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = Network().eval().requires_grad_(False)
    for name, shape, open_dims in (
        ("fixed.onnx", (1, 3, 32, 40), []),
        ("open.pt2", (2, 3, 32, 40), [0, 2, 3]),
    ):
        program = export_program(network, torch.rand(shape), open_dims)
        metadata = {
            "outputs": "logits",
            "size": json.dumps(shape[2:]),
            "open": json.dumps([("batch", "", "height", "width")[dim] for dim in open_dims]),
            "least_size": json.dumps(least_sizes(program)),
        }
        if name.endswith(".onnx"):
            save_onnx(program, folder / name, ["logits"], metadata)
        else:
            save_program(program, folder / name, json.dumps(metadata))
    model = timm.create_model("test_convnext", num_classes=3)
    save_for_hf(model, str(folder / "timm"), safe_serialization=True)
    return folder, network


def test_files_are_run_with_their_outputs_by_name(files):
    folder, network = files
    images = torch.rand(1, 3, 32, 40)
    for name in ("fixed.onnx", "open.pt2"):
        found = exported.read_exported(folder / name).run(images)
        assert list(found) == ["logits"]
        torch.testing.assert_close(found["logits"], network(images))


def test_costs_of_a_program_are_those_of_its_network(files):
    folder, network = files
    row = exported.exported_row(folder / "open.pt2", 2, (32, 40))
    assert row["parameters M"] == measure.parameter_count(network) / 1e6
    # 32x40 outputs of 4 filters with 3 taps, then 9x17 of 2 filters with 4 * 24 * 24.
    assert row["multiply-adds G"] * 1e9 == 32 * 40 * 4 * 3 + 9 * 17 * 2 * 4 * 24 * 24
    row = exported.exported_row(folder / "fixed.onnx", 1, (32, 40))
    assert row["parameters M"] is row["multiply-adds G"] is None, "its file does not tell them"


def test_onnxruntime_gives_its_work_space_back_where_memory_is_measured(files):
    folder, _ = files
    steps = exported.exported_steps(folder / "fixed.onnx", 1, (32, 40))
    assert sorted(steps) == ["inference", "inference, lean"]
    np.testing.assert_array_equal(
        steps["inference"]()[0].shape, steps["inference, lean"]()[0].shape
    )
    asked = []

    def ask(kind):
        return lambda function, device: asked.append((kind, function)) or 2**20

    kinds = {kind: ask(kind) for kind in steps}
    assert models._peak(kinds, "inference", "cpu") == 2**20
    assert asked == [
        ("inference, lean", measure.second_run),
        ("inference, lean", measure.peak_memory),
    ]


def test_an_exported_network_stands_beside_models(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "Worker", SameProcess)
    folder, _ = files
    paths = [str(folder / name) for name in ("timm", "fixed.onnx", "open.pt2")]
    line = ["test_convnext", "--size", "32x40", "--batch-size", "1", "--seconds", "0.01"]
    line += ["--json", str(tmp_path / "rows.json"), "--exported", *paths]
    assert bench(line) == 0
    ((title, rows),) = json.loads((tmp_path / "rows.json").read_text()).items()
    assert ".onnx and .pt2 as they are" in title
    assert [row["model"] for row in rows] == ["test_convnext", *paths]
    assert len({tuple(row) for row in rows}) == 1, "the same columns in each row"
    for row in rows:
        assert row["inference images/s"] > 0
        assert row["inference peak MiB"] is None or row["inference peak MiB"] >= 0
    assert [row["training images/s"] is None for row in rows] == [False, False, True, True]
    count = sum(p.numel() for p in timm.create_model("test_convnext", num_classes=3).parameters())
    assert rows[1]["parameters M"] == count / 1e6
    assert "fixed.onnx" in capsys.readouterr().out


@pytest.mark.slow
def test_an_exported_network_runs_in_a_process_of_its_own(files):
    folder, _ = files
    setting = models.Setting(size=(32, 40))
    path = folder / "fixed.onnx"
    (row,) = models.bench_models([], setting, seconds=0.01, exported=[path, path])
    assert row["model"] == str(path)
    assert row["inference images/s"] > 0
    assert "training images/s" not in row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fixed.omnx", r"no such file or folder. Did you mean '\S*fixed.onnx'\?"),
        ("open.pt2 overlock_t", "names of models stand before --exported"),
        ("timm/config.json", "expected a .onnx or .pt2 file, or a folder of timm"),
        ("net.ckpt", "`lightning export --ckpt_path FILE|RUN` makes them of a checkpoint"),
        ("empty", "this folder has no config.json and no model.safetensors"),
        ("half", "this folder has no model.safetensors"),
        ("broken", "timm cannot load this folder"),
        ("alien", r"timm cannot load this folder.\n\S+"),
        ("text.onnx", "onnxruntime cannot run this network"),
        ("foreign.onnx", "this file does not say its outputs, size, open, least_size"),
        ("text.pt2", "this file does not say its outputs"),
        ("weights.pt2", "this file does not say its outputs"),
        ("cut.pt2", "Expected a whole file that this version's `lightning export` has written"),
        ("fixed.onnx --batch-size 1", "images of 32x40 only, found 1 of 224x224.*--size 32x40"),
        ("fixed.onnx --size 32x40 --batch-size 2", "one image at a time.*Expected --batch-size 1"),
        ("fixed.onnx --size 40x32 --batch-size 1", "images of 32x40 only"),
        ("open.pt2 --size 23x40", "images from 24x24 on, found 4 of 23x40"),
        ("open.pt2 --size 40x8", "images from 24x24 on, found 4 of 40x8"),
        ("wrong.pt2 --size 20", r"it does not run on 4x3x20x20.\n"),
        ("open.pt2 --device cuda", "--device: .*open.pt2 is measured on the CPU"),
        ("open.pt2 --dtype bfloat16", "in the type that they were exported in"),
        ("open.pt2 --features", "with the outputs that they have"),
        ("open.pt2 --train", "cannot be trained"),
        ("timm --profile", "--profile is of use with NAME only"),
        ("", "expected at least one argument"),
    ],
)
def test_what_is_no_exported_network_has_its_line(words, message, files, monkeypatch):
    def measured(*_, **__):
        raise AssertionError("something was measured")

    folder, network = files
    for name in ("interleaved_medians", "time_interleaved"):
        monkeypatch.setattr(models, name, measured)
    write_wrong_files(folder, network)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="(?s)" + message) as error:
        bench(["--exported", *words.split()])
    assert str(error.value).count("\n") <= 2


def write_wrong_files(folder, network):
    if (folder / "empty").exists():
        return
    (folder / "empty").mkdir()
    for name in ("net.ckpt", "text.onnx", "text.pt2"):
        (folder / name).write_text("no network")
    for name, config in (("half", None), ("broken", "{"), ("alien", '{"architecture": "no"}')):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config or "{}")
        if config is not None:
            (folder / name / "model.safetensors").write_bytes(b"12345678")
    torch.save({"weight": torch.zeros(2)}, folder / "weights.pt2")
    whole = (folder / "open.pt2").read_bytes()
    (folder / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    write_foreign(folder / "foreign.onnx", folder / "fixed.onnx")
    # Of a file that says too little of its sizes, the network's own answer is told.
    program = torch.export.load(folder / "open.pt2")
    least = {"height": 1, "width": 1}
    metadata = {"outputs": "logits", "size": "[32, 40]", "open": '["batch", "height", "width"]'}
    save_program(
        program, folder / "wrong.pt2", json.dumps(metadata | {"least_size": json.dumps(least)})
    )


def write_foreign(path, source):
    import onnx

    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.save(model, path)


def test_onnxruntime_is_asked_for_where_it_is_missing(files, monkeypatch):
    folder, _ = files
    monkeypatch.setattr("lightning_overlock.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need onnxruntime, .*\n.*lightning-overlock\[export\]"):
        options.read_options(["--exported", str(folder / "fixed.onnx")])
    assert options.read_options(["--exported", str(folder / "open.pt2")]).device == "cpu"


def test_what_stands_in_a_program_is_read_without_running_it(files):
    folder, _ = files
    with zipfile.ZipFile(folder / "open.pt2") as file:
        assert any(Path(name).name == exported.METADATA for name in file.namelist())
    assert exported._program_metadata(folder / "open.pt2")["least_size"] == (
        '{"height": 24, "width": 24}'
    )
