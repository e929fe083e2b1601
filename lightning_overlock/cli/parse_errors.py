"""jsonargparse's words about a value, put into one or two lines."""

import importlib
import inspect
import re
from collections.abc import Iterator

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_overlock.errors import did_you_mean


def summarise_error(message: str, command: str) -> str:
    """Return what was found and what was expected.

    Args:
        message: What jsonargparse says.
        command: The subcommand.
    """
    if missing := re.search(r"arguments are required: (.*)", message):
        return _missing(missing[1], command)
    # Alternatives are indented below what they are alternatives of; the last key is the innermost.
    keys = list(re.finditer(r'^( *)Parser key "([^"]+)":', message, re.M))
    if not keys:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return "\n".join(line[:160] for line in lines[:3])
    parts = [key[2].replace("init_args.", "") for key in keys]
    name = ".".join(part for part, last in zip(parts, ["", *parts], strict=False) if part != last)
    if refused := re.search(r"class_path '([^']+)':\s+Option '([^']+)' is not accepted", message):
        module, _, found = refused[1].rpartition(".")
        accepted = inspect.signature(getattr(importlib.import_module(module), found)).parameters
        return f"{name}: {found} has no option '{refused[2]}'.{did_you_mean(refused[2], accepted)}"
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        known = sorted({c.__name__ for base in (Callback, Logger) for c in _subclasses(base)})
        return f"{name}: no class is named '{unknown[1]}'.{did_you_mean(unknown[1], known)}"
    return f"{name}: {_found_and_expected(message[keys[-1].end() :])}"


def _missing(names: str, command: str) -> str:
    wanted = [name.removeprefix(f"{command}.") for name in names.split(", ")]
    if not {"model", "data"} & {name.partition(".")[0] for name in wanted}:
        return (
            f"the class of a logger, callback or plugin needs {', '.join(wanted)}.\n"
            "Give it below the class, as in --trainer.logger CSVLogger --trainer.logger.save_dir "
            "runs/NAME."
        )
    needed = ", ".join(f"--{name}" for name in wanted)
    return (
        f"{command} needs {needed}.\nGive --config NAME (`lightning configs` lists the shipped "
        "ones), or --model and --data."
    )


def _found_and_expected(problem: str) -> str:
    found = re.search(r"(?:Given|Got) value: (.*)", problem)
    expected: list[str] = []
    for text in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", problem, re.M):
        if literal := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", text):
            expected += literal[1].replace("'", "").split(", ")
        else:
            expected.append(re.sub(r"<class '(?:.*\.)?([^'.]+)'>", r"\1", text))
    wanted = " or ".join("None" if e == "NoneType" else e for e in dict.fromkeys(expected))
    value = found[1][:80] if found else "a value that does not fit"
    quotes = (
        "\nWords that YAML takes for numbers or for nothing (3e8, 1_000, no, null) need quotes."
        if "str" in expected and found and not found[1].startswith(("'", "[", "{"))
        else ""
    )
    return f"found {value}, expected {wanted or 'another type'}.{quotes}"


def _subclasses(base: type) -> Iterator[type]:
    found: type
    for found in base.__subclasses__():
        yield found
        yield from _subclasses(found)
