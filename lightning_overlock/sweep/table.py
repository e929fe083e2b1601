"""The results of a sweep beside what the papers report, as tables."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import rich.table
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.text import Text

from lightning_overlock.sweep import plots
from lightning_overlock.sweep.results import LEVEL, Difference, Line, Results, metric_of, results
from lightning_overlock.sweep.spec import Sweep

COSTS = {
    "params": "parameters (M)",
    "gmacs": "multiply-adds (G)",
    "images_per_second": "images/s",
}


# Sheets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """A table as text, for whatever it is printed with.

    Attributes:
        title: Its title.
        headings: The columns'; the first column is text, the others are figures.
        cells: A list per line.
        records: The same lines as plain values, for CSV.
        notes: Sentences below the table.
    """

    title: str
    headings: list[str]
    cells: list[list[str]]
    records: list[dict[str, Any]]
    notes: list[str]


def sheet(found: Results) -> Sheet:
    """Return the table of a sweep, or the trials of a search, best first."""
    return _search_sheet(found) if found.sweep.search else _row_sheet(found)


def _row_sheet(results: Results) -> Sheet:
    sweep, lines = results.sweep, list(results.lines.values())
    key = sweep.metric.split("/")[-1]
    scale = 100 if results.percent else 1
    published = [
        name for name in (key, "gmacs", "params_m") if any(name in r.row.paper for r in lines)
    ]
    titles = {"gmacs": COSTS["gmacs"], "params_m": COSTS["params"], key: f"{key} (%)"}
    columns: dict[str, list[str]] = {"": [line.row.label for line in lines]}
    for column in sweep.columns:
        if column in COSTS:
            columns[COSTS[column]] = [_number(line.cost.get(column)) for line in lines]
        elif column == "seconds":
            columns["wall time (s)"] = [_number(line.seconds) for line in lines]
        elif column == "metric":
            columns[results.metric] = [_metric_cell(line, scale) for line in lines]
            columns["95 % interval"] = [_interval_cell(line, scale) for line in lines]
        elif column == "difference":
            columns["difference"] = [
                "baseline" if line.row.name == sweep.baseline else _difference_cell(line, scale)
                for line in lines
            ]
        elif not published:
            columns["paper"] = [""] * len(lines)
        else:
            for name in published:
                figures = [line.row.paper.get(name, "") for line in lines]
                columns[f"paper: {titles[name]}"] = list(map(str, figures))
            columns["paper: difference"] = [
                "" if line.published is None else f"{line.published:+.1f}" for line in lines
            ]
            columns["sign agrees"] = [_agreement(line) for line in lines]
    return Sheet(
        f"{sweep.title} ({sweep.name}, {sweep.profile})",
        list(columns),
        [list(cells) for cells in zip(*columns.values(), strict=True)],
        [_record(line, sweep) for line in lines],
        _row_notes(results),
    )


def _row_notes(results: Results) -> list[str]:
    sweep, lines = results.sweep, list(results.lines.values())
    notes = [f"{line.row.label}: {line.state}." for line in lines if line.state]
    notes.append(
        f"{results.metric}: the best epoch of each run, mean and standard deviation over the "
        "seeds, 95 % interval of the mean (t)."
        if any(line.spread for line in lines)
        else f"{results.metric}: the best epoch of the run. One seed: no spread, no test."
    )
    tests = sorted({line.against.test for line in lines if line.against and line.against.test})
    if tests:
        notes.append(
            f"Difference to '{results.lines[sweep.baseline].row.label}'; with * it exceeds the "
            f"seeds' noise ({' or '.join(tests)}, two-sided p < {LEVEL}, each row by itself)."
        )
    ways = sorted({str(line.cost["measured"]) for line in lines if "measured" in line.cost})
    notes += [f"Parameters, multiply-adds and images/s: {way}." for way in ways]
    sources = sorted({str(line.row.paper["source"]) for line in lines if line.row.paper})
    notes += [f"Paper: {source}; not measured here." for source in sources]
    return notes + results.facts


def _record(line: Line, sweep: Sweep) -> dict[str, Any]:
    """Return a line as plain values, metrics as they were logged."""
    low, high = line.spread[2] if line.spread else (None, None)
    against = line.against or Difference(math.nan)
    return {
        "row": line.row.name,
        "label": line.row.label,
        "state": line.state,
        "metric": sweep.metric,
        "seeds": " ".join(map(str, line.values)),
        "values": " ".join(f"{value:.6g}" for value in line.values.values()),
        "mean": line.mean,
        "std": line.spread[1] if line.spread else None,
        "low": low,
        "high": high,
        "difference": line.against.value if line.against else None,
        "p": against.p,
        "test": against.test,
        "exceeds_noise": against.exceeds,
        "params": line.cost.get("params"),
        "gmacs": line.cost.get("gmacs"),
        "images_per_second": line.cost.get("images_per_second"),
        "seconds": line.seconds,
        **{f"paper_{name}": value for name, value in line.row.paper.items() if name != "source"},
        "paper_difference": line.published,
        "sign_agrees": line.agrees,
        "paper_source": line.row.paper.get("source"),
    }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _figure(value: float, scale: float) -> str:
    return f"{value * scale:.2f}" if scale == 100 else f"{value:.4g}"


def _metric_cell(line: Line, scale: float) -> str:
    if line.mean is None:
        return "failed" if "failed" in line.state else "not run"
    text = _figure(line.mean, scale)
    if line.spread is not None:
        text += f" ± {_figure(line.spread[1], scale)}"
    return f"{text} (n = {len(line.values)})" if line.state else text


def _interval_cell(line: Line, scale: float) -> str:
    # Of two seeds it is as wide as the metric's whole range, and says nothing.
    if line.spread is None or len(line.values) < 3:
        return ""
    low, high = line.spread[2]
    return f"{_figure(low, scale)} to {_figure(high, scale)}"


def _difference_cell(line: Line, scale: float) -> str:
    if line.against is None:
        return ""
    sign = "+" if line.against.value >= 0 else ""
    return f"{sign}{_figure(line.against.value, scale)}" + ("*" if line.against.exceeds else "")


def _agreement(line: Line) -> str:
    if line.agrees is None:
        return ""
    answer = "yes" if line.agrees else "no"
    return answer if line.against and line.against.exceeds else f"{answer}, within noise"


def _search_sheet(results: Results) -> Sheet:
    sweep = results.sweep
    assert sweep.search is not None
    scale = 100 if results.percent else 1
    worst = -math.inf if sweep.direction == "maximize" else math.inf

    def value(trial: FrozenTrial) -> float:
        found = metric_of(trial)
        return worst if found is None else found

    trials = sorted(results.trials, key=value, reverse=sweep.direction == "maximize")
    options = list(sweep.search.space)
    cells, records = [], []
    for trial in trials:
        found, seconds = metric_of(trial), trial.user_attrs.get("seconds")
        state = trial.state.name.lower()
        settings = [trial.params.get(option) for option in options]
        cells.append(
            [
                f"trial {trial.number}",
                *(f"{s:.3g}" if isinstance(s, float) else str(s) for s in settings),
                state if found is None else _figure(found, scale),
                _number(seconds),
            ]
        )
        records.append(
            {"trial": trial.number, "state": state, **dict(zip(options, settings, strict=True))}
            | {"metric": sweep.metric, "value": found, "seconds": seconds}
        )
    notes = [
        f"{results.metric}: the best epoch of each run. {len(trials)} of {sweep.search.trials} "
        f"trials; sampler {sweep.search.sampler}, pruner {sweep.search.pruner}."
    ]
    if trials and metric_of(trials[0]) is not None:
        best = [f"--{option} {trials[0].params[option]}" for option in options]
        notes.insert(0, f"Best: {' '.join(best)}")
    return Sheet(
        f"{sweep.title} ({sweep.name}, {sweep.profile})",
        ["", *options, results.metric, "wall time (s)"],
        cells,
        records,
        notes + results.facts,
    )


# Printing -----------------------------------------------------------------------------------------


def rich_table(found: Sheet) -> rich.table.Table:
    """Return a sheet for the terminal."""
    table = rich.table.Table(
        title=Text(found.title),
        title_justify="left",
        caption=Text("\n".join(found.notes)),
        caption_justify="left",
    )
    for number, heading in enumerate(found.headings):
        # The unit below the quantity, the quantity below whose it is.
        lines = heading.replace(": ", ":\n").replace(" (", "\n(")
        table.add_column(Text(lines), justify="right" if number else "left", no_wrap=True)
    for line in found.cells:
        table.add_row(*map(Text, line))
    return table


def markdown(found: Sheet) -> str:
    """Return a sheet as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---", *["---:"] * (len(found.headings) - 1)]
    lines = [f"**{found.title}**", "", line(found.headings), line(rule), *map(line, found.cells)]
    return "\n".join([*lines, "", *(f"- {note}" for note in found.notes), ""])


def csv_text(found: Sheet) -> str:
    """Return a sheet's plain values as CSV, its notes as comments (`#`) above them."""
    text = io.StringIO()
    for note in (found.title, *found.notes):
        text.write(f"# {' '.join(note.split())}\n")
    fields = list(dict.fromkeys(name for record in found.records for name in record))
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.records)
    return text.getvalue()


# In one pass, so that what is put in is not escaped again.
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
    return re.sub(r"(?<=\s)-(?=\d)|^-(?=\d)", "$-$", escaped)


def latex(found: Sheet) -> str:
    """Return a sheet as a LaTeX table that needs the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_escape, cells)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_escape(found.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(found.headings) - 1)}}}",
            r"    \toprule",
            f"    {line(found.headings)}",
            r"    \midrule",
            *(f"    {line(cells)}" for cells in found.cells),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"",
            r"  \raggedright\footnotesize",
            *(f"  {latex_escape(note)}\\\\" for note in found.notes),
            r"\end{table}",
            "",
        ]
    )


def write(study: optuna.Study, sweep: Sweep, folder: Path) -> None:
    """Write the table (Markdown, CSV, LaTeX) and the figures of a sweep, and print the table.

    Args:
        study: The study.
        sweep: The sweep, read for the profile that was run.
        folder: Where the files go and where the trials' run folders are.
    """
    found = results(study, sweep)
    page = sheet(found)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.md", markdown(page)),
        ("table.csv", csv_text(page)),
        ("table.tex", latex(page)),
    ):
        (folder / name).write_text(text)
    if sweep.search is not None:
        plots.search_figures(study, found, folder)
    else:
        plots.row_figure(found, folder / "rows.png")
        plots.curve_figure(found, folder, folder / "curves.png")
    table = rich_table(page)
    # A pipe or a narrow window gets the whole table too: cut figures are of no use.
    width = Console(width=1000).measure(table).maximum
    console = Console()
    Console(width=max(width, console.width)).print(table)
