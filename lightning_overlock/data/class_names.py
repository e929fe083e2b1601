"""Names of classes, as folders or a text file have them."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lightning_overlock.errors import InputError, printable


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


def read_class_names(path: Path) -> list[str]:
    """Return the names in a text file: line i is class i.

    Raises:
        InputError: The file cannot be read as UTF-8, has an empty line between names, or see
            `check_class_names`.
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
    return names


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
