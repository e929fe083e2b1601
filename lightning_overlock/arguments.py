"""Options of the commands that have their own: mistakes are told as everywhere."""

import argparse
import re
from pathlib import Path
from typing import NoReturn

from lightning_overlock.errors import InputError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Python's parser, which takes no abbreviated options and raises instead of exiting.

    Args:
        prog: What is typed: `lightning bench`.
        settings: Further arguments of `argparse.ArgumentParser`, such as `description`.
    """

    def __init__(self, prog: str, **settings: object) -> None:
        super().__init__(prog, allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong, what was probably meant, and where all is listed.

        Raises:
            InputError: Always.
        """
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']*)'", message)
        near = ""
        if wrong and wrong[1]:
            near = did_you_mean(wrong[1].partition("=")[0], _options(self))
        elif wrong:
            near = did_you_mean(wrong[2], _actions(self))
        program = self.prog.removeprefix("lightning ")
        message = re.sub(r" \(choose from .*\)", "", message)
        raise InputError(
            f"{program}: {message}.{near}\n`lightning {program} --help` lists all options."
        )


def folder_path(typed: str) -> Path:
    """Return a folder that was typed; `~` is the home folder."""
    return Path(typed).expanduser()


def image_size(typed: str) -> tuple[int, int]:
    """Return the height and width of `--size`.

    Raises:
        InputError: It is neither a side nor HxW.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", typed):
        raise InputError(f"--size {typed}: expected pixels, such as 224 or 800x1344 (HxW)")
    height, _, width = typed.partition("x")
    return int(height), int(width or height)


def _actions(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of a parser's actions."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [name for action in below for name in action.choices]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of a parser and of its actions."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [name for below in action.choices.values() for name in _options(below)]
    return found
