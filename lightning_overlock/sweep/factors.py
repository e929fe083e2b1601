"""Main effects and interactions of rows that are a product of factors."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_overlock.sweep.spec import Sweep

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Effect:
    """What a factor, or two of them together, do to the metric.

    Attributes:
        name: The factor, or both with " x " between them.
        levels: Which level less which one, in words; "" for more than two levels.
        value: The difference of the levels' means, all else equal; None for more than two levels.
        low: Lower end of its 95 % interval.
        high: Its upper end.
        p: The F test's p of the whole factor, not adjusted for the number of effects.
        share: The part of the metric's variance over all trials that it explains.
    """

    name: str
    levels: str
    value: float | None
    low: float | None
    high: float | None
    p: float
    share: float


def effects(sweep: Sweep, values: Mapping[str, Mapping[int, float]]) -> list[Effect]:
    """Fit an ordinary linear model with the factors, their pairs and the seeds.

    Args:
        sweep: The sweep, whose rows have levels.
        values: Row -> seed -> metric.

    Returns:
        The effects of factors, then of pairs; without pairs where the rows, being a fraction of
        the product, cannot tell them apart; nothing where they cannot tell the factors apart.
    """
    from statsmodels.regression.linear_model import OLS

    rows = [name for name, row in sweep.rows.items() if row.levels and values.get(name)]
    trials = [(name, seed) for name in rows for seed in values[name]]
    metric = np.array([values[name][seed] for name, seed in trials])
    by_seed = [str(seed) for _, seed in trials]
    terms = {
        factor: _contrasts([sweep.rows[name].levels.get(factor, "") for name, _ in trials], found)
        for factor, levels in sweep.factors.items()
        if len(found := [level for level in levels if _used(sweep, rows, factor, level)]) > 1
    }
    fixed = [
        np.ones((len(trials), 1)),
        _contrasts(by_seed, sorted(set(by_seed))),
    ]
    pairs = {
        f"{one} x {other}": _products(terms[one], terms[other])
        for one, other in itertools.combinations(terms, 2)
    }
    for chosen in (terms | pairs, terms):
        design = np.hstack([*fixed, *chosen.values()])
        full = np.linalg.matrix_rank(design) == design.shape[1] < len(metric)
        if chosen and full:
            model = OLS(metric, design).fit()
            break
    else:
        return []
    total = float(((metric - metric.mean()) ** 2).sum())
    result: list[Effect] = []
    place = sum(part.shape[1] for part in fixed)
    for name, columns in chosen.items():
        width = columns.shape[1]
        rows_of = np.eye(design.shape[1])[place : place + width]
        test = model.f_test(rows_of)
        one = width == 1 and " x " not in name
        low, high = model.conf_int()[place]
        used = [v for v in sweep.factors.get(name, {}) if _used(sweep, rows, name, v)]
        result.append(
            Effect(
                name,
                f"{used[0]} less {used[1]}" if one else "",
                float(model.params[place]) if one else None,
                float(low) if one else None,
                float(high) if one else None,
                float(test.pvalue),
                float(test.fvalue) * width * float(model.mse_resid) / total if total else 0.0,
            )
        )
        place += width
    return result


def _used(sweep: Sweep, rows: list[str], factor: str, level: str) -> bool:
    return any(sweep.rows[name].levels.get(factor) == level for name in rows)


def _contrasts(found: list[str], levels: list[str]) -> Matrix:
    """Return columns that sum to zero over the levels; of two levels half a unit each way."""
    columns = np.zeros((len(found), max(len(levels) - 1, 0)))
    scale = 0.5 if len(levels) == 2 else 1.0
    for place, level in enumerate(found):
        if level in levels[:-1]:
            columns[place, levels.index(level)] = scale
        elif levels and level == levels[-1]:
            columns[place] = -scale
    return columns


def _products(one: Matrix, other: Matrix) -> Matrix:
    return np.hstack([one[:, [i]] * other for i in range(one.shape[1])])
