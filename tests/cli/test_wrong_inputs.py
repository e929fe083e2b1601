"""Wrong inputs of every kind get a short answer before anything is trained or written."""

import sys
from pathlib import Path

import pytest
import torch
import wrong_inputs
from wrong_inputs import fill, make_files, readable

from lightning_overlock.cli.main import main
from lightning_overlock.tasks.base import BaseTask

# Lightning's advice on lengths and intervals, which the command holds back with its messages.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`max_epochs` was not set"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files and folders of every kind by name."""
    root = tmp_path_factory.mktemp("inputs")
    torch.save({"conv.weight": torch.zeros(1)}, root / "weights.pt")
    torch.save({"a": 1}, root / "no_weights.pt")
    (root / "broken.safetensors").write_bytes(b"\x01\x02")
    return make_files(root) | {"root": root}


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    def training(*_):
        raise AssertionError("a step of training was begun")

    monkeypatch.setattr(BaseTask, "on_before_optimizer_step", training)


def answer_to(words, capsys):
    """Return the answer to a wrong command line, after looking at its form."""
    assert main(words) == 2
    answer = capsys.readouterr().err.strip()
    lines = answer.splitlines()
    assert 1 <= len(lines) <= 3, answer
    assert lines[0].startswith("lightning: ")
    assert "Traceback" not in answer
    return answer


@pytest.mark.parametrize(("line", "part"), wrong_inputs.CASES, ids=readable)
def test_a_wrong_input_is_answered_at_once(line, part, files, capsys):
    assert part in answer_to(fill(line, files), capsys)
    assert not list(Path().rglob("*.ckpt"))
    assert not list(Path().rglob("metrics.csv"))


@pytest.mark.parametrize(("line", "part"), wrong_inputs.OF_A_RUN, ids=readable)
def test_what_does_not_fit_a_trained_run_is_refused(line, part, trained, capsys):
    command, *words = line.split()
    assert part in answer_to([command, "--ckpt_path", str(trained), *words], capsys)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_runs_that_cannot_be_written_are_told_at_once(command, trained, capsys, monkeypatch):
    Path("file").touch()
    for place in ["file", "file/below", *(["/proc/x"] if sys.platform == "linux" else [])]:
        monkeypatch.setenv("OVERLOCK_RUNS", place)
        assert "cannot be written" in answer_to([command, f"--ckpt_path={trained}"], capsys)


def test_there_are_three_hundred_of_them():
    lines = [line for line, _ in wrong_inputs.CASES]
    assert len(set(lines)) == len(lines) >= 300
    for command in (
        "fit",
        "validate",
        "test",
        "predict",
        "configs",
        "bench",
        "robustness",
        "data",
        "sweep",
    ):
        assert any(line.startswith(command) for line in lines)


def test_every_number_of_a_task_has_a_range():
    assert list(wrong_inputs.options_without_range()) == []
