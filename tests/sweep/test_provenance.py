"""What a trial's figures come from is the same for the same, and told apart otherwise."""

import subprocess

import pytest

from lightning_overlock.runs.config import config_hash
from lightning_overlock.sweep import provenance
from lightning_overlock.sweep.provenance import checkout, machine

CONFIG = """\
name: a-seed1
seed_everything: 1
model: {class_path: T, init_args: {lr: 0.1}}
trainer: {max_epochs: 3, default_root_dir: runs/x/a-seed1}
"""


@pytest.fixture
def write(tmp_path):
    def write(name, *change):
        (tmp_path / name).mkdir()
        text = CONFIG.replace(*change) if change else CONFIG
        (tmp_path / name / "config.yaml").write_text(text)
        return config_hash(tmp_path / name)

    return write


def test_a_configuration_is_the_same_for_all_seeds_and_places(write):
    first = write("one")
    assert write("two", "a-seed1", "b-seed2") == first
    assert write("three", "seed_everything: 1", "seed_everything: 2") == first
    assert write("four", "lr: 0.1", "lr: 0.2") != first
    assert write("five", "max_epochs: 3", "max_epochs: 4") != first


@pytest.mark.parametrize("text", ["", "[", "3"])
def test_a_run_without_configuration_has_no_hash(text, tmp_path):
    assert config_hash(tmp_path) is None
    (tmp_path / "config.yaml").write_text(text)
    assert config_hash(tmp_path) is None


def test_the_checkout_is_that_of_the_package_or_of_the_folder(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package/sweep/provenance.py"))
    checkout.cache_clear()
    assert checkout() == {}
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    for text, changed in (("1", False), ("2", True)):
        (tmp_path / "file").write_text(text)
        checkout.cache_clear()
        found = checkout()
        assert len(found["commit"]) == 40
        assert found["changed"] is changed
    checkout.cache_clear()


def test_a_machine_is_told_without_its_name():
    found = machine(2, "")
    assert {"cpu", "cores", "python", "torch", "lightning", "timm", "optuna"} <= found.keys()
    assert found["threads"] == 2
    assert "gpu" not in found


def test_the_gpus_are_those_a_trial_sees(tmp_path, monkeypatch):
    """A stand-in for `nvidia-smi` that knows two cards."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "*--id=9*) echo No devices were found; exit 6;;\n"
        "*--id=1*) echo Card B;;\n"
        "*--query-gpu=name*) printf 'Card A\\nCard B\\n';;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine(1, None)["gpu"] == "Card A, Card B"
    assert machine(1, "1")["gpu"] == "Card B"
    assert "gpu" not in machine(1, "9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine(1, None)["gpu"] == "Card B"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "gpu" not in machine(1, None)
    monkeypatch.setenv("PATH", "")
    assert "gpu" not in machine(1, "1")
