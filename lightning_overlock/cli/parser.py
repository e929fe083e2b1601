"""Reading the options of a command: names, classes and values, held against what is known."""

import difflib
import functools
import importlib
import inspect
import operator
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import timm
from jsonargparse import ArgumentParser, Namespace, set_dumper
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from lightning_overlock.cli.parse_errors import summarise_error
from lightning_overlock.cli.request import typed_options
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.ranges import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    Range,
    check_duration,
    check_ranges,
)
from lightning_overlock.yaml_files import dump_yaml

# The options whose class is chosen by the user, and what it must derive from.
CHOSEN: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}

# Ranges of options whose classes are not this package's; tasks and data modules say their own.
RANGES: dict[str, dict[str, Range]] = {
    "": {"seed_everything": Range(0, 2**32 - 1)},
    "ema": {"decay": Range(0, 1, open="high")},
    "trainer": {
        "num_nodes": AT_LEAST_1,
        "max_epochs": Range(-1),  # -1 is without end, as Lightning has it
        "min_epochs": AT_LEAST_0,
        "max_steps": Range(-1),
        "min_steps": AT_LEAST_0,
        "limit_train_batches": ABOVE_0,
        "limit_val_batches": AT_LEAST_0,
        "limit_test_batches": AT_LEAST_0,
        "limit_predict_batches": AT_LEAST_0,
        "overfit_batches": AT_LEAST_0,
        "val_check_interval": ABOVE_0,
        "check_val_every_n_epoch": AT_LEAST_1,
        "num_sanity_val_steps": Range(-1),
        "log_every_n_steps": AT_LEAST_0,
        "accumulate_grad_batches": AT_LEAST_1,
        "gradient_clip_val": AT_LEAST_0,
        "reload_dataloaders_every_n_epochs": AT_LEAST_0,
        "fast_dev_run": AT_LEAST_0,
    },
}


# What --print_config prints is read again, by any reader.
set_dumper("yaml", dump_yaml)


class _ParseError(Exception):
    """What jsonargparse found wrong, in its own words."""


class Parser(LightningArgumentParser):
    """Lightning's parser, which takes no abbreviated options and leaves exiting to its caller."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        if not self.exit_on_error:  # a parser inside the parser, whose errors are collected
            super().error(message, ex)
        raise _ParseError(message) from ex


def parse(
    parser: ArgumentParser,
    command: str,
    options: ArgumentParser,
    configs: list[tuple[str, dict[str, Any]]],
    words: list[str],
) -> Namespace:
    """Parse the arguments of one command.

    Args:
        parser: The whole command's parser.
        command: The subcommand.
        options: The subcommand's parser.
        configs: Configurations as (where it is from, content); later ones override.
        words: The other arguments; they override the configurations.

    Raises:
        InputError: A name is unknown, a value of the wrong type or a number out of its range.
    """
    try_whole_numbers_first(options)
    typed = list(typed_options(words))
    chosen = chosen_classes(configs, typed)
    known = _known_options(options, chosen)
    for option in CHOSEN:
        for source, content in configs:
            if content.get(option) and not chosen[option]:
                raise InputError(
                    f"{source}: sets options of the {option}, but its class is not chosen.\nGive a "
                    f"configuration that chooses it as well, or --{option} CLASS."
                )
    arguments = _backbone_arguments(configs, typed)
    for source, content in configs:
        for name in _names(content, known):
            _check_name(name, known, f"{source}: unknown option '{name}'.", arguments)
    for name, _ in typed:
        _check_name(name, known, f"--{name}: unknown option.", arguments)
    line = [command]
    for _, content in configs:
        line += ["--config", dump_yaml(content)]
    try:
        found = parser.parse_args([*line, *words])
    except _ParseError as error:
        raise InputError(summarise_error(str(error), command)) from error
    _restore_nulls(found[command], typed)
    _check_values(found[command], chosen)
    return found


def try_whole_numbers_first(options: ArgumentParser) -> None:
    """Let `limit_val_batches=1` be one batch, whatever was imported before.

    typing keeps one order for equal unions: where another package asked for `Union[float, int]`
    first, Lightning's `Union[int, float]` is that one, and 1 would become 1.0, all batches.
    """
    for action in options._actions:
        parts = typing.get_args(hint := getattr(action, "_typehint", None))
        if typing.get_origin(hint) is typing.Union and {int, float} <= set(parts):
            ordered = sorted(parts, key=lambda part: part is float)
            # `|` keeps the order that it is given.
            action._typehint = functools.reduce(operator.or_, ordered)  # type: ignore[attr-defined]


def _check_values(found: Namespace, chosen: dict[str, set[type]]) -> None:
    """Hold values against their ranges, and nulls against types, before anything is built."""
    for group, ranges in RANGES.items():
        check_ranges(group, vars(found[group]) if group else vars(found), ranges)
    check_duration("trainer.max_time", found.trainer.get("max_time"))
    for name in ("max_epochs", "max_steps"):
        if found.trainer.get(name) == 0:
            raise InputError(f"trainer.{name}: found 0, expected at least 1, or -1 for no end.")
    for option, classes in chosen.items():
        arguments = dict((found.get(option) or {}).get("init_args") or {})
        for one in classes:
            check_ranges(option, arguments, getattr(one, "ranges", {}))
            _refuse_nulls(option, one, arguments)


def _refuse_nulls(group: str, found: type, arguments: dict[str, Any]) -> None:
    """Refuse null for an option that has no such value; jsonargparse lets it pass.

    Raises:
        InputError: An option is null and its type has no None.
    """
    for part in found.__mro__:
        constructor = vars(part).get("__init__")
        hints = typing.get_type_hints(constructor) if constructor else {}
        for name, hint in hints.items():
            # The names of classes may come from the data.
            given = name in arguments and name != "class_names"
            if given and arguments[name] is None and not _admits_none(hint):
                wanted = getattr(hint, "__name__", str(hint)).replace("typing.", "")
                raise InputError(f"{group}.{name}: found null, expected {wanted}.")
        arguments = {name: value for name, value in arguments.items() if name not in hints}


def _admits_none(hint: Any) -> bool:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(_admits_none(part) for part in typing.get_args(hint))
    return hint in (Any, None, type(None)) or isinstance(hint, typing.TypeVar)


def _restore_nulls(found: Namespace, typed: list[tuple[str, str | None]]) -> None:
    """Set nulls that were typed for a key of a dictionary, which jsonargparse makes 'None'."""
    for name, value in typed:
        option, *keys = name.replace(".init_args.", ".", 1).split(".")
        if option in CHOSEN and len(keys) == 2 and value in {"null", "~"}:
            dictionary = found[option]["init_args"].get(keys[0])
            if isinstance(dictionary, dict) and dictionary.get(keys[1]) == "None":
                dictionary[keys[1]] = None


# Classes ------------------------------------------------------------------------------------------


def chosen_classes(
    configs: list[tuple[str, dict[str, Any]]], typed: list[tuple[str, str | None]]
) -> dict[str, set[type]]:
    """Return the classes named for the model and the data.

    Raises:
        InputError: There is no class of a name.
    """
    named: list[tuple[str, str, Any]] = []
    for source, content in configs:
        for option in CHOSEN:
            value = content.get(option)
            name = value.get("class_path") if isinstance(value, dict) else value
            named.append((f"{source}: {option}", option, name))
    for name, value in typed:
        option = name.removesuffix(".class_path").removesuffix(".help")
        if option in CHOSEN:
            named.append((f"--{name}", option, value))
    chosen: dict[str, set[type]] = {option: set() for option in CHOSEN}
    for source, option, name in named:
        if isinstance(name, str) and not name.startswith("{"):
            chosen[option].add(find_class(source, name, CHOSEN[option]))
    return chosen


def known_classes(base: type) -> dict[str, type]:
    """Return the classes that an option may choose, by name: ours where there are some."""
    found = {
        one.__name__: one
        for one in _subclasses(base)
        if not one.__name__.startswith(("_", "Base")) and not inspect.isabstract(one)
    }
    if base in CHOSEN.values():
        return {n: one for n, one in found.items() if not one.__module__.startswith("lightning.")}
    return {n: one for n, one in found.items() if one.__module__.startswith("lightning.")}


def find_class(source: str, name: str, base: type) -> type:
    """Return the class of a name or an import path.

    Args:
        source: Where the name is from, for messages.
        name: The name.
        base: What the class must derive from.

    Raises:
        InputError: There is none.
    """
    module, _, attribute = name.rpartition(".")
    found: Any
    if not module:
        found = {one.__name__: one for one in _subclasses(base)}.get(name)
    else:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ModuleNotFoundError:
            found = None
    if not (isinstance(found, type) and issubclass(found, base)):
        ours = sorted(known_classes(base))
        raise InputError(
            f"{source} {name}: no class of this name.{did_you_mean(name, ours)}\n"
            f"Expected one of {', '.join(ours)}, or the import path of a {base.__name__}."
        )
    return found


def _subclasses(base: type) -> Iterator[type]:
    found: type
    for found in base.__subclasses__():
        yield found
        yield from _subclasses(found)


# Names --------------------------------------------------------------------------------------------


@functools.cache
def class_options(found: type, group: str) -> ArgumentParser:
    """Return a parser with the options of a class, in their short form."""
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(found, group, fail_untyped=False)
    return parser


def _known_options(options: ArgumentParser, chosen: dict[str, set[type]]) -> set[str]:
    """Return every option's name, with those of the chosen classes in their short form."""
    known = {
        string.lstrip("-")
        for action in options._actions
        for string in action.option_strings
        if string.startswith("--")
    }
    linked = {name.replace("init_args.", "") for name in _link_targets(options)}
    for group, classes in chosen.items():
        for found in classes:
            names = {action.dest for action in class_options(found, group)._actions}
            known |= {name for name in names if name.startswith(f"{group}.")} - linked
    return known


def _link_targets(options: ArgumentParser) -> list[str]:
    group = getattr(options, "_links_group", None)
    return [action.target[0] for action in group._group_actions] if group else []


def _names(content: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    """Yield the options that a configuration sets, in their short form."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in CHOSEN and isinstance(value, dict):
            yield from (f"{name}.{k}" for k in value if k not in {"init_args", "dict_kwargs"})
            yield from (f"{name}.{k}" for k in value.get("init_args") or {})
        elif isinstance(value, dict) and any(k.startswith(f"{name}.") for k in known):
            yield from _names(value, known, f"{name}.")
        else:
            yield name


def _check_name(name: str, known: set[str], problem: str, arguments: set[str]) -> None:
    short = name.replace(".init_args.", ".", 1) if name.split(".")[0] in CHOSEN else name
    parts = short.removesuffix("+").split(".")
    parents = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # What follows the name of an option that takes a class or a dictionary is the value's matter.
    ours = parents & known - ({"model", "data", "trainer"} if len(parts) > 1 else set())
    if ours or (parts[0] in CHOSEN and parts[1:2] in (["class_path"], ["dict_kwargs"])):
        return
    near = _nearest_option(parts, known, arguments)
    hint = f" Did you mean '--{near}'?" if near else ""
    raise InputError(f"{problem}{hint}\n`lightning COMMAND --help` lists the options.")


def _nearest_option(parts: list[str], known: set[str], arguments: set[str]) -> str:
    """Return the option that is probably meant, "" if none is near.

    The same name elsewhere comes first, then a name that has it as its last words (`epochs`), then
    the nearest by its letters, of the same group before all others.
    """
    last, short, group = parts[-1], ".".join(parts), ".".join(parts[:-1])
    every = sorted(known | {f"model.backbone_args.{name}" for name in arguments})
    ends = {name: name.split(".")[-1] for name in every}
    near_ends = set(difflib.get_close_matches(last, ends.values(), n=5, cutoff=0.75))
    near = [name for name, end in ends.items() if end in near_ends]
    letters = difflib.SequenceMatcher(b=last)

    def likeness(name: str) -> float:
        letters.set_seq1(ends[name])
        return letters.ratio() + 0.1 * name.startswith(f"{group}.")

    candidates = [
        *(name for name in every if ends[name] == last),
        *(name for name in every if ends[name].removeprefix("max_") == last),
        *(name for name in every if name.replace(".", "_") == last),
        *(name for name in every if ends[name].startswith(f"{last}_")),
        *sorted(near, key=likeness, reverse=True),
        *difflib.get_close_matches(short, every, n=1, cutoff=0.6),
    ]
    return candidates[0] if candidates else ""


def _backbone_arguments(
    configs: list[tuple[str, dict[str, Any]]], typed: list[tuple[str, str | None]]
) -> set[str]:
    """Return the arguments that the backbone's own constructor has, as far as they are known."""
    backbone: Any = "overlock_xxt"
    for _, content in configs:
        model = content.get("model")
        arguments = (model.get("init_args") or {}) if isinstance(model, dict) else {}
        backbone = arguments.get("backbone", backbone)
    for name, value in typed:
        if name in {"model.backbone", "model.init_args.backbone"}:
            backbone = value
    return constructor_arguments(backbone) if isinstance(backbone, str) else set()


def constructor_arguments(backbone: str) -> set[str]:
    """Return the arguments of the networks in the file that defines a timm model."""
    if not timm.is_model(backbone):
        return set()
    module = sys.modules[timm.model_entrypoint(backbone.partition(".")[0]).__module__]
    networks: Iterable[type] = (
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, nn.Module)
    )
    signatures = [inspect.signature(found).parameters for found in networks]
    ignored = {"self", "args", "kwargs", "num_classes", "features_only", "pretrained"}
    return {name for found in signatures if "num_classes" in found for name in found} - ignored
