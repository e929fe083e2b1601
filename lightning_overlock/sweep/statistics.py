"""Whether rows differ: statistics that hold with few seeds.

Rows are trained with the same seeds, and so differences are taken seed by seed. With three to ten
seeds Student's t is right where percentile bootstraps cover 75 to 84 % instead of 95, and sign-flip
tests cannot reach p < .05 at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
from scipy import special, stats

LEVEL = 0.05
POWER = 0.8
# An interval of two seeds is as wide as the metric's whole range, and says nothing.
MIN_SEEDS = 3
MIN_SEEDS_OF_STAR = 5

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Spread:
    """A row's metric over its seeds.

    Attributes:
        n: The number of seeds.
        mean: Their mean.
        std: Their standard deviation; None for one seed.
        low: Lower end of the mean's 95 % t interval; None for fewer than `MIN_SEEDS`.
        high: Its upper end.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def spread_of(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and interval of a row's seeds, one or more."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Spread(len(values), mean)
    std = float(np.std(values, ddof=1))
    if len(values) < MIN_SEEDS:
        return Spread(len(values), mean, std)
    low, high = t_interval(np.asarray(values))
    return Spread(len(values), mean, std, float(low), float(high))


def t_interval(values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return the ends of the mean's 95 % t interval, over the last axis (at least two values)."""
    n = values.shape[-1]
    half = special.stdtrit(n - 1, 1 - LEVEL / 2) * values.std(-1, ddof=1) / math.sqrt(n)
    return values.mean(-1) - half, values.mean(-1) + half


def t_test(differences: np.ndarray[Any, Any]) -> Any:
    """Return the two-sided p of differences with mean zero, over the last axis."""
    return stats.ttest_1samp(differences, 0.0, axis=-1).pvalue


def equivalence_test(differences: np.ndarray[Any, Any], margin: float) -> Any:
    """Return the p of a mean difference beyond the margin, over the last axis.

    The larger p of two one-sided t tests (Schuirmann 1987).
    """
    above = stats.ttest_1samp(differences, -margin, axis=-1, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, axis=-1, alternative="less").pvalue
    return np.maximum(above, below)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, LEVEL, "holm")[1]] if p_values else []


@cache
def detectable_effect(n: int, comparisons: int = 1) -> float:
    """Return the smallest effect that is found with 80 % power.

    Args:
        n: The number of paired seeds.
        comparisons: The number of rows that are compared: Holm's first step tests each at 5 %
            divided by it.

    Returns:
        The effect in standard deviations of the paired differences.
    """
    threshold = special.stdtrit(n - 1, 1 - LEVEL / comparisons / 2)
    # The shift of the noncentral t that leaves a fifth below the threshold. What lies below the
    # other one is nothing by then.
    return float(special.nctdtrinc(n - 1, 1 - POWER, threshold)) / math.sqrt(n)


def seeds_needed(effect: float, comparisons: int = 1) -> int:
    """Return how many paired seeds find an effect with 80 % power.

    Args:
        effect: The effect in standard deviations of the paired differences.
        comparisons: Number of comparisons, as in `detectable_effect`.
    """
    n = MIN_SEEDS
    while n < 100_000 and detectable_effect(n, comparisons) > abs(effect):
        n = n + 1 if n < 200 else math.ceil(n * 1.05)
    return n


# Comparisons --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A row held against another one.

    Attributes:
        row: The row.
        other: What it is compared with.
        n: The number of seeds that both have.
        value: Mean difference over these seeds, row less other; None without any.
        std: Standard deviation of the differences; None for fewer than two.
        low: Lower end of its 95 % t interval; None for fewer than `MIN_SEEDS`.
        high: Its upper end.
        p: Two-sided p of the paired t test; None where there is no spread to tell.
        p_holm: The same, adjusted for all rows that are compared.
        p_equivalence: p of a difference beyond the margin, adjusted likewise.
        detectable: The smallest difference that this many seeds would have found (80 % power).
        verdict: "better", "worse", "no larger than the margin" or "undecided"; "" for no seeds.
    """

    row: str
    other: str
    n: int = 0
    value: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_equivalence: float | None = None
    detectable: float | None = None
    verdict: Literal["", "better", "worse", "equivalent", "undecided"] = ""

    @property
    def star(self) -> bool:
        """Whether the difference is beyond the seeds' noise, told by five seeds or more."""
        return self.verdict in {"better", "worse"} and self.n >= MIN_SEEDS_OF_STAR


def compare(
    values: Mapping[str, Mapping[int, float]],
    pairs: Sequence[tuple[str, str]],
    direction: Direction,
    margin: float | None = None,
) -> list[Comparison]:
    """Compare pairs of rows seed by seed; p values are adjusted for the number of pairs.

    Args:
        values: Row -> seed -> metric.
        pairs: Each row with what it is compared with.
        direction: Which end of the metric is good.
        margin: Differences below this are none that matters; None for no test of equivalence.
    """
    found = [_differences(values, row, other) for row, other in pairs]
    tested = [place for place, (comparison, _) in enumerate(found) if comparison.p is not None]
    adjusted = holm([found[place][0].p or 0.0 for place in tested])
    within = [0.0] * len(tested)
    if margin is not None:
        within = holm([float(equivalence_test(found[place][1], margin)) for place in tested])
    for place, p_holm, p_within in zip(tested, adjusted, within, strict=True):
        comparison, differences = found[place]
        assert comparison.std is not None
        comparison = replace(
            comparison,
            p_holm=p_holm,
            p_equivalence=None if margin is None else p_within,
            detectable=comparison.std * detectable_effect(comparison.n, len(tested)),
        )
        found[place] = (replace(comparison, verdict=_verdict(comparison, direction)), differences)
    return [comparison for comparison, _ in found]


def _differences(
    values: Mapping[str, Mapping[int, float]], row: str, other: str
) -> tuple[Comparison, np.ndarray[Any, Any]]:
    ours, theirs = values.get(row, {}), values.get(other, {})
    differences = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    n = len(differences)
    if n == 0:
        return Comparison(row, other), differences
    mean = float(differences.mean())
    if n < MIN_SEEDS:
        std = float(differences.std(ddof=1)) if n > 1 else None
        return Comparison(row, other, n, mean, std, verdict="undecided"), differences
    std = float(differences.std(ddof=1))
    low, high = map(float, t_interval(differences))
    # All seeds differ by the same step of the metric: there is no spread to test against.
    flat = std <= 1e-9 * max(float(np.abs(differences).max()), 1e-9)
    p = None if flat else float(t_test(differences))
    found = Comparison(row, other, n, mean, std, low, high, p, verdict="undecided")
    return found, differences


def _verdict(
    comparison: Comparison, direction: Direction
) -> Literal["better", "worse", "equivalent", "undecided"]:
    assert comparison.value is not None
    assert comparison.p_holm is not None
    if comparison.p_holm < LEVEL:
        return "better" if (comparison.value > 0) == (direction == "maximize") else "worse"
    within = comparison.p_equivalence
    return "equivalent" if within is not None and within < LEVEL else "undecided"
