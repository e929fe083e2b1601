"""The trials of a search as a table."""

import math

from optuna.trial import FrozenTrial

from lightning_overlock.robustness.columns import droppable
from lightning_overlock.sweep.results import COSTS, Results
from lightning_overlock.sweep.robustness import (
    robustness_columns,
    robustness_notes,
    robustness_record,
)
from lightning_overlock.sweep.trials import metric_of, pareto_front
from lightning_overlock.tables import Table, format_figure


def search_sheet(results: Results) -> Table:
    """Return the trials of a search, best first."""
    sweep = results.sweep
    assert sweep.search is not None
    worst = -math.inf if sweep.direction == "maximize" else math.inf

    def value(trial: FrozenTrial) -> float:
        found = metric_of(trial)
        return worst if found is None else found

    trials = sorted(results.frozen, key=value, reverse=sweep.direction == "maximize")
    options = list(sweep.search.space)
    counted = [COSTS[results.weighed]] if results.weighed != "seconds" else []
    done = [[t] if metric_of(t) is not None else [] for t in trials]
    robustness = robustness_columns(sweep, done)
    cells, records = [], []
    for place, trial in enumerate(trials):
        found, seconds = metric_of(trial), trial.user_attrs.get("seconds")
        state = trial.state.name.lower()
        settings = [trial.params.get(option) for option in options]
        cells.append(
            [
                f"trial {trial.number}",
                *(f"{s:.3g}" if isinstance(s, float) else str(s) for s in settings),
                state if found is None else results.text(found),
                *(format_figure(trial.user_attrs.get(results.weighed)) for _ in counted),
                *(column[place] for column in robustness.values()),
                format_figure(seconds),
            ]
        )
        records.append(
            {"trial": trial.number, "state": state, **dict(zip(options, settings, strict=True))}
            | {"metric": sweep.metric, "value": found, "seconds": seconds}
            | ({results.weighed: trial.user_attrs.get(results.weighed)} if counted else {})
            | robustness_record(sweep, done[place])
        )
    notes = _notes(results, trials) + robustness_notes(sweep, [row[0] for row in cells], done)
    return Table(
        ["", *options, results.metric, *counted, *robustness, COSTS["seconds"]],
        cells,
        title=f"{sweep.title} ({sweep.name}, {sweep.profile})",
        notes=notes + results.facts,
        records=records,
        # A narrow terminal keeps the trial and its metric, and what options it has room for.
        droppable=[
            *droppable(robustness),
            COSTS["seconds"],
            *counted,
            *reversed(options),
        ],
        label=results.name,
        printed={results.metric: results.printed},
    )


def _notes(results: Results, trials: list[FrozenTrial]) -> list[str]:
    """Return what must be known beside the trials, which are in the table's order."""
    sweep = results.sweep
    assert sweep.search is not None
    options = list(sweep.search.space)
    notes = [
        f"{results.metric}: the {sweep.select} epoch of each run. {len(trials)} of "
        f"{sweep.search.trials} trials; sampler {sweep.search.sampler}, pruner "
        f"{sweep.search.pruner}."
    ]
    if trials and metric_of(trials[0]) is not None:
        best = [f"--{option} {trials[0].params[option]}" for option in options]
        notes.insert(0, f"Best: {' '.join(best)}")
    if sweep.cost is not None:
        known = [t for t in trials if metric_of(t) is not None]
        points = [(t.user_attrs[sweep.cost], t.values[0]) for t in known]
        front = pareto_front(points, sweep.direction == "maximize")
        names = ", ".join(str(known[place].number) for place in front)
        notes.insert(
            1 if known else 0,
            f"On the Pareto front of {results.metric} and {COSTS[results.weighed]}, cheapest "
            f"first: trial {names or 'none yet'}.",
        )
    return notes
