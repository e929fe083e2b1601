"""What a study has measured: each row's metric over its seeds, and whether rows differ."""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import (
    changed_rows,
    compare_settings,
    content_of,
    stored_sweep,
)
from lightning_overlock.sweep.facts import (
    facts_of,
    identical_rows,
    mixed_rows,
    state_of,
    what_is_left_out,
)
from lightning_overlock.sweep.parts import Row
from lightning_overlock.sweep.plan import as_planned
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.statistics import Comparison, Spread, compare, spread_of
from lightning_overlock.sweep.trials import by_folder, counting, metric_of, tuning_scores

# Points of a metric that is a share: what a table prints with one digit more than it means.
MARGIN = 0.2
# What a row or a trial costs, as tables call it.
COSTS = {
    "params": "parameters (M)",
    "gmacs": "multiply-adds (G)",
    "images_per_second": "images/s",
    "seconds": "training (s)",
}
# The metrics that the tasks log, as papers print them.
PRINTED = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "box AP",
    "map50": "box AP50",
    "map75": "box AP75",
    "mask_map": "mask AP",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou": "boundary IoU",
}


@dataclass(frozen=True)
class Line:
    """What is known of a row.

    Attributes:
        name: The row's name.
        row: The row.
        trials: The trial that counts for each reported seed, in the order of seeds.
        values: Its metric by seed.
        cost: `params` (millions), `gmacs`, `images_per_second`, as far as measured.
        scores: The points of its tuning with their mean metric.
        against: Its comparison with the baseline; None for the baseline.
        published: The paper's difference to its baseline, in its unit.
        state: Why figures are missing, in words; empty if none are.
    """

    name: str
    row: Row
    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    scores: list[tuple[dict[str, Any], float | None]] = field(default_factory=list)
    against: Comparison | None = None
    published: float | None = None
    state: str = ""

    @property
    def spread(self) -> Spread | None:
        """The metric over the seeds there are; None for none."""
        return spread_of(list(self.values.values())) if self.values else None

    @property
    def seconds(self) -> float | None:
        """Mean training time of the seeds with a result; None if none is known."""
        known = [self.trials[seed].user_attrs.get("seconds") for seed in self.values]
        found = [seconds for seconds in known if seconds is not None]
        return sum(found) / len(found) if found else None

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that tuning chose; {} where nothing was tuned or nothing was trained."""
        options = {option for point, _ in self.scores for option in point}
        for trial in self.trials.values():
            return {k: v for k, v in trial.user_attrs["options"].items() if k in options}
        return {}

    @property
    def agrees(self) -> bool | None:
        """Whether the difference has the sign of the paper's; None where one is missing."""
        value = self.against.value if self.against is not None else None
        if value is None or self.published is None:
            return None
        return value * self.published > 0


@dataclass(frozen=True)
class Results:
    """What is known of a sweep.

    Attributes:
        name: The study's name.
        sweep: The sweep as it was run.
        lines: Its rows by name; none for a search.
        frozen: All trials that count, by number.
        comparisons: What the file compares besides each row and the baseline.
        notes: What must be known beside the figures, a sentence each.
        facts: How it was measured, a sentence each.
        folder: Where the run folders are.
    """

    name: str
    sweep: Sweep
    lines: dict[str, Line]
    frozen: list[FrozenTrial]
    comparisons: list[list[Comparison]]
    notes: list[str]
    facts: list[str]
    folder: Path

    @property
    def scale(self) -> float:
        """What a value is multiplied with for the table: 100 for a share."""
        return 100.0 if self.sweep.percent else 1.0

    def text(self, value: float) -> str:
        """Return a value of the metric as the table prints it."""
        return f"{value * 100:.2f}" if self.sweep.percent else f"{value:.4g}"

    @property
    def metric(self) -> str:
        """The metric's name with its unit."""
        name = self.sweep.metric
        if self.sweep.report == "test":
            name = "test/" + name.partition("/")[2]
        return f"{name} (%)" if self.sweep.percent else name

    @property
    def printed(self) -> str:
        """The metric's name as papers print it, with its unit."""
        split, _, name = self.metric.removesuffix(" (%)").rpartition("/")
        name = PRINTED.get(name, name.replace("_", " "))
        words = [*([split] if split not in {"", "val"} else []), name]
        return " ".join([*words, "(%)"] if self.sweep.percent else words)

    @property
    def best(self) -> FrozenTrial | None:
        """The complete trial with the best metric; None before there is one."""
        found = [(value, t) for t in self.frozen if (value := metric_of(t)) is not None]
        find = max if self.sweep.direction == "maximize" else min
        return find(found, key=lambda pair: pair[0])[1] if found else None

    @property
    def weighed(self) -> str:
        """What a search's metric is held against: the cost that it names, or the seconds."""
        return self.sweep.cost or "seconds"

    @property
    def margin(self) -> float | None:
        """The margin of equivalence in the metric's own unit."""
        return margin_of(self.sweep)


def margin_of(sweep: Sweep) -> float | None:
    """Return the margin of equivalence in the metric's own unit; None for no such test."""
    if sweep.margin is not None:
        return sweep.margin / 100 if sweep.percent else sweep.margin
    return MARGIN / 100 if sweep.percent else None


def results(study: optuna.Study, sweep: Sweep | None, folder: Path) -> Results:
    """Collect what a study knows of a sweep.

    The first complete trial of a row and seed counts, and a failed one only where there is none.

    Args:
        study: The study.
        sweep: The sweep file, for titles, labels and the choice of rows; None for all as it was
            run. Figures are the study's alone.
        folder: Where the run folders are.

    Raises:
        InputError: If the file says what the study was not run with.
    """
    stored = study.user_attrs.get("sweep")
    every = study.get_trials(deepcopy=False)
    if stored is None:
        if sweep is None:
            raise InputError(f"{study.study_name}: this study has not been run yet.")
        stored = content_of(sweep)
    if sweep is None:
        sweep = stored_sweep(stored, folder)
    else:
        compare_settings(sweep, stored, study.study_name)
        if not any(word.startswith("seeds=") for word in sweep.overrides):
            sweep = sweep.model_copy(update={"seeds": stored["seeds"]})
    grouped = by_folder(every)
    if sweep.search is not None:
        used = [counting(same) for same in grouped.values()]
        facts = facts_of(study, sweep, used)
        return Results(study.study_name, sweep, {}, used, [], [], facts, folder)
    changed = changed_rows(sweep, stored, every)
    costs = study.user_attrs.get("cost", {})
    lines = {}
    for name, row in sweep.rows.items():
        reported = {seed: grouped.get(f"{name}-seed{seed}", []) for seed in sweep.seeds}
        trials = {seed: counting(found) for seed, found in reported.items() if found}
        line = _line(sweep, name, row, trials, changed.get(name))
        scores = tuning_scores(sweep, name, every) if name in sweep.runnable else []
        lines[name] = replace(line, cost=costs.get(name, {}), scores=scores)
    lines = _compared(sweep, lines)
    used = [t for line in lines.values() for t in line.trials.values()]
    used += [counting(found) for found in grouped.values() if "tuning" in found[-1].user_attrs]
    values = {name: line.values for name, line in lines.items()}
    comparisons = [
        compare(
            values,
            [(row, other) for other, row in itertools.pairwise(chain)],
            sweep.direction,
            margin_of(sweep),
        )
        for chain in sweep.comparisons
    ]
    notes = [*identical_rows(sweep, values), *what_is_left_out(sweep, stored)]
    done = {name: [line.trials[s] for s in line.values] for name, line in lines.items()}
    notes += [*mixed_rows(sweep, done), *as_planned(stored, folder)]
    facts = facts_of(study, sweep, used)
    return Results(study.study_name, sweep, lines, used, comparisons, notes, facts, folder)


def _line(
    sweep: Sweep,
    name: str,
    row: Row,
    trials: dict[int, FrozenTrial],
    changed: tuple[str, Any, Any] | None,
) -> Line:
    if changed is not None:
        key, old, new = changed
        state = (
            f"left out: trained with {key} {old}, the file now says {new}; "
            "a changed row needs a name of its own"
        )
        return Line(name, row, state=state)
    values = {s: value for s, t in trials.items() if (value := metric_of(t)) is not None}
    return Line(name, row, trials, values, state=state_of(row, trials, values, sweep.seeds))


def _compared(sweep: Sweep, lines: dict[str, Line]) -> dict[str, Line]:
    """Return the lines with their comparisons to the baseline."""
    values = {name: line.values for name, line in lines.items()}
    pairs = [(name, sweep.baseline) for name in lines if name != sweep.baseline]
    found = {c.row: c for c in compare(values, pairs, sweep.direction, margin_of(sweep))}
    figure = sweep.metric.split("/")[-1]
    theirs = sweep.rows[sweep.baseline].published(figure)
    compared = {}
    for name, line in lines.items():
        ours = line.row.published(figure)
        known = name != sweep.baseline and ours is not None and theirs is not None
        published = round(ours - theirs, 6) if known and ours and theirs else None
        compared[name] = replace(line, against=found.get(name), published=published)
    return compared
