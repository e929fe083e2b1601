"""Figures of a sweep: rows with error bars, learning curves, and cost against the metric."""

import io
import re
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import colormaps, pyplot, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_overlock.files import write_whole
from lightning_overlock.runs.metrics_file import read_curve
from lightning_overlock.sweep.results import COSTS, Line, Results
from lightning_overlock.sweep.search_plots import search_figures
from lightning_overlock.sweep.trials import metric_of, pareto_front

DPI = 150
# Inches: of a figure on a screen, and of a column of a paper.
WIDE, COLUMN = 7.0, 3.25
# A column's figure has no title, which its caption is.
COLUMN_STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
# Told apart without colour: by line, marker and, in grey, by lightness.
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID: dict[str, Any] = {"color": "0.88", "linewidth": 0.8}


def write(results: Results, folder: Path) -> None:
    """Write the figures of a sweep or of a search: PNG, and PDF and SVG at a column's width.

    How the figures were made stands in the files' metadata.
    """
    facts = "\n".join(results.facts)
    title = results.sweep.title
    # TrueType, which publishers ask for; text of SVG as paths, the same everywhere.
    style: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": results.name}
    for name, figure in figures(results).items():
        marks: dict[str, Any] = {"Title": title, "Description": facts}
        _save(figure, folder / f"{name}.png", dpi=DPI, metadata=marks)
        pyplot.close(figure)  # Optuna's are pyplot's
    with rc_context(COLUMN_STYLE | style):
        for name, figure in figures(results, COLUMN).items():
            marks = {"Title": title, "Description": facts, "Date": None}
            _save(figure, folder / f"{name}.svg", metadata=marks)
            marks = {"Title": title, "Subject": facts, "CreationDate": None}
            _save(figure, folder / f"{name}.pdf", metadata=marks)
            pyplot.close(figure)


def _save(figure: Figure, path: Path, **options: Any) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    write_whole(path, content.getbuffer())


def figures(results: Results, width: float = WIDE) -> dict[str, Figure]:
    """Return the figures of a sweep (rows, curves, cost) or of a search by name.

    Args:
        results: What was measured.
        width: Width of the figures in inches; `COLUMN` leaves the titles out.
    """
    if results.sweep.search is not None:
        found = search_figures(results, width)
    else:
        found = {"rows": row_figure(results, width), "curves": curve_figure(results, width)}
    if _costs(results, width):
        found["cost"] = cost_figure(results, width)
    return found


def row_figure(results: Results, width: float = WIDE) -> Figure:
    """Return every row's mean with its 95 % interval, the seeds as dots, and the baseline's mean.

    Args:
        results: The results of a sweep with rows.
        width: Width of the figure in inches.
    """
    scale = results.scale
    lines = list(results.lines.values())
    height = (1.2 + 0.42 * len(lines)) * (1 if width == WIDE else 0.6)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    baseline = results.lines[results.sweep.baseline].spread
    if baseline is not None:
        axes.axvline(baseline.mean * scale, color="0.5", linestyle="--", linewidth=1, zorder=1)
    for place, line in enumerate(lines):
        seeds = [value * scale for value in line.values.values()]
        axes.plot(
            seeds, [place] * len(seeds), "o", color="0.6", markersize=_size(width, 4), zorder=2
        )
        if (spread := line.spread) is None:
            continue
        half = None if spread.high is None else (spread.high - spread.mean) * scale
        axes.errorbar(
            spread.mean * scale,
            place,
            xerr=half,
            fmt="D",
            color="black",
            markersize=_size(width, 5),
            capsize=_size(width, 4),
        )
    axes.set_yticks(range(len(lines)), [_label(results, line, width) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    known = any(line.spread and line.spread.low is not None for line in lines)
    interval = ", mean and 95 % interval" if known else ""
    axes.set_xlabel(f"{results.printed}, {results.sweep.select} epoch{interval}")
    _finish(axes, results, width)
    return figure


def _label(results: Results, line: Line, width: float) -> str:
    """Return a row's label, in lines where there is little room."""
    label = results.sweep.label(line.name)
    if not line.values:
        label = f"{label} (no result)"
    return _plain(fill(label, 40 if width == WIDE else 22))


def _plain(text: str) -> str:
    """Return text that matplotlib prints as it is: no formula, nor one that a legend leaves out."""
    return re.sub(r"^(?=_)", " ", text).replace("$", r"\$")


def curve_figure(results: Results, width: float = WIDE) -> Figure:
    """Return every row's metric over the epochs: the seeds' mean, and their range as a band.

    Args:
        results: The results of a sweep with rows.
        width: Width of the figure in inches.
    """
    scale = results.scale
    figure = Figure(figsize=(width, 0.64 * width), layout="constrained")
    axes = figure.add_subplot()
    shades = colormaps["viridis"]
    drawn = [line for line in results.lines.values() if line.values]
    styles = zip(drawn, cycle(LINES), cycle(MARKERS), strict=False)
    for number, (line, style, marker) in enumerate(styles):
        by_epoch: dict[int, list[float]] = defaultdict(list)
        for seed in line.values:
            for epoch, value in _curve(results, line, seed).items():
                by_epoch[epoch + 1].append(value * scale)
        epochs = sorted(by_epoch)
        if not epochs:
            continue
        color = shades(0.75 * number / max(len(drawn) - 1, 1))
        axes.plot(
            epochs,
            [sum(by_epoch[e]) / len(by_epoch[e]) for e in epochs],
            linestyle=style,
            marker=marker,
            markevery=max(len(epochs) // 10, 1),
            color=color,
            label=_plain(results.sweep.label(line.name)),
        )
        low, high = ([find(by_epoch[e]) for e in epochs] for find in (min, max))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    many = any(len(line.values) > 1 for line in drawn)
    axes.set_ylabel(f"{_validated(results)}{', mean and range of the seeds' if many else ''}")
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
    _finish(axes, results, width)
    return figure


def _validated(results: Results) -> str:
    """Return the metric of every epoch, which is of the validation split."""
    return results.printed.removeprefix("test ")


def _curve(results: Results, line: Line, seed: int) -> dict[int, float]:
    """Return epoch -> metric of a run, by its folder or, where that is not here, by the study."""
    trial, metric = line.trials[seed], results.sweep.metric
    rows = read_curve(results.folder / trial.user_attrs["folder"])
    found = {int(row["epoch"]): row[metric] for row in rows if metric in row}
    return found or dict(trial.intermediate_values)


def _finish(axes: Any, results: Results, width: float) -> None:
    axes.set_xlabel(_plain(_lines(axes.get_xlabel(), width)))
    axes.set_ylabel(_plain(_lines(axes.get_ylabel(), width)))
    if width == WIDE:
        axes.set_title(_plain(results.sweep.title), loc="left")
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _size(width: float, points: float) -> float:
    return points if width == WIDE else points * 0.6


def _lines(text: str, width: float) -> str:
    return text if width == WIDE else fill(text, 34)


def cost_figure(results: Results, width: float = WIDE) -> Figure:
    """Return the metric against the cost, with the Pareto front: nothing is cheaper and better.

    The cost of rows is their multiply-adds, that of a search what it weighs, or its trials'
    seconds of training.

    Args:
        results: The results of a sweep with rows whose costs are measured, or of a search.
        width: Width of the figure in inches.
    """
    figure = Figure(figsize=(width, 0.64 * width), layout="constrained")
    axes = figure.add_subplot()
    points = _costs(results, width)
    pairs = [(cost, metric) for cost, metric, _ in points]
    maximize = results.sweep.direction == "maximize"
    front = [pairs[place] for place in pareto_front(pairs, maximize)]
    middle = sum(cost for cost, _, _ in points) / len(points)
    for cost, metric, label in points:
        best = (cost, metric) in front
        axes.plot(cost, metric, "o", color="black" if best else "0.6")
        if best or results.lines:  # a search has too many
            axes.annotate(
                label,
                (cost, metric),
                (5, 4) if cost <= middle else (-5, 4),
                textcoords="offset points",
                ha="left" if cost <= middle else "right",
                fontsize="small",
            )
    label = "Pareto front"
    axes.plot(*zip(*front, strict=True), "o--", color="black", linewidth=1, label=label)
    axes.set_xlabel(COSTS["gmacs" if results.lines else results.weighed])
    axes.set_ylabel(f"{results.printed}, {results.sweep.select} epoch")
    axes.legend(frameon=False, fontsize="small")
    axes.margins(x=0.3, y=0.15)
    _finish(axes, results, width)
    return figure


def _costs(results: Results, width: float) -> list[tuple[float, float, str]]:
    """Return cost, metric as printed, and label of each row or trial where both are known."""
    if results.lines:
        return [
            (line.cost["gmacs"], line.spread.mean * results.scale, _label(results, line, width))
            for line in results.lines.values()
            if line.spread is not None and line.cost.get("gmacs")
        ]
    return [
        (trial.user_attrs[results.weighed], value * results.scale, f"trial {trial.number}")
        for trial in results.frozen
        if (value := metric_of(trial)) is not None and results.weighed in trial.user_attrs
    ]
