"""What was typed after a command, as far as it must be known before the options are parsed.

Nothing here needs torch or Lightning, so that what is wrong with it is answered at once.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lightning_overlock import configs
from lightning_overlock.errors import InputError
from lightning_overlock.runs.checkpoint import read_checkpoint
from lightning_overlock.runs.config import checkpoint_config
from lightning_overlock.runs.layout import LAST, last_checkpoint, run_folder, run_of


@dataclass
class Request:
    """What was typed after a command, as far as it must be known before the options are parsed.

    Attributes:
        command: The command.
        name: The run's name.
        configs: The configurations as (source, YAML text), a checkpoint's own first.
        words: The other arguments.
        ckpt_path: The checkpoint, if one is given.
        checkpoint: Its content.
    """

    command: str
    name: str
    configs: list[tuple[str, str]]
    words: list[str]
    ckpt_path: Path | None = None
    checkpoint: dict[str, Any] | None = None


def read_request(command: str, arguments: list[str]) -> Request:
    """Find the configurations, the run's name and the checkpoint among the arguments.

    Raises:
        InputError: If one of them does not exist or cannot be read.
    """
    splitter = ArgumentSplitter()
    splitter.add_argument("-c", "--config", action="append", default=[])
    splitter.add_argument("--name")
    splitter.add_argument("--ckpt_path")
    found, words = splitter.parse_known_args(arguments)
    files = [configs.find(name) for name in found.config]
    texts = [
        (f"--config {name}", read_config(file))
        for name, file in zip(found.config, files, strict=True)
    ]
    given: dict[str, Any] = {}
    for source, text in texts:
        content = read_yaml(text, source)
        given |= {key: content[key] for key in ("name", "ckpt_path") if content.get(key)}
    stems = "-".join(file.stem for file in files)
    name: str | None = found.name or given.get("name") or stems or None
    path: str | None = found.ckpt_path or given.get("ckpt_path")
    requeued = command == "fit" and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if path is None and requeued and name is not None:
        path = "last" if (run_folder(name) / LAST).is_file() else None
    request = Request(command, name or "run", texts, words)
    if path is None:
        return request
    if path == "last":
        if name is None:
            raise InputError(
                "--ckpt_path last: found neither --name nor --config, so no run to continue."
            )
        request.ckpt_path = last_checkpoint(name)
    else:
        request.ckpt_path = Path(path)
    request.checkpoint = read_checkpoint(request.ckpt_path)
    if "config" in request.checkpoint:
        own = checkpoint_config(request.checkpoint)
        request.configs.insert(
            0, (f"the configuration in {request.ckpt_path}", yaml.safe_dump(own))
        )
        request.name = name or run_of(request.ckpt_path) or own.get("name") or request.name
    elif not texts:
        raise InputError(
            f"{request.ckpt_path}: found no configuration inside this checkpoint.\n"
            "Expected a checkpoint written by `lightning fit`; else give --config as well."
        )
    return request


class ArgumentSplitter(argparse.ArgumentParser):
    """Takes a few options out of the arguments, for what must be known before the others."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise InputError(f"{message}.")


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Return a configuration's content.

    Raises:
        InputError: If it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(
            f"{source}{line}: not valid YAML ({getattr(error, 'problem', error)})."
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{source}: found {str(content)[:60]!r}, expected YAML `option: value`.")
    return content


def read_config(path: Path) -> str:
    """Return a configuration file's text."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise InputError(f"{path}: found a binary file, expected a YAML configuration.") from None


def typed_options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options on the command line as (name, value)."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            raise InputError(f"{word}: unexpected word; expected an option, as in --name VALUE.")
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            yield name, value
        elif name in {"h", "print_config"} or name.split(".")[-1] == "help":
            # Their value is optional and changes nothing here.
            return
        else:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise InputError(f"{word}: found no value; expected {word} VALUE.")
            yield name, following
