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

    def merge(self, other: "LeftOut") -> None:
        """Count what another one has counted."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

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
