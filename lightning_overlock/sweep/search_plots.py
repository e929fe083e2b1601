"""Figures of a search, by Optuna's own visualization."""

import warnings
from typing import Any, Literal

import numpy as np
import optuna
from matplotlib import rc_context
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization import matplotlib as optuna_plots

from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.trials import metric_of

# More pairs than these are not told apart in one figure: the most important options are shown.
CONTOUR_OPTIONS = 4


def search_figures(results: Results, width: float) -> dict[str, Figure]:
    """Return a search's history, slices, contours, importance and parallel axes.

    Args:
        results: The results of a search.
        width: Width of the figures in inches.

    Returns:
        Nothing before there is a complete trial; slices, contours and importance where there are
        trials enough to tell.
    """
    done = [trial for trial in results.frozen if trial.state == TrialState.COMPLETE]
    if not done:
        return {}
    options = list(results.sweep.search.space) if results.sweep.search else []
    weighed = results.sweep.cost is not None
    two: list[Literal["minimize"]] = ["minimize"] if weighed else []
    study = optuna.create_study(directions=[results.sweep.direction, *two])
    study.add_trials(results.frozen)
    # Of two objectives the figures show the metric; the cost has a figure of its own.
    target: dict[str, Any] = {"target": metric_of} if weighed else {}
    kinds: dict[str, Any] = {"history": optuna_plots.plot_optimization_history}
    shown: dict[str, Any] = {}
    if len(done) > 1 and len({trial.values[0] for trial in done}) > 1:
        kinds["importance"] = optuna_plots.plot_param_importances
        kinds["slice"] = optuna_plots.plot_slice
        if len(options) > 1:
            kinds["contour"] = optuna_plots.plot_contour
            shown["contour"] = {"params": _most_important(study, options, target)}
    kinds["parallel"] = optuna_plots.plot_parallel_coordinate
    found = {}
    for name, plot in kinds.items():
        # Optuna sets a style for everything that is drawn afterwards, calls its matplotlib plots
        # experimental, and tells matplotlib to lay out axes that it cannot.
        with rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)
            drawn = plot(study, **target, target_name=results.sweep.metric, **shown.get(name, {}))
        axes = np.ravel(drawn)
        figure: Figure = axes[0].figure
        side = len(shown.get(name, {}).get("params", []))
        height = 0.64 if side < 3 else 0.9
        columns = len(axes) if name == "slice" else 1
        for part in axes if name in {"slice", "contour"} else []:
            part.xaxis.label.set_fontsize("x-small")
            part.yaxis.label.set_fontsize("x-small")
        figure.set_size_inches(width * max(1.0, columns / 3), width * height)
        # Where a colour bar shares a single axes' place matplotlib cannot lay them out.
        if name in {"history", "importance"} or (name != "parallel" and len(axes) > 1):
            figure.set_layout_engine("constrained")
        found[name] = figure
    return found


def _most_important(study: optuna.Study, options: list[str], target: dict[str, Any]) -> list[str]:
    if len(options) <= CONTOUR_OPTIONS:
        return options
    return list(optuna.importance.get_param_importances(study, **target))[:CONTOUR_OPTIONS]
