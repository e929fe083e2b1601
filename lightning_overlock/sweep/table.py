"""The results of a sweep beside what the papers report, as tables and files."""

from typing import Any

from lightning_overlock.robustness.columns import droppable
from lightning_overlock.sweep.factors import effects
from lightning_overlock.sweep.results import COSTS, Line, Results
from lightning_overlock.sweep.robustness import (
    robustness_columns,
    robustness_notes,
    robustness_record,
)
from lightning_overlock.sweep.search_table import search_sheet
from lightning_overlock.sweep.statistics import LEVEL, MIN_SEEDS_OF_STAR, Comparison, holm
from lightning_overlock.tables import Table, format_figure

# What a narrow terminal does without, first to last; the files have all.
DROPPABLE = [
    "sign agrees",
    "paper: difference",
    "paper: multiply-adds (G)",
    "paper: parameters (M)",
    COSTS["images_per_second"],
    COSTS["seconds"],
    "95 % interval",
    COSTS["gmacs"],
    COSTS["params"],
    "could find",
    "its 95 % interval",
    "p (Holm)",
]


def sheet(results: Results) -> Table:
    """Return the table of a sweep, or the trials of a search, best first."""
    return search_sheet(results) if results.sweep.search else _row_sheet(results)


def _row_sheet(results: Results) -> Table:
    sweep, lines = results.sweep, list(results.lines.values())
    columns: dict[str, list[str]] = {"": [sweep.label(line.name) for line in lines]}
    for column in sweep.columns:
        if column == "seconds":
            columns[COSTS[column]] = [format_figure(line.seconds) for line in lines]
        elif column in COSTS:
            columns[COSTS[column]] = [format_figure(line.cost.get(column)) for line in lines]
        elif column == "metric":
            for option in sweep.tune.options if sweep.tune else []:
                columns[f"tuned: {option}"] = [_chosen(line, option) for line in lines]
            columns[results.metric] = [metric_cell(line, results) for line in lines]
            columns["95 % interval"] = [
                "" if line.spread is None else _interval(line.spread, results) for line in lines
            ]
        elif column == "difference":
            found = [_comparison_cells(line.against, results) for line in lines]
            for name in found[0]:
                columns[name] = [cells[name] for cells in found]
            columns["difference"] = [
                "baseline" if line.name == sweep.baseline else cell
                for line, cell in zip(lines, columns["difference"], strict=True)
            ]
        else:
            columns |= _paper_columns(results)
    done = [[line.trials[seed] for seed in line.values] for line in lines]
    robustness = robustness_columns(sweep, done)
    columns |= robustness
    # A column in which nothing stands says nothing.
    columns = {name: cells for name, cells in columns.items() if name == "" or any(cells)}
    return Table(
        list(columns),
        [list(cells) for cells in zip(*columns.values(), strict=True)],
        title=f"{sweep.title} ({sweep.name}, {sweep.profile})",
        notes=_row_notes(results) + robustness_notes(sweep, columns[""], done) + results.facts,
        records=[_record(line, results) for line in lines],
        words=frozenset({0}),
        droppable=droppable(robustness) + DROPPABLE,
        label=results.name,
        printed={results.metric: results.printed},
    )


def _paper_columns(results: Results) -> dict[str, list[str]]:
    lines = list(results.lines.values())
    key = results.sweep.metric.split("/")[-1]
    titles = {key: f"{key} (%)", "gmacs": COSTS["gmacs"], "params_m": COSTS["params"]}
    found = {}
    for name, title in titles.items():
        figures = [line.row.published(name) for line in lines]
        found[f"paper: {title}"] = ["" if f is None else str(f) for f in figures]
    found["paper: difference"] = [
        "" if line.published is None else f"{line.published:+.1f}" for line in lines
    ]
    found["sign agrees"] = [_agreement(line) for line in lines]
    return found


def comparison_sheet(results: Results) -> Table | None:
    """Return the comparisons that the file names; None if it names none."""
    sweep = results.sweep
    rows = [
        {"": sweep.label(c.row), "compared with": sweep.label(c.other)}
        | _comparison_cells(c, results)
        for chain in results.comparisons
        for c in chain
    ]
    if not rows:
        return None
    records = [
        {"row": c.row, "compared_with": c.other} | _comparison_record(c)
        for chain in results.comparisons
        for c in chain
    ]
    headings = [
        name for place, name in enumerate(rows[0]) if place < 2 or any(r[name] for r in rows)
    ]
    return Table(
        headings,
        [[row[name] for name in headings] for row in rows],
        title=f"{sweep.title}: rows compared with each other",
        notes=["p is adjusted (Holm) within each list of comparisons of the file."],
        records=records,
        words=frozenset({0, 1}),
        droppable=DROPPABLE,
        label=f"{results.name}-comparisons",
    )


def factor_sheet(results: Results) -> Table | None:
    """Return the effects of the file's factors; None if it names none or they cannot be told."""
    sweep = results.sweep
    values = {name: line.values for name, line in results.lines.items()}
    found = effects(sweep, values) if sweep.factors else []
    if not found:
        return None
    rows = [
        {
            "": effect.name,
            "levels": effect.levels,
            "effect": "" if effect.value is None else _signed(effect.value, results),
            "its 95 % interval": _interval(effect, results),
            "p (Holm)": f"{p:.2g}",
            "share of variance (%)": f"{100 * effect.share:.1f}",
        }
        for effect, p in zip(found, holm([effect.p for effect in found]), strict=True)
    ]
    return Table(
        list(rows[0]),
        [list(row.values()) for row in rows],
        title=f"{sweep.title}: effects of the factors",
        notes=[
            "Ordinary linear model with the factors, their pairs as far as the rows can tell them "
            "apart, and the seeds; p of the F tests after Holm."
        ],
        records=[vars(effect) for effect in found],
        words=frozenset({0, 1}),
        label=f"{results.name}-factors",
    )


def _row_notes(results: Results) -> list[str]:
    sweep, lines = results.sweep, list(results.lines.values())
    notes = [f"{sweep.label(line.name)}: {line.state}." for line in lines if line.state]
    notes += results.notes
    notes.append(f"{results.metric}: {_selection(results)}")
    tested = [c for line in lines if (c := line.against) is not None and c.p_holm is not None]
    if tested:
        margin = results.margin
        notes.append(
            f"Difference to '{sweep.label(sweep.baseline)}', seed by seed: mean, 95 % t interval, "
            f"p of the paired t test after Holm over {len(tested)} rows. 'could find': the "
            "smallest difference that these seeds find with 80 % power at Holm's first step."
        )
        notes.append(
            f"better, worse: p < {LEVEL}"
            + (
                f"; no larger than {format_figure(margin * results.scale)}: two one-sided t "
                f"tests, p < {LEVEL} after Holm"
                if margin is not None
                else ""
            )
            + f". * also has {MIN_SEEDS_OF_STAR} seeds or more."
        )
    if sweep.tune is not None:
        notes += _tuning_notes(results)
    ways = sorted({str(line.cost["measured"]) for line in lines if "measured" in line.cost})
    notes += [f"Parameters, multiply-adds and images/s: {way}." for way in ways]
    failed = [line for line in lines if "error" in line.cost]
    notes += [f"{sweep.label(n.name)}: cost not measured, {n.cost['error']}." for n in failed]
    sources = sorted({line.row.paper.source for line in lines if line.row.paper is not None})
    notes += [f"Paper: {source}; not measured here." for source in sources]
    return notes


def _selection(results: Results) -> str:
    """Return in words which value of each run counts."""
    sweep = results.sweep
    epoch = f"the {sweep.select} epoch of each run"
    if sweep.report == "test":
        epoch = f"the test split at {epoch} by {sweep.metric}"
    many = any(len(line.values) > 1 for line in results.lines.values())
    text = f"{epoch}, mean ± standard deviation over the seeds." if many else f"{epoch}. One seed."
    if sweep.select == "best" and sweep.report == "val":
        text += " Chosen and reported on the same data, so a little optimistic for every row."
    return text


def _tuning_notes(results: Results) -> list[str]:
    sweep = results.sweep
    assert sweep.tune is not None
    grid = "; ".join(f"{o}: {', '.join(map(str, v))}" for o, v in sweep.tune.options.items())
    notes = [
        f"Tuned for every row alike, with seeds {', '.join(map(str, sweep.tune.seeds))} of their "
        f"own, over {grid}; the best mean is used for the reported seeds."
    ]
    ends = {
        option: {values[0], values[-1]}
        for option, values in sweep.tune.options.items()
        if len(values) > 2
    }
    at_end = [
        f"{sweep.label(line.name)} ({option} {value})"
        for line in results.lines.values()
        for option, value in line.chosen.items()
        if value in ends.get(option, set())
    ]
    if at_end:
        notes.append(f"Chosen at an end of the grid, so perhaps not the best: {', '.join(at_end)}.")
    return notes


def _record(line: Line, results: Results) -> dict[str, Any]:
    """Return a line as plain values, metrics as they were logged."""
    spread = line.spread
    return {
        "row": line.name,
        "label": results.sweep.label(line.name),
        "state": line.state,
        "metric": results.metric.removesuffix(" (%)"),
        "seeds": " ".join(map(str, line.values)),
        "values": " ".join(f"{value:.6g}" for value in line.values.values()),
        "n": len(line.values),
        "mean": spread.mean if spread else None,
        "std": spread.std if spread else None,
        "low": spread.low if spread else None,
        "high": spread.high if spread else None,
        **_comparison_record(line.against),
        **{f"tuned.{option}": value for option, value in line.chosen.items()},
        "params": line.cost.get("params"),
        "gmacs": line.cost.get("gmacs"),
        "images_per_second": line.cost.get("images_per_second"),
        "seconds": line.seconds,
        **{f"paper_{n}": line.row.published(n) for n in ("top1", "gmacs", "params_m")},
        "paper_difference": line.published,
        "sign_agrees": line.agrees,
        "paper_source": line.row.paper.source if line.row.paper else None,
        **robustness_record(results.sweep, [line.trials[seed] for seed in line.values]),
    }


def _comparison_record(found: Comparison | None) -> dict[str, Any]:
    names = ("value", "std", "low", "high", "n", "p", "p_holm", "p_equivalence", "detectable")
    record = {f"difference_{name}": getattr(found, name, None) for name in names}
    return record | {"verdict": found.verdict if found else None, "star": found and found.star}


def _comparison_cells(found: Comparison | None, results: Results) -> dict[str, str]:
    names = ("difference", "its 95 % interval", "p (Holm)", "could find", "verdict")
    if found is None or found.value is None:
        return dict.fromkeys(names, "")
    scale, margin = results.scale, results.margin
    verdict = found.verdict
    if verdict == "equivalent" and margin is not None:
        verdict = f"no larger than {format_figure(margin * scale)}"  # type: ignore[assignment]
    cells = (
        f"{_signed(found.value, results)}{'*' if found.star else ''}",
        _interval(found, results),
        "" if found.p_holm is None else f"{found.p_holm:.2g}",
        "" if found.detectable is None else results.text(found.detectable),
        verdict,
    )
    return dict(zip(names, cells, strict=True))


def _signed(value: float, results: Results) -> str:
    return ("+" if value >= 0 else "") + results.text(value)


def _interval(found: Any, results: Results) -> str:
    if found.low is None:
        return ""
    return f"{results.text(found.low)} to {results.text(found.high)}"


def _chosen(line: Line, option: str) -> str:
    value = line.chosen.get(option)
    return format_figure(value) if isinstance(value, float) else str(value or "")


def metric_cell(line: Line, results: Results) -> str:
    """Return a row's metric as tables print it: mean and spread, or why there is none."""
    spread = line.spread
    if spread is None:
        return "failed" if "failed" in line.state else "not run"
    text = results.text(spread.mean)
    if spread.std is not None:
        text += f" ± {results.text(spread.std)}"
    return f"{text} (n = {spread.n})" if line.state else text


def _agreement(line: Line) -> str:
    if line.agrees is None:
        return ""
    answer = "yes" if line.agrees else "no"
    sure = line.against is not None and line.against.verdict in {"better", "worse"}
    return answer if sure else f"{answer}, undecided"
