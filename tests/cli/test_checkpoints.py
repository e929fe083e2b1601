"""Checkpoints of another version, of another kind, or of a diverged training are refused."""

import pytest
import torch

from lightning_overlock.cli.main import main


def without(*keys):
    return lambda content: {key: value for key, value in content.items() if key not in keys}


def weights_times(factor):
    def change(content):
        weights = content["state_dict"]
        scaled = {k: v * factor if v.is_floating_point() else v for k, v in weights.items()}
        return content | {"state_dict": scaled}

    return change


def lacking_one(content):
    return content | {"state_dict": dict(list(content["state_dict"].items())[1:])}


def of_three_classes(content):
    names = {"class_names": ["a", "b", "c"]}
    return content | {"hyper_parameters": content["hyper_parameters"] | names}


CASES = [
    ("predict", lambda c: c["state_dict"], "no Lightning checkpoint"),
    ("predict", lambda c: c | {"pytorch-lightning_version": "abc"}, "no version of Lightning"),
    ("validate", lambda c: c | {"config": "model: [\n"}, "line 2: not valid YAML"),
    ("validate", lambda c: c | {"config": 3}, "expected YAML"),
    ("validate", lambda c: c | {"config": "data: {}"}, "found no model in it"),
    ("validate", without("state_dict"), "no weights (state_dict)"),
    ("predict", without("hyper_parameters"), "does not name the classes"),
    ("predict", lacking_one, "has other parts or classes"),
    ("predict", of_three_classes, "has other parts or classes"),
    ("fit", without("optimizer_states"), "weights only"),
    ("fit", without("loops"), "weights only"),
    ("fit", lambda c: c | {"position": c["position"] | {"more": 1}}, "another version"),
    ("validate", weights_times(float("nan")), "weights are not finite"),
    ("predict", weights_times(float("inf")), "weights are not finite"),
    ("validate", weights_times(1e30), "outputs are not finite"),
    ("predict", weights_times(1e30), "outputs are not finite"),
]


@pytest.mark.filterwarnings("ignore:Encountered `nan` values")
@pytest.mark.parametrize(("command", "change", "part"), CASES, ids=range(len(CASES)))
def test_a_checkpoint_that_does_not_fit_is_told_as_what_it_is(
    command, change, part, trained, tmp_path, capsys
):
    path = tmp_path / "changed.ckpt"
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    torch.save(change(content), path)
    longer = ["--trainer.max_epochs=2"] if command == "fit" else []
    assert main([command, f"--ckpt_path={path}", *longer]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("lightning: ")]
    assert len(lines) - told[-1] <= 3
    assert part in "\n".join(lines[told[-1] :])
