"""The trials of a study: which belong together, which counts, and what must be run again."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.sweep.spec import Job, Sweep


@dataclass(frozen=True)
class Request:
    """What a runner wants to be trained.

    Attributes:
        retries: How often a failed trial is run again.
        ignore_failures_before: Failures of trials before this number do not count.
        retry_failed: Nor do those of them that would repeat exactly.
        only: The rows wanted; None for all.
    """

    retries: int = 1
    ignore_failures_before: int = 0
    retry_failed: bool = False
    only: list[str] | None = None

    def wants(self, job: Job) -> bool:
        """Tell whether a job is of a row that is wanted."""
        return self.only is None or job.row in self.only

    def is_due(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether one more trial is needed after these of the same run folder."""
        if any(trial.state != TrialState.FAIL for trial in trials):
            return False
        before = self.ignore_failures_before
        again = self.retry_failed
        final = [t for t in trials if repeats(t) and not (again and t.number < before)]
        failures = [t for t in trials if "error" in t.user_attrs and t.number >= before]
        return not final and len(failures) <= self.retries


def repeats(trial: FrozenTrial) -> bool:
    """Tell whether a trial has failed in a way that would repeat exactly."""
    return trial.state == TrialState.FAIL and bool(trial.user_attrs.get("repeats"))


def by_folder(trials: Sequence[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Return the trials of each run folder, but for those that never ran or were set aside."""
    found: dict[str, list[FrozenTrial]] = {}
    # Optuna's trials cannot be taken back: a later one names those that do not count.
    set_aside = {number for t in trials for number in t.user_attrs.get("set_aside", [])}
    for trial in trials:
        folder = trial.user_attrs.get("folder")
        counts = "duplicate_of" not in trial.user_attrs and trial.number not in set_aside
        if folder is not None and counts:
            found.setdefault(folder, []).append(trial)
    return found


def counting(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return which of the trials of one run folder counts: the first that has not failed.

    If all failed, the last counts, since it tells why there is no result.
    """
    return next((trial for trial in trials if trial.state != TrialState.FAIL), trials[-1])


def metric_of(trial: FrozenTrial) -> float | None:
    """Return the metric of a complete trial; None where there is none."""
    return trial.values[0] if trial.state == TrialState.COMPLETE else None


def pareto_front(points: Sequence[tuple[float, float]], maximize: bool) -> list[int]:
    """Return the places of the points that no other point is as cheap as and as good as.

    Args:
        points: Cost and metric of each.
        maximize: Whether a larger metric is the better one.

    Returns:
        The places, cheapest first. Of equal points all or none are among them.
    """
    sign = 1 if maximize else -1
    return [
        place
        for place in sorted(range(len(points)), key=lambda place: points[place])
        if not any(
            other != points[place]
            and other[0] <= points[place][0]
            and sign * other[1] >= sign * points[place][1]
            for other in points
        )
    ]


def tuning_scores(
    sweep: Sweep, row: str, trials: Sequence[FrozenTrial]
) -> list[tuple[dict[str, Any], float | None]]:
    """Return each point of a row's grid with its mean metric; None for one without result."""
    tried = by_folder(trials)
    found: list[tuple[dict[str, Any], list[float | None]]] = []
    for job in sweep.tuning_jobs(row):
        if not found or found[-1][0] != job.point:
            found.append((job.point or {}, []))
        same = tried.get(job.folder)
        found[-1][1].append(metric_of(counting(same)) if same else None)
    return [
        (point, None if None in values else statistics.fmean(v for v in values if v is not None))
        for point, values in found
    ]


def choose(
    sweep: Sweep, row: str, trials: Sequence[FrozenTrial], request: Request
) -> dict[str, Any] | None:
    """Return the point of the grid that is best for a row: the best mean over tuning's seeds.

    Returns:
        Nothing to choose is {}. None as long as a trial of the tuning is to be run or running,
        and where all have failed.
    """
    if sweep.tune is None:
        return {}
    tried = by_folder(trials)
    for job in sweep.tuning_jobs(row):
        same = tried.get(job.folder, [])
        open_ = {TrialState.RUNNING, TrialState.WAITING}
        if request.is_due(same) or any(trial.state in open_ for trial in same):
            return None
    scores = [(p, s) for p, s in tuning_scores(sweep, row, trials) if s is not None]
    if not scores:
        return None
    best = max if sweep.direction == "maximize" else min
    return best(scores, key=lambda pair: pair[1])[0]
