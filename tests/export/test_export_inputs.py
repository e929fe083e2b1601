"""Mistakes in what is typed after `lightning export` get their line, mostly without torch."""

import importlib.util
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lightning_overlock.cli.main import main


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "--ckpt_path is missing"),
        ("--ckpt_path a.ckpt", "--format is missing"),
        ("--ckpt_path a.ckpt --format onxx", "no such format. Did you mean 'onnx'?"),
        ("--ckpt_path a.ckpt --format torch --sise 3", "Did you mean '--size'?"),
        ("--ckpt_path a.ckpt --format torch --size 0", "--size 0: expected pixels"),
        ("--ckpt_path a.ckpt --format torch --size 3y4", "--size 3y4: expected pixels"),
        ("--ckpt_path a.ckpt --format torch --seconds nan", "--seconds nan: expected a number"),
        ("--ckpt_path a.ckpt --format torch --dtype int8", "invalid choice: 'int8'"),
        ("--ckpt_path a.ckpt --format timm --dynamic", "of use with onnx, torch and aoti"),
        ("--ckpt_path a.ckpt --format onnx --dtype bfloat16", "expected float16"),
        ("--ckpt_path . --format torch", "this folder holds no checkpoints/last.ckpt"),
        (
            "--ckpt_path text.ckpt --format torch --output there.pt2",
            "there.pt2: this exists already",
        ),
        ("--ckpt_path text.ckpt --format torch --output x.pt2", "x.pt2.json: this exists already"),
        ("--ckpt_path text.ckpt --format torch --output x", "expected a name that ends in .pt2"),
        ("--ckpt_path text.ckpt --format onnx --output x.pt2", "that ends in .onnx, by which"),
        ("--ckpt_path a.ckpt --format torch", "a.ckpt: this file does not exist"),
        ("--ckpt_path text.ckpt --format torch", "this file is no checkpoint"),
        ("--ckpt_path other.ckpt --format torch", "no Lightning checkpoint"),
        ("--ckpt_path alien.ckpt --format torch", "found no configuration inside"),
        ("--ckpt_path boring.ckpt --format torch", "BoringModel, is none of this package"),
        ("--ckpt_path gone.ckpt --format timm", "no_such_package.Task, is none of this package"),
        ("--ckpt_path nameless.ckpt --format onnx", "None, is none of this package"),
        ("--ckpt_path dataless.ckpt --format torch", "its configuration names no data"),
        ("--ckpt_path list.ckpt --format torch", "list.ckpt"),
        ("--ckpt_path model.safetensors --format torch", "Expected one written by `lightning fit`"),
    ],
)
def test_a_mistake_has_its_line(line, words, workplace, capsys):
    (workplace / "there.pt2").write_text("")
    (workplace / "x.pt2.json").write_text("")
    (workplace / "text.ckpt").write_text("no zip file")
    torch.save({"weight": torch.zeros(2)}, workplace / "other.ckpt")
    alien = {"pytorch-lightning_version": "2.6.6", "state_dict": {"w": torch.zeros(2)}}
    torch.save(alien, workplace / "alien.ckpt")
    data = {"class_path": "lightning_overlock.data.DigitsDataModule"}
    ours = "lightning_overlock.tasks.ClassificationTask"
    for name, config in (
        ("boring", {"model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}}),
        ("gone", {"model": {"class_path": "no_such_package.Task"}, "data": data}),
        ("nameless", {"model": {}, "data": data}),
        ("dataless", {"model": {"class_path": ours}}),
        ("list", ["model"]),
    ):
        stored = {"config": yaml.safe_dump(config), "hyper_parameters": {"class_names": ["a"]}}
        torch.save(alien | stored, workplace / f"{name}.ckpt")
    save_file({"weight": torch.zeros(2)}, workplace / "model.safetensors")
    before = sorted(workplace.iterdir())
    assert main(["export", *line.split()]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) <= 3
    assert sorted(workplace.iterdir()) == before, "nothing is left behind"


def test_a_compiled_package_needs_a_compiler(monkeypatch, workplace, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["export", "--ckpt_path", "a.ckpt", "--format", "aoti"]) == 2
    assert "needs a C++ compiler, found no no-such-compiler" in capsys.readouterr().err


def test_what_the_extra_brings_is_named_where_it_is_missing(monkeypatch, workplace, capsys):
    def find_spec(name):
        return None if name == "onnxruntime" else importlib.util.find_spec(name)

    monkeypatch.setattr("lightning_overlock.errors.find_spec", find_spec)
    assert main(["export", "--ckpt_path", "a.ckpt", "--format", "onnx"]) == 2
    assert "onnxruntime, not installed here" in (message := capsys.readouterr().err)
    assert "pip install 'lightning-overlock[export]'" in message


def test_help_and_wrong_options_need_no_torch(tmp_path):
    code = """
import sys
from lightning_overlock.cli.main import main
assert main(["export", "--help"]) == 0
assert main(["export", "--format", "timm"]) == 2
assert main("export --ckpt_path a.ckpt --format onxx".split()) == 2
assert main("export --ckpt_path a.ckpt --format torch".split()) == 2
heavy = {"torch", "timm", "lightning", "onnx", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--ckpt_path FILE|RUN" in done.stdout
