"""Input errors: mistakes of the person at the keyboard, answered without a traceback."""

import difflib
import unicodedata
from collections.abc import Iterable


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
