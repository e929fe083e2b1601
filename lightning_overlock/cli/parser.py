"""Reading the arguments of a command: unknown names and wrong values in three lines at most."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_overlock.cli.request import read_yaml, typed_options
from lightning_overlock.errors import InputError, did_you_mean

# The options whose class is chosen by the user, and what it must derive from.
CHOSEN: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}


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
    configs: list[tuple[str, str]],
    words: list[str],
) -> Namespace:
    """Parse the arguments of one command.

    Args:
        parser: The whole command's parser.
        command: The subcommand.
        options: The subcommand's parser.
        configs: Configurations as (where it is from, YAML text); later ones override.
        words: The other arguments; they override the configurations.

    Raises:
        InputError: For an unknown name or a value of the wrong type.
    """
    contents = [(source, read_yaml(text, source)) for source, text in configs]
    typed = list(typed_options(words))
    chosen = _chosen_classes(contents, typed)
    known = _known_options(options, chosen)
    for option in CHOSEN:
        for source, content in contents:
            if content.get(option) and not chosen[option]:
                raise InputError(
                    f"{source}: sets options of the {option}, but its class is not chosen.\nGive a "
                    f"configuration that chooses it as well, or --{option} CLASS."
                )
    for source, content in contents:
        for name in _names(content, known):
            _check_name(name, known, f"{source}: unknown option '{name}'.")
    for name, _ in typed:
        _check_name(name, known, f"--{name}: unknown option.")
    arguments = [command]
    for _, text in configs:
        arguments += ["--config", text if text.strip() else "{}"]
    try:
        found = parser.parse_args([*arguments, *words])
    except _ParseError as error:
        raise InputError(_boil_down(str(error), command)) from error
    _restore_nulls(found[command], typed)
    return found


def _restore_nulls(found: Namespace, typed: list[tuple[str, str | None]]) -> None:
    """Set nulls that were typed for a key of a dictionary, which jsonargparse makes 'None'."""
    for name, value in typed:
        option, *keys = name.replace(".init_args.", ".", 1).split(".")
        if option in CHOSEN and len(keys) == 2 and value in {"null", "~"}:
            dictionary = found[option]["init_args"].get(keys[0])
            if isinstance(dictionary, dict) and dictionary.get(keys[1]) == "None":
                dictionary[keys[1]] = None


def _chosen_classes(
    contents: list[tuple[str, dict[str, Any]]], typed: list[tuple[str, str | None]]
) -> dict[str, set[type]]:
    """Return the classes named for the model and the data."""
    named: list[tuple[str, str, Any]] = []
    for source, content in contents:
        for option in CHOSEN:
            value = content.get(option)
            name = value.get("class_path") if isinstance(value, dict) else value
            named.append((f"{source}: {option}", option, name))
    for name, value in typed:
        option = name.removesuffix(".class_path")
        if option in CHOSEN:
            named.append((f"--{name}", option, value))
    chosen: dict[str, set[type]] = {option: set() for option in CHOSEN}
    for source, option, name in named:
        if isinstance(name, str) and not name.startswith("{"):
            chosen[option].add(_find_class(source, name, CHOSEN[option]))
    return chosen


def _find_class(source: str, name: str, base: type) -> type:
    module, _, attribute = name.rpartition(".")
    known = {found.__name__: found for found in _subclasses(base)}
    found: Any
    if not module:
        found = known.get(name)
    else:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ModuleNotFoundError:
            found = None
    if not (isinstance(found, type) and issubclass(found, base)):
        ours = sorted(
            name
            for name, c in known.items()
            if not c.__module__.startswith("lightning.") and not name.startswith(("_", "Base"))
        )
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


def _known_options(options: ArgumentParser, chosen: dict[str, set[type]]) -> set[str]:
    """Return every option's name, with those of the chosen classes in their short form."""
    known = {
        string.lstrip("-")
        for action in options._actions
        for string in action.option_strings
        if string.startswith("--")
    }
    for option, classes in chosen.items():
        linked = {name.replace("init_args.", "") for name in _link_targets(options)}
        for found in classes:
            parameters = ArgumentParser().add_class_arguments(found, option, fail_untyped=False)
            known |= set(parameters) - linked
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


def _check_name(name: str, known: set[str], problem: str) -> None:
    short = name.replace(".init_args.", ".", 1) if name.split(".")[0] in CHOSEN else name
    parts = short.removesuffix("+").split(".")
    parents = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    # What follows the name of an option that takes a class or a dictionary is the value's matter.
    ours = parents & known - ({"model", "data", "trainer"} if len(parts) > 1 else set())
    if ours or (parts[0] in CHOSEN and parts[1:2] in (["class_path"], ["dict_kwargs"])):
        return
    same_end = [k for k in sorted(known) if k.split(".")[-1] == parts[-1]]
    near = same_end or difflib.get_close_matches(short, sorted(known), n=1, cutoff=0.6)
    hint = f" Did you mean '--{near[0]}'?" if near else ""
    raise InputError(f"{problem}{hint}\n`lightning COMMAND --help` lists the options.")


def _boil_down(message: str, command: str) -> str:
    """Put jsonargparse's words about a value into one or two lines."""
    if missing := re.search(r"arguments are required: (.*)", message):
        needed = missing[1].replace(f"{command}.", "--")
        return (
            f"{command} needs {needed}.\nGive --config NAME (`lightning configs` lists the shipped "
            "ones), or --model and --data."
        )
    # Alternatives are indented below what they are alternatives of; the last key is the innermost.
    keys = list(re.finditer(r'^( *)Parser key "([^"]+)":', message, re.M))
    if not keys:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return "\n".join(line[:160] for line in lines[:3])
    name = ".".join(key[2].replace("init_args.", "") for key in keys)
    if refused := re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message):
        module, _, found = refused[1].rpartition(".")
        accepted = inspect.signature(getattr(importlib.import_module(module), found)).parameters
        return f"{name}: {found} has no option '{refused[2]}'.{did_you_mean(refused[2], accepted)}"
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        known = [c.__name__ for base in (Callback, Logger) for c in _subclasses(base)]
        return f"{name}: no class is named '{unknown[1]}'.{did_you_mean(unknown[1], known)}"
    problem = message[keys[-1].end() :]
    found_value = re.search(r"(?:Given|Got) value: (.*)", problem)
    expected: list[str] = []
    for text in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", problem, re.M):
        if literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", text):
            expected += literal[1].replace("'", "").split(", ")
        else:
            expected.append(re.sub(r"<class '(?:.*\.)?([^'.]+)'>", r"\1", text))
    wanted = " or ".join("None" if e == "NoneType" else e for e in dict.fromkeys(expected))
    value = found_value[1][:80] if found_value else "a value that does not fit"
    return f"{name}: found {value}, expected {wanted or 'another type'}."
