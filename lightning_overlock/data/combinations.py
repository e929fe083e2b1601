"""Options that change nothing without another one, or beside another one: told, not passed over."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

Options = Mapping[str, Any]
# What an option needs in order to change anything, and whether the options have it.
Need = tuple[str, Callable[[Options], bool]]


def warn_of_unused(group: str, owner: type, options: Options, needs: Mapping[str, Need]) -> None:
    """Warn of options that were given and change nothing.

    Args:
        group: What the options' names begin with: "model" or "data".
        owner: The class, whose signature and whose bases' have the defaults. What has its default
            is not taken for given.
        options: The options by name.
        needs: What they need.
    """
    defaults: dict[str, Any] = {}
    for part in reversed(owner.__mro__):
        signature = inspect.signature(part.__init__)  # type: ignore[misc]
        defaults |= {name: known.default for name, known in signature.parameters.items()}
    for name, (needed, fulfilled) in needs.items():
        if name in options and options[name] != defaults[name] and not fulfilled(options):
            rank_zero_warn(
                f"{group}.{name} {options[name]} changes nothing, it needs {needed}",
                category=UserWarning,
            )
