"""What a sweep will take, before anything runs, and whether it was run as planned."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_overlock import configs
from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import content_of, difference
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.statistics import seeds_needed
from lightning_overlock.tables import Table, format_figure

if TYPE_CHECKING:
    from lightning_overlock.sweep.validate import Build

PLAN = "plan.json"
# Steps that are run, and those of them that are timed.
STEPS, TIMED = 4, 2


@dataclass(frozen=True)
class Step:
    """How long a row trains.

    Attributes:
        seconds: One optimiser step with its data.
        steps: Steps of an epoch.
        epochs: Epochs of a trial.
    """

    seconds: float
    steps: int
    epochs: int

    @property
    def hours(self) -> float:
        """Hours of one trial, without its validations."""
        return self.seconds * self.steps * self.epochs / 3600


def trainer_option(sweep: Sweep, row: str, name: str) -> Any:
    """Return an option of a row's trainer, as options and configurations say; None if none does."""
    options = sweep.options | sweep.rows[row].options
    if (key := f"trainer.{name}") in options:
        return options[key]
    found = None
    for config in sweep.configs:
        content = yaml.safe_load(configs.find(config).read_text(encoding="utf-8")) or {}
        found = (content.get("trainer") or {}).get(name, found)
    return found


def epochs_of(sweep: Sweep, row: str) -> int:
    """Return for how many epochs a row is trained.

    Raises:
        InputError: If neither options nor configurations say.
    """
    found = trainer_option(sweep, row, "max_epochs")
    if not isinstance(found, int) or found < 1:
        raise InputError(f"{sweep.path}, rows.{row}: expected trainer.max_epochs, found {found!r}.")
    return found


def time_step(sweep: Sweep, row: str, build: "Build") -> Step:
    """Train a row for some steps, without leaving anything behind, and time the last ones."""
    import time

    import torch
    from lightning.pytorch import Callback, Trainer

    class Clock(Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.ends.append(time.perf_counter())

    # These few steps are shorter than a schedule's end may be.
    timed = sweep.rows[row].options | {"model.cooldown_epochs": 0.0}
    task, data = build(sweep.arguments(timed, sweep.seeds[0], row), "cpu")
    clock = Clock()
    kept = ("limit_train_batches", "precision")
    options = {name: v for name in kept if (v := trainer_option(sweep, row, name)) is not None}
    with _quiet():
        trainer = Trainer(
            **options,
            max_steps=STEPS,
            callbacks=[clock],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
        )
        trainer.fit(task, data)
    seconds = (clock.ends[-1] - clock.ends[-1 - TIMED]) / TIMED
    return Step(seconds, int(trainer.num_training_batches), epochs_of(sweep, row))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says of devices, and that a training ends early."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [found.level for found in loggers]
    for found in loggers:
        found.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for found, level in zip(loggers, levels, strict=True):
            found.setLevel(level)


def plan_table(
    sweep: Sweep, steps: dict[str, Step], spreads: dict[str, float], wanted: float | None
) -> Table:
    """Return what each row will take.

    Args:
        sweep: The sweep.
        steps: Row -> its timed step.
        spreads: Row -> standard deviation of its differences to the baseline, where trials are
            finished.
        wanted: The difference that is to be found, in the metric's unit; None for none.
    """
    records: list[dict[str, Any]] = []
    compared = len(sweep.runnable) - 1
    for row in sweep.runnable:
        tuning = len(list(sweep.tuning_jobs(row)))
        trials = tuning + len(sweep.seeds)
        spread = spreads.get(row)
        needed = None if not spread or not wanted else seeds_needed(wanted / spread, compared)
        records.append(
            {
                "row": sweep.label(row),
                "trials": trials,
                "of them tuning": tuning,
                "s per step": steps[row].seconds,
                "steps": steps[row].steps * steps[row].epochs,
                "hours": steps[row].hours * trials,
                "seeds needed": needed,
            }
        )
    hours = sum(record["hours"] for record in records)
    trials = sum(record["trials"] for record in records)
    notes = [
        f"{trials} trials, {format_figure(hours)} hours one after the other, from one timed step "
        "per row; validations, start-up and other work on this machine are not in it."
    ]
    if wanted:
        what = f"a difference of {format_figure(wanted * (100 if sweep.percent else 1))}"
        notes.append(
            f"Seeds needed: to find {what} with 80 % power at Holm's first step over {compared} "
            "rows, at the spread of finished trials."
            if any(record["seeds needed"] for record in records)
            else f"How many seeds {what} needs is known once trials of this study are finished."
        )
    # A column in which nothing stands says nothing.
    shown = [key for key in records[0] if any(r[key] not in (None, 0) for r in records)]
    table = Table.of(records, shown)
    return replace(
        table,
        title=f"Plan of {sweep.title} ({sweep.name}, {sweep.profile})",
        notes=notes,
        records=records,
        droppable=["of them tuning", "steps", "s per step"],
    )


def write_plan(sweep: Sweep, folder: Path, table: Table) -> str:
    """Freeze the sweep as it is planned, and return its hash."""
    content = content_of(sweep)
    found = _hash(content)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    plan = {"hash": found, "date": date, "sweep": content, "rows": table.records}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return found


def as_planned(stored: dict[str, Any], folder: Path) -> list[str]:
    """Return in words whether a study was run as planned; nothing where there is no plan.

    Args:
        stored: The sweep as it was run.
        folder: The sweep's folder.
    """
    path = folder / PLAN
    if not path.is_file():
        return []
    plan = json.loads(path.read_text(encoding="utf-8"))
    name = f"plan {plan['hash']} of {plan['date'][:10]}"
    for key in ("configs", "options", "metric", "direction", "select", "report", "seeds", "tune",
                "rows", "baseline", "margin"):  # fmt: skip
        if different := difference(plan["sweep"].get(key), stored.get(key), key):
            where, planned, run = different
            return [f"Not run as planned ({name}): {where} was {planned}, run with {run}."]
    return [f"Run as planned ({name})."]


def _hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
