"""The command's words, options and answers to wrong input."""

import csv
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Union

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from shared import printed_config
from shared_run import QUICK

from lightning_overlock import __version__
from lightning_overlock.cli import (
    training as training,  # Lightning logs to the stderr of its import
)
from lightning_overlock.cli.main import main
from lightning_overlock.cli.parser import try_whole_numbers_first


def answer(capsys, *arguments):
    """Run a wrong command and return the lines of its answer."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("lightning: ")
    assert "Traceback" not in captured.err
    lines[0] = lines[0].removeprefix("lightning: ")
    return lines


# Words


def test_both_scripts_and_the_module_are_one_command():
    scripts = {e.name: e.value for e in entry_points(group="console_scripts")}
    assert (
        scripts["lightning"] == scripts["lightning-overlock"] == "lightning_overlock.cli.main:main"
    )
    run = subprocess.run(
        [sys.executable, "-m", "lightning_overlock", "--version"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, f"lightning-overlock {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "configs", "bench", "--version", "--name"):
        assert f" {word}" in text
    assert len(text.splitlines()) < 40


def test_help_of_a_command_lists_its_options(capsys):
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--trainer.max_epochs" in text
    assert "--ema.decay" in text
    assert "--name" in text
    # The common options first; the other 400 lines are behind --help-all.
    assert len(text.splitlines()) < 130
    assert "--help-all" in text
    assert main(["fit", "--help-all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 400


def test_help_of_a_prediction_lists_no_option_of_training(capsys):
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--data.predict_dir" in text
    assert not re.search("max_epochs|max_time|gradient_clip|--ema", text)
    assert len(text.splitlines()) < 60


def test_configs_lists_each_with_its_line(capsys):
    assert main(["configs"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert {"quickstart", "cluttered", "imagenet", "finetune", "overlock_t"} <= set(lines)
    assert all(len(text) > 20 for text in lines.values())


def test_bench_gets_its_own_arguments(monkeypatch):
    seen = []
    module = type(sys)("lightning_overlock.bench.command")
    module.run = lambda options: seen.append((options.names, options.ops)) or 7
    monkeypatch.setitem(sys.modules, "lightning_overlock.bench.command", module)
    assert main(["bench", "a", "--ops"]) == 7
    assert seen == [(["a"], True)]


# Options


def test_options_without_init_args_reach_the_chosen_class(capsys):
    config = printed_config(
        capsys, "--config", "quickstart", "--model.backbone", "resnet18", "--data.batch_size=4"
    )
    assert config["model"]["init_args"]["backbone"] == "resnet18"
    assert config["data"]["init_args"]["batch_size"] == 4


def test_numbers_inside_backbone_args_stay_numbers(capsys):
    config = printed_config(
        capsys, "--config=quickstart", "--model.backbone_args.drop_path_rate", "0.1"
    )
    assert config["model"]["init_args"]["backbone_args"] == {"drop_path_rate": 0.1}


def test_classes_are_chosen_by_their_short_names_on_the_command_line(capsys):
    config = printed_config(capsys, "--model", "ClassificationTask", "--data=DigitsDataModule")
    assert config["model"]["class_path"].endswith(".ClassificationTask")
    assert config["data"]["class_path"].endswith(".DigitsDataModule")


@pytest.mark.parametrize("option", [["-c", "quickstart"], ["--config=quickstart"]])
def test_a_bare_word_is_a_shipped_configuration(option, capsys):
    # A file of this name in the working folder is not meant.
    Path("quickstart").write_text("seed_everything: 7\n")
    assert printed_config(capsys, *option)["seed_everything"] == 42


def test_configurations_combine_and_options_win_wherever_they_stand(capsys):
    Path("mine.yaml").write_text(
        "seed_everything: 7\nmodel:\n  init_args:\n    lr: 0.5\ntrainer:\n  max_epochs: 3\n"
    )
    config = printed_config(
        capsys, "--trainer.max_epochs=9", "--config", "quickstart", "--config", "mine.yaml"
    )
    assert config["seed_everything"] == 7
    assert config["trainer"]["max_epochs"] == 9
    assert config["model"]["init_args"]["lr"] == 0.5
    assert config["model"]["init_args"]["backbone"] == "overlock_nano"
    assert config["name"] == "quickstart-mine"


def test_a_printed_configuration_gives_the_same_run(capsys):
    first = printed_config(capsys, "--config", "quickstart", "--ema.decay=0.9")
    Path("copy.yaml").write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", "copy.yaml") == first


# Known input errors: what was found, what was expected, the nearest right name


FIT = ("fit", "--config", "quickstart")

WRONG = [
    (("fitt",), ["fitt: no command of this name. Did you mean 'fit'?", "Expected one of fit, "]),
    (("fit",), ["fit needs --data, --model.", "Give --config NAME ("]),
    (("configs", "x"), ["configs takes no arguments, found x."]),
    (
        (*FIT, "--model.bakbone", "resnet18"),
        ["--model.bakbone: unknown option. Did you mean '--model.backbone'?", "`lightning COMM"],
    ),
    (
        (*FIT, "--backbone", "resnet18"),
        ["--backbone: unknown option. Did you mean '--model.backbone'?", "`lightning COMMAND"],
    ),
    (
        (*FIT, "--data.batchsize=3"),
        ["--data.batchsize: unknown option. Did you mean '--data.batch_size'?", "`lightning"],
    ),
    # An abbreviation of an option
    (
        (*FIT, "--trainer.max_epoch", "1"),
        ["--trainer.max_epoch: unknown option. Did you mean '--trainer.max_epochs'?", "`light"],
    ),
    ((*FIT, "--nam", "x"), ["--nam: unknown option. Did you mean '--name'?", "`lightning COMM"]),
    ((*FIT, "stray"), ["stray: unexpected word; expected an option, as in --name VALUE."]),
    ((*FIT, "--model.lr"), ["--model.lr: found no value; expected --model.lr VALUE."]),
    ((*FIT, "--model.lr", "abc"), ["model.lr: found abc, expected float or None."]),
    (
        (*FIT, "--trainer.max_epochs=abc"),
        ["trainer.max_epochs: found abc, expected int or None."],
    ),
    (
        (*FIT, "--trainer.gradient_clip_algorithm=nom"),
        ["`gradient_clip_algorithm` nom is invalid."],
    ),
    (
        (*FIT, "--model", "ClasificationTask"),
        [
            "--model ClasificationTask: no class of this name. Did you mean 'ClassificationTask'?",
            "Expected one of ",  # with the classes of other tests where these ran before
        ],
    ),
    (
        (*FIT, "--data", "DigitDataModule"),
        [
            "--data DigitDataModule: no class of this name. Did you mean 'DigitsDataModule'?",
            "Expected one of Ade20kDataModule, ClutteredDigitsDataModule, ",
        ],
    ),
    (
        (*FIT, "--trainer.callbacks+=EarlyStoping"),
        ["trainer.callbacks: no class is named 'EarlyStoping'. Did you mean 'EarlyStopping'?"],
    ),
    (
        (*FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.moniter=a"),
        ["trainer.callbacks: EarlyStopping has no option 'moniter'. Did you mean 'monitor'?"],
    ),
    (
        ("fit", "--config", "quickstrat"),
        [
            "--config quickstrat: no configuration of this name is shipped. "
            "Did you mean 'quickstart'?",
            "Shipped: ",
        ],
    ),
    (
        ("fit", "--config", "overlock_t"),
        [
            "--config overlock_t: sets options of the model, but its class is not chosen.",
            "Give a configuration that chooses it as well, or --model CLASS.",
        ],
    ),
    (
        ("fit", "--config", "conf/mine.yaml"),
        ["--config conf/mine.yaml: this file does not exist.", "Expected a YAML file, or"],
    ),
    (("fit", "--config", "."), ["--config .: no configuration of this name is shipped.", "Sh"]),
    (
        (*FIT, "--model.backbone", "resnt18"),
        ["timm has no model 'resnt18'", None],
    ),
    (
        ("fit", "--config", "imagenet", "--data.root", "nowhere"),
        ["data.root: 'nowhere' is no folder", "expected train/ and val/ in it"],
    ),
    (
        (*FIT, "--data.image_size=16", *QUICK),
        ["test_overlock takes no images of (3, 16, 16)", "the image is 16x16 pixels; OverLoCK"],
    ),
    (
        (*FIT, "--trainer.default_root_dir=here"),
        ["--trainer.default_root_dir: the run folder is runs/NAME.", "Expected --name for NAME"],
    ),
    ((*FIT, "--name=a/b"), ["--name 'a/b': expected a plain folder name, without slashes."]),
    (
        (*FIT, "--ckpt_path", "last"),
        [
            "--ckpt_path last: the run 'quickstart' has no runs/quickstart/checkpoints/last.ckpt.",
            "Start it without --ckpt_path, or name another run with --name.",
        ],
    ),
    (
        ("fit", "--ckpt_path", "last"),
        ["--ckpt_path last: found neither --name nor --config, so no run to continue."],
    ),
    (
        ("validate", "--ckpt_path", "no.ckpt"),
        ["--ckpt_path no.ckpt: this file does not exist.", "Expected a checkpoint, as in runs/"],
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), WRONG, ids=lambda a: " ".join(map(str, a))[:60])
def test_a_known_error_is_answered_in_three_lines(arguments, expected, capsys):
    lines = answer(capsys, *arguments)
    expected = [start for start in expected if start is not None]
    assert len(lines) >= len(expected)
    for line, start in zip(lines, expected, strict=False):
        assert line.startswith(start)
    assert not list(Path().glob("runs/*"))


YAML_ERRORS = [
    ("trainer: [\n", "--config mine.yaml, line 2: not valid YAML ("),
    ("just words\n", "--config mine.yaml: found 'just words', expected YAML `option: value`."),
    (
        "trainer:\n  max_epoch: 1\n",
        "--config mine.yaml: unknown option 'trainer.max_epoch'. "
        "Did you mean '--trainer.max_epochs'?",
    ),
    (
        "model:\n  init_args:\n    bakbone: x\n",
        "--config mine.yaml: unknown option 'model.bakbone'. Did you mean '--model.backbone'?",
    ),
    ("modell:\n  class_path: X\n", "--config mine.yaml: unknown option 'modell'. Did you mean '"),
    (
        "model:\n  class_path: ClassificationTsk\n",
        "--config mine.yaml: model ClassificationTsk: no class of this name. "
        "Did you mean 'ClassificationTask'?",
    ),
    ("trainer:\n  max_epochs: many\n", "trainer.max_epochs: found many, expected int or None."),
]


@pytest.mark.parametrize(("text", "expected"), YAML_ERRORS)
def test_a_wrong_configuration_file_is_named(text, expected, capsys):
    Path("mine.yaml").write_text(text)
    assert answer(capsys, *FIT, "--config", "mine.yaml")[0].startswith(expected)


def test_a_binary_configuration_is_refused(capsys):
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00")
    lines = answer(capsys, "fit", "--config", "mine.yaml")
    assert lines == ["--config mine.yaml: found a binary file, expected text in UTF-8."]


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("lightning_overlock.cli.main.read_request", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit"])


def test_what_a_constructor_raises_is_not_wrapped(monkeypatch):
    def broken(*_, **__):
        raise TypeError("broken")

    monkeypatch.setattr("lightning_overlock.tasks.base.create_backbone", broken)
    with pytest.raises(TypeError, match=r"^broken$"):
        main([*FIT])


# Checkpoints


def test_evaluation_needs_only_the_checkpoint(trained, monkeypatch, tmp_path, capsys):
    """Also after the file has moved: configuration and class names travel inside."""
    moved = tmp_path / "elsewhere.ckpt"
    moved.write_bytes((trained / "checkpoints/best.ckpt").read_bytes())
    monkeypatch.setenv("OVERLOCK_RUNS", str(tmp_path / "other"))
    for command in ("validate", "test", "predict"):
        assert main([command, "--ckpt_path", str(moved)]) == 0
    with (tmp_path / "other/quickstart/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["epoch"], row["step"]) for row in rows] == [
        ("validate", "0", "2"),
        ("test", "0", "2"),
    ]
    assert rows[0]["val/top1"]
    assert rows[1]["test/top1"]
    with (tmp_path / "other/quickstart/predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == 16
    assert not (tmp_path / "other/quickstart/checkpoints").exists()


def test_validation_of_the_best_checkpoint_gives_its_metric(trained, monkeypatch, capsys):
    monkeypatch.setenv("OVERLOCK_RUNS", str(trained.parent))
    assert main(["validate", "--ckpt_path", str(trained / "checkpoints/best.ckpt")]) == 0
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["fit", "validate"]
    assert rows[0]["val/loss"] == rows[1]["val/loss"]


def test_options_that_change_nothing_trained_apply(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OVERLOCK_RUNS", str(tmp_path))
    path = str(trained / "checkpoints/last.ckpt")
    free = ["--data.batch_size=3", "--model.channels_last=true", "--trainer.limit_val_batches=2"]
    assert main(["validate", "--ckpt_path", path, *free, "--name=again"]) == 0
    assert (tmp_path / "again/metrics.csv").is_file()


CONTRADICTIONS = [
    (["--model.backbone", "resnet18"], "--model.backbone: found resnet18", "test_overlock"),
    (["--model.lr", "0.5"], "--model.lr: found 0.5", "0.002"),
    (["--model.backbone_args.gate", "false"], "--model.backbone_args: found {'gate': F", "None"),
]


@pytest.mark.parametrize("command", ["validate", "fit"])
@pytest.mark.parametrize(("options", "found", "expected"), CONTRADICTIONS)
def test_options_that_contradict_the_checkpoint_are_refused(
    command, options, found, expected, trained, capsys
):
    path = trained / "checkpoints/last.ckpt"
    lines = answer(capsys, command, "--ckpt_path", str(path), *options)
    assert lines[0].startswith(found)
    assert lines[0].endswith(f"but the checkpoint {path} was trained with {expected}.")


def test_a_checkpoint_of_another_run_does_not_continue_this_one(trained, capsys):
    """The shipped configuration asks for overlock_nano."""
    path = trained / "checkpoints/last.ckpt"
    lines = answer(capsys, "fit", "--config=quickstart", "--ckpt_path", str(path))
    assert lines[0].startswith("--model.backbone: found overlock_nano, but the checkpoint ")
    assert lines[0].endswith(" was trained with test_overlock.")


def test_data_with_other_classes_than_the_checkpoint_are_refused(trained, capsys, monkeypatch):
    from lightning_overlock.data import DigitsDataModule

    monkeypatch.setattr(DigitsDataModule, "class_names", ["cat", "dog"])
    path = trained / "checkpoints/last.ckpt"
    assert answer(capsys, "validate", "--ckpt_path", str(path)) == [
        f"The data have other classes than the checkpoint {path}.",
        "Found 2: cat, dog",
        "Expected 10: 0, 1, 2, 3, 4, 5, …",
    ]


def test_a_file_that_is_no_checkpoint_is_named(capsys):
    Path("README.md").write_text("# words\n")
    lines = answer(capsys, "validate", "--ckpt_path", "README.md")
    assert lines[0] == "--ckpt_path README.md: this file is no checkpoint."
    assert lines[1].startswith("Expected one written by `lightning fit`")


def test_plain_weights_are_pointed_to_their_option(capsys):
    torch.save({"conv.weight": torch.zeros(1)}, "weights.pth")
    lines = answer(capsys, "test", "--ckpt_path", "weights.pth")
    assert lines[0].startswith("--ckpt_path weights.pth: found weights or other content")
    assert lines[1].endswith("weights are given with --model.init_from.")


def test_a_pickled_object_is_not_executed(capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("executed"),))

    torch.save({"pytorch-lightning_version": "2.6", "state_dict": Evil()}, "evil.ckpt")
    answer(capsys, "test", "--ckpt_path", "evil.ckpt")
    assert not Path("executed").exists()


def test_a_checkpoint_without_configuration_asks_for_one(trained, capsys):
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    del content["config"]
    torch.save(content, "plain.ckpt")
    lines = answer(capsys, "validate", "--ckpt_path", "plain.ckpt")
    assert lines[0] == "plain.ckpt: found no configuration inside this checkpoint."


def test_the_weights_of_another_network_are_refused(trained, capsys):
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    del content["config"]
    torch.save(content, "plain.ckpt")
    lines = answer(
        capsys,
        "validate",
        "--ckpt_path=plain.ckpt",
        "--config=quickstart",
        "--model.backbone=test_convnext",
    )
    assert "plain.ckpt has test_overlock, this task test_convnext" in lines[0]


def test_batch_norms_are_synchronised_only_where_torch_can(capsys):
    assert main([*FIT, *QUICK, "--trainer.sync_batchnorm=true", "--trainer.accelerator=cpu"]) == 0
    assert "sync_batchnorm is off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "value"), [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("7", 7), ("null", None)]
)
def test_one_batch_is_not_all_batches_where_a_union_names_float_first(word, value):
    parser = ArgumentParser()
    # `float | int` keeps its order as well, but Lightning's are of typing's kind.
    parser.add_argument("--limit_val_batches", type=Union[float, int, None])  # noqa: UP007
    try_whole_numbers_first(parser)
    found = parser.parse_args([f"--limit_val_batches={word}"]).limit_val_batches
    assert (type(found), found) == (type(value), value)
