"""Figures of a sweep: rows with error bars, learning curves, and Optuna's own of a search."""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

import optuna
from matplotlib import colormaps, pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization import matplotlib as optuna_plots

from lightning_overlock.runs.metrics_file import read_curve
from lightning_overlock.sweep.results import Line, Results

DPI = 150
# Told apart without colour: by line, marker and, in grey, by lightness.
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID: dict[str, Any] = {"color": "0.88", "linewidth": 0.8}


def write(results: Results, folder: Path) -> None:
    """Write the figures of a sweep or of a search into a folder."""
    for name, figure in figures(results).items():
        _save(figure, results, folder / f"{name}.png")
        pyplot.close(figure)  # Optuna's are pyplot's


def figures(results: Results) -> dict[str, Figure]:
    """Return the figures of a sweep (rows, curves, cost) or of a search by name."""
    if results.sweep.search is not None:
        return search_figures(results)
    found = {"rows": row_figure(results), "curves": curve_figure(results)}
    if any(line.cost.get("gmacs") and line.values for line in results.lines.values()):
        found["cost"] = cost_figure(results)
    return found


def row_figure(results: Results) -> Figure:
    """Return every row's mean with its 95 % interval, the seeds as dots, and the baseline's mean.

    Args:
        results: Of a sweep with rows.
    """
    scale = results.scale
    lines = list(results.lines.values())
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    baseline = results.lines[results.sweep.baseline].spread
    if baseline is not None:
        axes.axvline(baseline.mean * scale, color="0.5", linestyle="--", linewidth=1, zorder=1)
    for place, line in enumerate(lines):
        seeds = [value * scale for value in line.values.values()]
        axes.plot(seeds, [place] * len(seeds), "o", color="0.6", markersize=4, zorder=2)
        if (spread := line.spread) is None:
            continue
        half = None if spread.high is None else (spread.high - spread.mean) * scale
        axes.errorbar(
            spread.mean * scale, place, xerr=half, fmt="D", color="black", markersize=5, capsize=4
        )
    axes.set_yticks(range(len(lines)), [_label(results, line) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    known = any(line.spread and line.spread.low is not None for line in lines)
    interval = ", mean and 95 % interval" if known else ""
    axes.set_xlabel(f"{results.metric}, {results.sweep.select} epoch{interval}")
    axes.set_title(_plain(results.sweep.title), loc="left")
    _finish(axes)
    return figure


def _label(results: Results, line: Line) -> str:
    label = _plain(results.sweep.label(line.name))
    return label if line.values else f"{label} (no result)"


def _plain(text: str) -> str:
    """Return text that matplotlib prints as it is, not as a formula."""
    return text.replace("$", r"\$")


def curve_figure(results: Results) -> Figure:
    """Return every row's metric over the epochs: the seeds' mean, and their range as a band.

    Args:
        results: Of a sweep with rows.
    """
    scale = results.scale
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shades = colormaps["viridis"]
    drawn = [line for line in results.lines.values() if line.values]
    styles = zip(drawn, cycle(LINES), cycle(MARKERS), strict=False)
    for number, (line, style, marker) in enumerate(styles):
        by_epoch: dict[int, list[float]] = defaultdict(list)
        for seed in line.values:
            run = line.trials[seed].user_attrs["folder"]
            for row in read_curve(results.folder / run):
                if results.sweep.metric in row:
                    by_epoch[int(row["epoch"]) + 1].append(row[results.sweep.metric] * scale)
        epochs = sorted(by_epoch)
        if not epochs:
            continue
        color = shades(0.9 * number / max(len(drawn) - 1, 1))
        axes.plot(
            epochs,
            [sum(by_epoch[e]) / len(by_epoch[e]) for e in epochs],
            linestyle=style,
            marker=marker,
            markersize=5,
            markevery=max(len(epochs) // 10, 1),
            color=color,
            label=_plain(results.sweep.label(line.name)),
        )
        low, high = ([find(by_epoch[e]) for e in epochs] for find in (min, max))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    many = any(len(line.values) > 1 for line in drawn)
    name = f"{results.sweep.metric} (%)" if results.sweep.percent else results.sweep.metric
    axes.set_ylabel(f"{name}{', mean and range of the seeds' if many else ''}")
    axes.set_title(_plain(results.sweep.title), loc="left")
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
    _finish(axes)
    return figure


def _finish(axes: Any) -> None:
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, results: Results, path: Path) -> None:
    """Save a figure with the facts about its figures below it."""
    text = "\n".join(_plain(line) for fact in results.facts for line in wrap(fact, 120))
    lowest = figure.get_tightbbox().y0 / figure.get_figheight()
    figure.text(0.01, min(lowest, 0) - 0.02, text, va="top", fontsize=6, color="0.35")
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def cost_figure(results: Results) -> Figure:
    """Return the rows' metric against their multiply-adds, with the rows that none dominates.

    Args:
        results: Of a sweep with rows whose costs are measured.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = [
        (line.cost["gmacs"], line.spread.mean * results.scale, _label(results, line))
        for line in results.lines.values()
        if line.spread is not None and line.cost.get("gmacs")
    ]
    sign = 1 if results.sweep.direction == "maximize" else -1
    front = [
        (cost, metric)
        for cost, metric, _ in sorted(points)
        if not any(c <= cost and sign * m > sign * metric for c, m, _ in points)
    ]
    axes.plot(*zip(*front, strict=True), color="0.6", linestyle="--", label="not dominated")
    for cost, metric, label in points:
        axes.plot(cost, metric, "o", color="black", markersize=5)
        axes.annotate(label, (cost, metric), (5, 4), textcoords="offset points", fontsize="small")
    axes.set_xlabel("multiply-adds (G)")
    axes.set_ylabel(f"{results.metric}, {results.sweep.select} epoch")
    axes.set_title(_plain(results.sweep.title), loc="left")
    axes.legend(frameon=False, fontsize="small")
    axes.margins(x=0.2)
    _finish(axes)
    return figure


def search_figures(results: Results) -> dict[str, Figure]:
    """Return a search's history, slices, contours, importance and parallel axes by Optuna.

    Args:
        results: Of a search.

    Returns:
        None before there is a complete trial, and no importance before there are trials enough to
        tell.
    """
    done = [trial for trial in results.frozen if trial.state == TrialState.COMPLETE]
    if not done:
        return {}
    kinds: dict[str, Any] = {
        "history": optuna_plots.plot_optimization_history,
        "parallel": optuna_plots.plot_parallel_coordinate,
    }
    if len(done) > 1 and _differ([trial.value for trial in done]):
        kinds["importance"] = optuna_plots.plot_param_importances
        kinds["slice"] = optuna_plots.plot_slice
    study = optuna.create_study(direction=results.sweep.direction)
    study.add_trials(results.frozen)
    found = {}
    for name, plot in kinds.items():
        with warnings.catch_warnings():
            # Optuna calls its matplotlib plots experimental, and matplotlib is told to lay out axes
            # that it cannot.
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.simplefilter("ignore", UserWarning)
            drawn = plot(study, target_name=results.sweep.metric)
        axes = drawn[0] if hasattr(drawn, "__len__") else drawn
        found[name] = axes.figure
    return found


def _differ(values: Sequence[Any]) -> bool:
    return len(set(values)) > 1
