"""`lightning COMMAND --help`: what a command uses, the common options first."""

import re
import textwrap
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.cli.parser import (
    CHOSEN,
    chosen_classes,
    class_options,
    find_class,
    known_classes,
)
from lightning_overlock.cli.request import Request, typed_options
from lightning_overlock.data.base import BaseDataModule
from lightning_overlock.tasks.base import BaseTask

# The options that take a class, and what it derives from.
CLASSES: dict[str, type] = {**CHOSEN, "trainer.callbacks": Callback, "trainer.logger": Logger}
PLACES = ("accelerator", "devices", "precision")
# The trainer's options that people set; the others are behind --help-all.
TRAINER = {
    "fit": (
        "max_epochs", "max_steps", "max_time", *PLACES, "strategy", "num_nodes",
        "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches",
        "limit_val_batches", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps",
        "sync_batchnorm", "fast_dev_run", "logger", "callbacks",
    ),
    "validate": (*PLACES, "limit_val_batches"),
    "test": (*PLACES, "limit_test_batches"),
    "predict": (*PLACES, "limit_predict_batches"),
}  # fmt: skip
RUN = {
    "--config NAME|FILE": "A shipped configuration (`lightning configs`) or a YAML file; several "
    "combine, later ones override.",
    "--name NAME": "Name of the run: its folder is runs/NAME.",
    "--ckpt_path FILE|FOLDER|last|best": "The checkpoint, or the folder of a run.",
    "--logger NAME,…": "Where figures go: tensorboard, csv, wandb, mlflow, or none. "
    "(default: tensorboard)",
    "--seed_everything N": "Seed of everything random. (default: 42)",
    "--print_config": "Print the whole configuration and stop.",
}
WIDTH = 100


def requested_help(request: Request) -> str | None:
    """Return the help that was asked for, None if none was or if jsonargparse gives it.

    Raises:
        InputError: There is no class of a name that was typed.
    """
    words = request.words
    for place, word in enumerate(words):
        option, _, value = word.removeprefix("--").partition("=")
        option, is_class_help, rest = option.rpartition(".help")
        if not is_class_help or rest or option not in CLASSES:
            continue
        following = words[place + 1 : place + 2]
        name = value or "".join(following)
        if not name or name.startswith("-"):
            return _class_list(option, request.command)
        find_class(f"--{option}.help", name, CLASSES[option])
        return None
    if "--help-all" in words or not {"-h", "--help"} & set(words):
        return None
    return _command_help(request)


def _class_list(option: str, command: str) -> str:
    lines = [f"lightning {command} --{option}.help CLASS, where CLASS is one of", ""]
    for name, found in sorted(known_classes(CLASSES[option]).items()):
        lines += _entry(name, (found.__doc__ or "").strip().partition("\n")[0])
    return "\n".join(lines)


def _command_help(request: Request) -> str:
    command = request.command
    chosen = chosen_classes(request.configs, list(typed_options(request.words)))
    lines = [f"usage: lightning {command} [options]", "", "Run:"]
    for name, text in RUN.items():
        if command == "fit" or name.startswith(("--config", "--name", "--ckpt", "--print")):
            lines += _entry(name, text)
    for option, base in (("model", BaseTask), ("data", BaseDataModule)):
        classes = sorted(chosen[option], key=lambda found: found.__name__)
        shown: list[type] = [*classes[-1:]] or [base]
        lines += ["", _title(option, shown[0], bool(classes))]
        for found in shown:
            actions = _actions(class_options(found, option))
            wanted = _used(command, option, found, actions)
            lines += _options({name: actions[name] for name in wanted})
        if option == "data" and command == "predict" and not classes:
            lines += _entry("--data.predict_dir", "A folder of images, or one image.")
    lines += ["", "Trainer (Lightning's):"]
    actions = _actions(class_options(Trainer, "trainer"))
    lines += _options({name: actions[name] for name in TRAINER[command]}, "trainer")
    if command == "fit":
        lines += ["", "Average of the weights:", *_options(_actions(class_options(EMA, "ema")))]
    return "\n".join(
        [
            *lines,
            "",
            f"lightning {command} --help-all lists every option;",
            f"lightning {command} --model.help and --data.help list the classes, with a class its "
            "options;",
            f"lightning {command} --config NAME --help lists those of the classes it chooses.",
        ]
    )


def _title(option: str, found: type, chosen: bool) -> str:
    names = {"model": "Model", "data": "Data"}
    if chosen:
        return f"{names[option]} ({found.__name__}):"
    return f"{names[option]} (of all; --{option} CLASS or a configuration chooses one):"


def _used(command: str, option: str, found: type, actions: dict[str, Any]) -> list[str]:
    """Return the options of a class that a command uses."""
    names = [name for name in actions if name != "class_names"]
    if command == "fit":
        return names
    if option == "model":
        return [name for name in names if name in getattr(found, "overridable_options", ())]
    # Docstrings say of an option that it belongs to the training.
    used = [n for n in names if not re.match(r"(?i)(training|augment)", actions[n].help or "")]
    return [name for name in used if command == "predict" or name != "predict_dir"]


def _actions(parser: ArgumentParser) -> dict[str, Any]:
    """Return a class's options by their name without the group."""
    return {
        action.dest.partition(".")[2]: action
        for action in parser._actions
        if "." in action.dest and not action.dest.endswith(".help")
    }


def _options(actions: dict[str, Any], group: str = "") -> list[str]:
    lines: list[str] = []
    for action in actions.values():
        sentence = re.split(r"(?<=[a-z)\]]\.)\s", " ".join((action.help or "").split()))[0]
        if group == "trainer":
            sentence = sentence.replace("``", "").partition(" Default:")[0]
        default = "" if action.default is None else f" (default: {action.default})"
        lines += _entry(f"--{action.dest}", sentence + default)
    return lines


def _entry(name: str, text: str) -> list[str]:
    indent = " " * 34
    body = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) or [indent]
    if len(name) + 3 < len(indent):
        return [f"  {name}".ljust(len(indent)) + body[0].strip(), *body[1:]]
    return [f"  {name}", *body]
