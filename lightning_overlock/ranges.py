"""The range of a number that a user gives: said once, checked before anything is built on it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning_overlock.errors import InputError


@dataclass(frozen=True)
class Range:
    """The finite numbers between two ends.

    Attributes:
        low: The least of them.
        high: The largest of them.
        open: "low" or "high" where this end is no member itself.
    """

    low: float = -math.inf
    high: float = math.inf
    open: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open == "low" else value >= self.low
        below = value < self.high if self.open == "high" else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low, high = (f"{end:.15g}" for end in (self.low, self.high))
        if math.isinf(self.high):
            return f"a number above {low}" if self.open == "low" else f"a number of at least {low}"
        ends = {"low": f" without {low}", "high": f" without {high}"}
        return f"a number from {low} to {high}{ends.get(self.open, '')}"


SHARE = Range(0, 1)
AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
ABOVE_0 = Range(0, open="low")


def check_range(name: str, value: float, allowed: Range) -> None:
    """Check one number.

    Args:
        name: What the user calls it, such as "data.digits".
        value: The number.
        allowed: Its range.

    Raises:
        InputError: The number is out of its range.
    """
    if value not in allowed:
        raise InputError(f"{name}: found {value}, expected {allowed}.")


def check_ranges(group: str, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Check the numbers of an option group; of a list or tuple each of its numbers.

    Args:
        group: What the options' names begin with, such as "model".
        values: The options by name. What is no number (None, a word) has no range.
        ranges: The ranges by name.

    Raises:
        InputError: A number is out of its range.
    """
    for name, allowed in ranges.items():
        value = values.get(name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                check_range(f"{group}.{name}" if group else name, number, allowed)


def check_duration(name: str, value: str | timedelta | Mapping[str, float] | None) -> None:
    """Check a length of time as Lightning takes it; None is none.

    Args:
        name: What the user calls it.
        value: Days, hours, minutes and seconds as text, or a `timedelta` or its arguments.

    Raises:
        InputError: It is none, or not longer than nothing.
    """
    length: timedelta | None = None
    if isinstance(value, str):
        parts = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip())
        if parts:
            days, hours, minutes, seconds = map(int, parts.groups())
            length = timedelta(days, hours=hours, minutes=minutes, seconds=seconds)
    elif isinstance(value, Mapping):
        try:
            length = timedelta(**value)
        except (TypeError, OverflowError):
            length = None
    else:
        length = value
    if value is not None and (length is None or length <= timedelta(0)):
        raise InputError(
            f"{name}: found {value}, expected a duration above 0 as days:hours:minutes:seconds,\n"
            "two digits each, such as 00:08:00:00, or as {hours: 8}."
        )
