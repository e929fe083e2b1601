"""The names of a sweep's runs: each of its own, and one that a folder can have."""

import unicodedata

from lightning_overlock.errors import InputError
from lightning_overlock.runs.layout import LONGEST_NAME
from lightning_overlock.sweep.spec import Sweep


def check_run_names(sweep: Sweep) -> None:
    """Refuse rows whose runs would share a folder, or whose lines of a table one would mix up.

    Args:
        sweep: The sweep.

    Raises:
        InputError: Two runs have names that are equal but for case or Unicode's composition, which
            some file systems do not tell apart; a name is too long; or two rows have one label.
    """
    taken: dict[str, tuple[str, str]] = {}
    labels: dict[str, str] = {}
    for row in sweep.rows:
        key = f"{sweep.path}, rows.{row}"
        if (other := labels.setdefault(sweep.label(row), row)) != row:
            raise InputError(
                f"{key}: has the label of rows.{other}, '{sweep.label(row)}'.\n"
                "Expected a label of its own for each row."
            )
        reported = [sweep.reported_job(row, seed, {}) for seed in sweep.seeds]
        for name in [job.folder for job in (*sweep.tuning_jobs(row), *reported)]:
            if (size := len(name.encode())) > LONGEST_NAME:
                raise InputError(
                    f"{key}: a run would have a name of {size} bytes, {name[:40]}…\n"
                    f"Expected at most {LONGEST_NAME}: a shorter name, or shorter words to tune."
                )
            folded = unicodedata.normalize("NFC", name.casefold())
            if folded in taken:
                theirs, run = taken[folded]
                raise InputError(
                    f"{key}: its run {name} would have the folder of rows.{theirs}'s run {run}.\n"
                    "Expected names that differ in more than case, composition or signs."
                )
            taken[folded] = row, name
