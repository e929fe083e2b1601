"""What was typed after a command, as far as it must be known before the options are parsed.

Nothing here needs torch or Lightning, so that what is wrong with it is answered at once.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lightning_overlock import configs
from lightning_overlock.errors import InputError
from lightning_overlock.files import read_text
from lightning_overlock.runs.checkpoint import checkpoint_in, read_checkpoint, refuse_to_continue
from lightning_overlock.runs.config import checkpoint_config
from lightning_overlock.runs.layout import BEST, LAST, last_checkpoint, run_folder, run_of
from lightning_overlock.yaml_files import parse_yaml

# Options whose value may be left out.
FLAGS = {"h", "print_config", "help", "help-all"}


@dataclass
class Request:
    """What was typed after a command, as far as it must be known before the options are parsed.

    Attributes:
        command: The command.
        name: The run's name.
        configs: The configurations as (source, content), a checkpoint's own first.
        words: The other arguments.
        ckpt_path: The checkpoint, if one is given.
        checkpoint: Its content.
    """

    command: str
    name: str
    configs: list[tuple[str, dict[str, Any]]]
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
    if command == "predict":
        arguments = _images_as_option(arguments)
    found, words = splitter.parse_known_args(list(_joined(arguments)))
    files = [configs.find(at_home(name)) for name in found.config]
    contents = [
        (f"--config {name}", _read_config(file, f"--config {name}"))
        for name, file in zip(found.config, files, strict=True)
    ]
    given = _given_words(contents)
    stems = "-".join(file.stem for file in files)
    name: str | None = given.get("name") or stems or None
    name = name if found.name is None else found.name
    path: str | None = found.ckpt_path or given.get("ckpt_path")
    if name is not None:
        run_folder(name)  # refuses what cannot be a folder's name
    requeued = command == "fit" and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if path is None and requeued and name is not None:
        path = "last" if (run_folder(name) / LAST).is_file() else None
    request = Request(command, name or "run", contents, words)
    if path is None:
        if command != "fit" and not contents and not words:
            raise InputError(
                f"{command} needs --ckpt_path.\n"
                "Expected a checkpoint or the folder of a run, as in --ckpt_path runs/NAME."
            )
        return request
    request.ckpt_path = find_checkpoint(command, at_home(path), name)
    request.checkpoint = read_checkpoint(request.ckpt_path)
    if command == "fit":
        refuse_to_continue(request.ckpt_path, request.checkpoint)
    if "config" in request.checkpoint:
        source = f"the configuration in {request.ckpt_path}"
        own = checkpoint_config(request.checkpoint, source)
        request.configs.insert(0, (source, own))
        request.name = name or run_of(request.ckpt_path) or own.get("name") or request.name
    elif not contents:
        raise InputError(
            f"{request.ckpt_path}: found no configuration inside this checkpoint.\n"
            "Expected a checkpoint written by `lightning fit`; else give --config as well."
        )
    return request


def _read_config(file: Path, typed: str) -> dict[str, Any]:
    """Return a configuration, its paths below ~/ in full."""

    def in_full(content: dict[str, Any]) -> dict[str, Any]:
        return {
            key: in_full(value) if isinstance(value, dict) else at_home(value)
            for key, value in content.items()
        }

    return in_full(parse_yaml(read_text(file, typed), typed))


def at_home(value: Any) -> Any:
    """Return a path with the home folder in place of ~/, which shells leave in --root=~/photos."""
    home = isinstance(value, str) and value.startswith("~/")
    return str(Path(value).expanduser()) if home else value


def _images_as_option(words: list[str]) -> list[str]:
    """Return the arguments with files and folders among them as `--data.predict_dir`."""
    options: list[str] = []
    images: list[str] = []
    for word in words:
        takes_value = bool(options) and options[-1].startswith("-") and "=" not in options[-1]
        flag = takes_value and options[-1].lstrip("-").split(".")[-1] in FLAGS
        (options if word.startswith("-") or (takes_value and not flag) else images).append(word)
    return [*options, f"--data.predict_dir={json.dumps(images)}"] if images else words


def _given_words(contents: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Return the run's name and the checkpoint that configurations give, the last ones."""
    given: dict[str, str] = {}
    for source, content in contents:
        for key in ("name", "ckpt_path"):
            value = content.get(key)
            if value is not None and not isinstance(value, str):
                raise InputError(
                    f"{source}: {key} is {value}, which YAML takes for no word.\n"
                    f'Expected quotes around it, as in {key}: "1_000".'
                )
            given |= {key: value} if value else {}
    return given


def find_checkpoint(command: str, path: str, name: str | None) -> Path:
    """Return the checkpoint that --ckpt_path means: a file, a run's folder, "last" or "best".

    From a run's folder `fit` takes the last checkpoint, the other commands the best.

    Raises:
        InputError: If there is none.
    """
    if path in {"last", "best"}:
        if name is None:
            raise InputError(
                f"--ckpt_path {path}: found neither --name nor --config, so no run to "
                f"{'continue' if command == 'fit' else 'look into'}."
            )
        best = run_folder(name) / BEST
        return best if path == "best" and best.is_file() else last_checkpoint(name)
    found = checkpoint_in(Path(path), last_first=command == "fit")
    if found != Path(path):
        print(f"Checkpoint: {found}")
    return found


class ArgumentSplitter(argparse.ArgumentParser):
    """Takes a few options out of the arguments, for what must be known before the others."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise InputError(f"{message}.")


def _joined(words: list[str]) -> Iterator[str]:
    """Yield options as --name=value, so that values may begin with a hyphen.

    Raises:
        InputError: A word is no option's, or an option has no value.
    """
    rest = list(words)
    for name, value in typed_options(words):
        word = rest.pop(0)
        if "=" not in word:
            rest.pop(0)
        yield f"{'--' if word.startswith('--') else '-'}{name}={at_home(value)}"
    yield from rest  # --help, --print_config and what follows them


def typed_options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options on the command line as (name, value)."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            raise InputError(f"{word}: unexpected word; expected an option, as in --name VALUE.")
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            yield name, value
        elif name.split(".")[-1] in FLAGS:
            # Their value is optional and changes nothing here.
            return
        else:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise InputError(f"{word}: found no value; expected {word} VALUE.")
            yield name, following
