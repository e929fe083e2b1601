"""`lightning sweep plan`: times a step of every row and freezes the file."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.notebook import load
from lightning_overlock.sweep.plan import PLAN, plan_table, time_step, write_plan
from lightning_overlock.sweep.results import margin_of
from lightning_overlock.sweep.spec import Sweep

if TYPE_CHECKING:
    from lightning_overlock.sweep.validate import Build


def plan(
    sweep: Sweep,
    name: str,
    folder: Path,
    storage: str | None,
    difference: float | None,
    build: "Build",
) -> None:
    """Print what a sweep will take, and write its frozen copy.

    Args:
        sweep: The sweep.
        name: The study's name.
        folder: The sweep's folder.
        storage: The database's URL; None for the folder's own.
        difference: The difference that is to be found, in the table's unit; None for the margin.
        build: Makes task and data of a `fit` command line.

    Raises:
        InputError: If it is a search.
    """
    if sweep.search is not None:
        raise InputError(f"{sweep.path}: a search is not planned.\nExpected a sweep with rows.")
    spreads = {}
    try:
        lines = load(name, folder.parent, storage).results.lines
    except InputError:  # nothing has been run yet
        lines = {}
    for row, line in lines.items():
        if line.against is not None and line.against.std is not None:
            spreads[row] = line.against.std
    wanted = margin_of(sweep)
    if difference is not None:
        wanted = difference / 100 if sweep.percent else difference
    steps = {row: time_step(sweep, row, build) for row in sweep.runnable}
    table = plan_table(sweep, steps, spreads, wanted)
    found = write_plan(sweep, folder, table)
    frozen = f"Frozen as {folder / PLAN}, hash {found}."
    replace(table, notes=[*table.notes, frozen]).print()
