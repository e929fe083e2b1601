"""What a sweep has measured: each row's metric over its seeds, and whether rows differ."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy import special, stats

from lightning_overlock.sweep.spec import Row, Sweep

LEVEL = 0.05


# Statistics ---------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float, tuple[float, float]] | None:
    """Return mean, standard deviation and 95 % t-interval of the mean; None for fewer than two."""
    if len(values) < 2:
        return None
    # As t-distributed as seeds are normal; with few of them the interval is honestly wide.
    mean, std = statistics.mean(values), statistics.stdev(values)
    half = special.stdtrit(len(values) - 1, 1 - LEVEL / 2) * std / math.sqrt(len(values))
    return mean, std, (float(mean - half), float(mean + half))


@dataclass(frozen=True)
class Difference:
    """How far a row is from the baseline.

    Attributes:
        value: Difference of the means, row less baseline.
        p: Two-sided probability of one as large by chance; None where there is no spread to tell.
        test: "paired t" where both were trained with the same seeds, else "Welch's t"; "" without.
    """

    value: float
    p: float | None = None
    test: str = ""

    @property
    def exceeds(self) -> bool | None:
        """Whether it exceeds the seeds' noise; None where that cannot be told."""
        return None if self.p is None else self.p < LEVEL


def difference(row: dict[int, float], baseline: dict[int, float]) -> Difference:
    """Return the difference of two rows' means, each row given as seed -> metric."""
    ours, theirs = list(row.values()), list(baseline.values())
    value = sum(ours) / len(ours) - sum(theirs) / len(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(value)
    with warnings.catch_warnings():
        # Seeds that agree to the last digit; the probability is 0, 1 or no number then.
        warnings.simplefilter("ignore", RuntimeWarning)
        if row.keys() == baseline.keys():
            test = "paired t"
            p = float(stats.ttest_rel(ours, [baseline[seed] for seed in row]).pvalue)
        else:
            test = "Welch's t"
            p = float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    if math.isnan(p):  # no difference anywhere, and no spread
        p = 1.0
    return Difference(value, p, test)


# Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What is known of a row.

    Attributes:
        row: The row.
        trials: The trial that counts for each seed, in the order of seeds.
        values: Its metric by seed: the best of the run.
        seconds: Mean training time; None if none is known.
        cost: `params` (millions), `gmacs`, `images_per_second`, as far as measured.
        spread: Mean, standard deviation and 95 % interval; None for fewer than two seeds.
        against: Difference to the baseline; None for the baseline and where one of both is missing.
        published: The paper's difference to its baseline, in its unit.
        state: Why figures are missing, in words; empty if none are.
    """

    row: Row
    trials: dict[int, FrozenTrial] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    cost: dict[str, Any] = field(default_factory=dict)
    spread: tuple[float, float, tuple[float, float]] | None = None
    against: Difference | None = None
    published: float | None = None
    state: str = ""

    @property
    def mean(self) -> float | None:
        """Mean of the metric over the seeds there are."""
        return sum(self.values.values()) / len(self.values) if self.values else None

    @property
    def agrees(self) -> bool | None:
        """Whether the difference has the sign of the paper's; None where one is missing."""
        if self.against is None or self.published is None:
            return None
        return self.against.value * self.published > 0


@dataclass(frozen=True)
class Results:
    """What is known of a sweep.

    Attributes:
        sweep: The sweep.
        lines: Its rows by name; none for a search.
        trials: All trials that count, by number.
        facts: How it was measured, a sentence each.
    """

    sweep: Sweep
    lines: dict[str, Line]
    trials: list[FrozenTrial]
    facts: list[str]

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, which tables print in percent as papers do."""
        values = [value for trial in self.trials if (value := metric_of(trial)) is not None]
        return self.sweep.direction == "maximize" and all(0 <= value <= 1 for value in values)

    @property
    def metric(self) -> str:
        """The metric's name with its unit."""
        return f"{self.sweep.metric} (%)" if self.percent else self.sweep.metric


def metric_of(trial: FrozenTrial) -> float | None:
    """Return a complete trial's metric, the best of its whole run; None where there is none."""
    value = trial.user_attrs.get("best", trial.value)
    if trial.state != TrialState.COMPLETE or value is None or not math.isfinite(value):
        return None
    return float(value)


def results(study: optuna.Study, sweep: Sweep) -> Results:
    """Collect what a study knows of a sweep.

    Of the trials of a row and seed the first complete one counts, and a failed one only where
    there is none.

    Args:
        study: The study, whose user attributes and trials' are the runner's.
        sweep: The sweep, read for the profile that was run.
    """
    trials = [t for t in study.get_trials(deepcopy=False) if "duplicate_of" not in t.user_attrs]
    if sweep.search is not None:
        return Results(sweep, {}, trials, _facts(study, sweep, trials))
    counting: dict[tuple[str, int], FrozenTrial] = {}
    for trial in trials:
        key = (trial.params.get("row", ""), trial.params.get("seed", -1))
        known = counting.get(key)
        if known is None or known.state != TrialState.COMPLETE:
            counting[key] = trial
    cost = study.user_attrs.get("cost", {})
    found = {
        row.name: _line(
            row,
            {s: counting[row.name, s] for s in sweep.seeds if (row.name, s) in counting},
            cost.get(row.name, {}),
            sweep.seeds,
        )
        for row in sweep.rows.values()
    }
    baseline = found[sweep.baseline]
    figure = sweep.metric.split("/")[-1]
    lines = {name: _compared(line, baseline, figure) for name, line in found.items()}
    used = [trial for line in lines.values() for trial in line.trials.values()]
    return Results(sweep, lines, used, _facts(study, sweep, used))


def _line(row: Row, trials: dict[int, FrozenTrial], cost: dict[str, Any], seeds: list[int]) -> Line:
    values = {s: value for s, t in trials.items() if (value := metric_of(t)) is not None}
    times = [
        t.user_attrs["seconds"]
        for s, t in trials.items()
        if s in values and "seconds" in t.user_attrs
    ]
    return Line(
        row,
        trials,
        values,
        sum(times) / len(times) if times else None,
        cost,
        mean_interval(list(values.values())),
        state=_state(row, trials, values, seeds),
    )


def _state(
    row: Row, trials: dict[int, FrozenTrial], values: dict[int, float], seeds: list[int]
) -> str:
    """Return in words what is missing of a row."""
    if row.missing:
        return f"cannot be run: {row.missing}"
    problems = []
    for seed in seeds:
        trial = trials.get(seed)
        if seed in values:
            continue
        if trial is None or trial.state == TrialState.WAITING:
            problems.append(f"seed {seed} was not run")
        elif trial.state == TrialState.RUNNING:
            problems.append(f"seed {seed} is not finished")
        else:
            lines = str(trial.user_attrs.get("error", "")).strip().splitlines()
            problems.append(f"seed {seed} failed" + (f" ({lines[-1][:120]})" if lines else ""))
    return "not run" if len(trials) == 0 else ", ".join(problems)


def _compared(line: Line, baseline: Line, key: str) -> Line:
    """Return a line with its differences to the baseline's."""
    if line is baseline:
        return line
    ours, theirs = line.row.paper.get(key), baseline.row.paper.get(key)
    changes: dict[str, Any] = {}
    if ours is not None and theirs is not None:
        changes["published"] = round(ours - theirs, 6)
    if line.values and baseline.values:
        changes["against"] = difference(line.values, baseline.values)
    return Line(**(vars(line) | changes))


def _facts(study: optuna.Study, sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[str]:
    """Return data, epochs, seeds, date, versions, hardware and command in words."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    epochs = sorted({t.user_attrs["epochs"] for t in done if "epochs" in t.user_attrs})
    dates = sorted({str(t.user_attrs["date"])[:10] for t in done if "date" in t.user_attrs})
    seeds = sweep.seeds[:1] if sweep.search else sweep.seeds
    facts = [
        f"Data: {sweep.data or 'not named'}. Epochs: {_range(epochs)}. "
        f"Seeds: {', '.join(map(str, seeds))}."
    ]
    machines = {
        ", ".join(f"{key} {value}" for key, value in trial.user_attrs["machine"].items())
        for trial in done
        if "machine" in trial.user_attrs
    }
    facts += [f"Trained {_range(dates)} with {machine}." for machine in sorted(machines)]
    command = study.user_attrs.get("command", sweep.command)
    return [*facts, f"Command: {command}"]


def _range(values: Sequence[Any]) -> str:
    if not values:
        return "none yet"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
