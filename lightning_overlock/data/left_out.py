"""What is left out of the data: counted by reason, told, and refused where it is too much."""

from lightning_overlock.errors import InputError, printable

# More than this share left out is an error unless data.max_left_out allows it.
MAX_LEFT_OUT = 0.1


class LeftOut:
    """Counts what is left out of a split by reason, with the first of each.

    Args:
        what: What is counted, in the plural: "images", "boxes".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count one more.

        Args:
            reason: What follows the number: "with the suffix .txt", "without an area".
            example: Which one it is, kept of the first only.
            count: How many it stands for.
        """
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, example)

    def merge(self, other: "LeftOut", folder: str = "") -> None:
        """Count what another one has counted, in a subfolder if one is given."""
        for reason, count in other.counts.items():
            first = other.first[reason]
            self.add(reason, f"{folder}/{first}" if folder else first, count)

    @property
    def total(self) -> int:
        """How many were left out."""
        return sum(self.counts.values())

    def reasons(self, most: int = 3) -> str:
        """Return "12 with the suffix .txt (a.txt), 3 ...", the most frequent first."""
        ordered = sorted(self.counts, key=lambda reason: -self.counts[reason])
        parts = [f"{self.counts[r]:,} {r} ({printable(self.first[r])})" for r in ordered[:most]]
        if rest := sum(self.counts[reason] for reason in ordered[most:]):
            parts.append(f"{rest:,} for other reasons")
        return ", ".join(parts)

    def summary(self, of: int) -> str:
        """Return "used 1,180 of 1,200 images, 20 left out: 12 with the suffix .txt (a.txt), ...".

        Args:
            of: How many there are, those left out included.
        """
        used = f"used {of - self.total:,} of {of:,} {self.what}"
        return f"{used}, {self.total:,} left out: {self.reasons()}" if self.total else used


def refuse_if_too_many(
    source: str,
    left_out: LeftOut,
    of: int,
    largest_share: float = MAX_LEFT_OUT,
    hint: str = "",
) -> None:
    """Stop where more is left out than was asked for.

    Args:
        source: The file or folder that it is about.
        left_out: What is left out; its `what` is for example "images of the class 'cat'".
        of: How many there are, those left out included.
        largest_share: What may be left out, 0 to 1 (`data.max_left_out`).
        hint: What else to do, after "expected ...".

    Raises:
        InputError: The share is larger.
    """
    if left_out.total > largest_share * of:
        raise InputError(
            f"{source}: {left_out.total:,} of {of:,} {left_out.what} would be left out: "
            f"{left_out.reasons()}\n"
            f"expected at most a share of {largest_share:g} (data.max_left_out){hint}"
        )


class Check:
    """What becomes of the invalid entries of a file: the run stops, or they are left out and told.

    Args:
        source: The file or folder that it is about.
        skip_invalid: Leave them out, up to `max_left_out`, instead of stopping.
        max_left_out: The largest share that may be left out.
    """

    def __init__(self, source: str, skip_invalid: bool, max_left_out: float) -> None:
        self.source = source
        self.skip_invalid = skip_invalid
        self.max_left_out = max_left_out
        self.notes: list[str] = []

    def settle(self, left_out: LeftOut, of: int, hint: str = "") -> None:
        """Stop for what is invalid, or for too much of it where that is left out.

        Args:
            left_out: What is invalid.
            of: How many there are in all.
            hint: What else to do, after "expected ...".

        Raises:
            InputError: As said.
        """
        if left_out.total and not self.skip_invalid:
            raise InputError(
                f"{self.source}: {left_out.total:,} of {of:,} {left_out.what} cannot be used: "
                f"{left_out.reasons()}\n"
                f"expected the file to be repaired, or data.skip_invalid true to leave them out"
                f"{hint}"
            )
        self.limit(left_out, of, hint)

    def note(self, left_out: LeftOut, of: int) -> None:
        """Tell what was left out, if anything was."""
        if left_out.total:
            self.notes.append(left_out.summary(of))

    def limit(self, left_out: LeftOut, of: int, hint: str = "") -> None:
        """Stop where more is left out than is allowed."""
        refuse_if_too_many(self.source, left_out, of, self.max_left_out, hint)
