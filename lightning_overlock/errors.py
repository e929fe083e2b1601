"""Input errors: mistakes of the person at the keyboard, answered without a traceback."""

import difflib
import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec


class InputError(Exception):
    """A known mistake in what was typed, configured or read.

    The command prints the message (at most three lines: what was found, what was expected, the
    nearest right name) and exits with code 2. Everything else keeps its traceback.
    """


class ConfigError(ValueError):
    """A constructor of the network refuses an argument or a combination of arguments.

    The message says what was found, what was expected and, for a combination, why it is
    impossible. A `ValueError`, so that users of the network alone need to know nothing of this
    package; the command prints it as it prints an `InputError`.
    """


class Interrupted(Exception):
    """Training was stopped by a signal, after its state had been saved.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `known`, or "" if none is near."""
    near = difflib.get_close_matches(found, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def require_extra(extra: str, modules: Iterable[str], needing: str) -> None:
    """Refuse to go on without what an extra of this package brings.

    Args:
        extra: Its name.
        modules: What it brings that is needed.
        needing: How the message begins, to which the modules that are missing are the object.

    Raises:
        InputError: One is not installed.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise InputError(
            f"{needing} {', '.join(missing)}, not installed here.\n"
            f"Install the extra: pip install 'lightning-overlock[{extra}]'"
        )


def printable(name: object) -> str:
    """Return a name for a message: on one line, whatever is in it, and in valid Unicode.

    Line breaks, other control characters and bytes of file names that are no UTF-8 are escaped.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
        else char
        for char in str(name)
    )
