"""Names of classes, as folders or a text file have them."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lightning_overlock.errors import InputError, printable

# Lines with a number before the name, with numbers behind it, and of a list that programs read; and
# the heading of a table.
NUMBERED = re.compile(r"(\d+)(?:\s+|[:;,|=]\s*|[.)-]\s+)\S")
COLUMNS = re.compile(r"[^,;|]+(?:[,;|]\s*-?\d+\s*)+$")
MARKED = re.compile(r"""[-*] \S|(["']).+\1,?$""")
HEADING = re.compile(r"(?:id|idx|index|label|class|value|number|no|nr|#)\b", re.IGNORECASE)


def check_class_names(names: Sequence[str], source: str) -> None:
    """Refuse names that tables and files could not hold, or could not tell apart.

    Everything else is a name: spaces, quotes, brackets, `null`, 3e8, any script, any length.

    Args:
        names: Names of all classes.
        source: Where they are from, for the message.

    Raises:
        InputError: A name is empty, is there twice, has a line break or another control character
            in it, or bytes that are no UTF-8.
    """
    for place, name in enumerate(names):
        problem = ""
        if not name.strip():
            problem = "is empty"
        elif printable(name) != name:
            problem = "has a line break, another control character or bytes that are no UTF-8 in it"
        elif name in names[:place]:
            problem = f"is that of class {names.index(name)}, too"
        if problem:
            raise InputError(
                f"{printable(source)}: the name '{printable(name)}' of class {place} {problem}\n"
                "expected a name of its own for every class, on one line"
            )


def warn_if_other(names: Sequence[str], path: Path) -> None:
    """Warn where a text file that is passed over has other names than those that were given.

    Args:
        names: What `data.class_names` says.
        path: The file that is read where nobody gives names.
    """
    try:
        there = read_class_names(path)
    except InputError:
        there = []
    if there != list(names):
        rank_zero_warn(
            f"data.class_names is used, and {printable(path)}, which says otherwise, is not",
            category=UserWarning,
        )


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file: line i is class i.

    Raises:
        InputError: The file cannot be read as UTF-8, has an empty line between names, numbers or
            other columns beside them, or see `check_class_names`.
    """
    try:
        # With the mark that some editors put at the beginning, and with any kind of line ends.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.class_names: {printable(path)} cannot be read ({error})\n"
            "expected a list, or a text file in UTF-8 with a name per line"
        ) from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if names == [""]:
        raise InputError(f"{printable(path)}: found no names\nexpected a class's name per line")
    if "" in names:
        raise InputError(
            f"{printable(path)}: line {names.index('') + 1} of {len(names)} is empty\n"
            "expected the name of one class per line, as the number of a class is its line's"
        )
    check_class_names(names, str(path))
    _refuse_columns(names, path)
    return names


def _refuse_columns(names: Sequence[str], path: Path) -> None:
    """Refuse a file that has more than names in it, which would become a part of them.

    Raises:
        InputError: Every line begins with another number, or ends with numbers after a comma; or
            the file is JSON or YAML.
    """
    lines = names[1:] if len(names) > 1 and HEADING.match(names[0]) else names
    numbers = [match[1] for line in lines if (match := NUMBERED.match(line))]
    example = f"such as '{printable(lines[-1])}'"
    if path.suffix.lower() in {".json", ".yaml", ".yml"}:
        found = "a file for programs"
    elif len(lines) < 2:
        return
    elif len(numbers) == len(lines) == len(set(numbers)):
        found = f"every line begins with a number of its own, {example}"
    elif all(COLUMNS.match(line) for line in lines):
        found = f"every line has numbers behind a name, {example}"
    elif all(MARKED.match(line) for line in lines) or {names[0], names[-1]} in ({*"[]"}, {*"{}"}):
        found = f"every line has a mark of a list or quotes, {example}"
    else:
        return
    raise InputError(
        f"{printable(path)}: {found}\n"
        "expected nothing but the name of a class per line, line i for class i (from 0)\n"
        "If these are the names as they shall be, give them as a list in data.class_names."
    )


def alike(names: Sequence[str]) -> list[str]:
    """Return the names that differ in case or Unicode's composition alone, in pairs: 'Cat' 'cat'.

    Args:
        names: Names of classes or folders.
    """
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        other = first.setdefault(same_name(name), name)
        if other != name:
            pairs.append(f"'{printable(other)}' and '{printable(name)}'")
    return pairs


def same_name(name: str) -> str:
    """Return what is equal for names that a person takes for the same."""
    return unicodedata.normalize("NFKC", name).casefold().strip()
