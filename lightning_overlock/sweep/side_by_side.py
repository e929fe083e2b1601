"""Two studies side by side: rows matched by name, and what else differs between them."""

from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from scipy import stats

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import content_of, difference
from lightning_overlock.sweep.notebook import load
from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.statistics import LEVEL, MIN_SEEDS
from lightning_overlock.sweep.table import metric_cell
from lightning_overlock.tables import Table

# What decides a sweep's figures; the rows' options are held against each other row by row.
SETTINGS = ("data", "configs", "options", "select", "report", "seeds", "tune", "baseline")


def print_comparison(
    names: list[str], runs: Path, storage: str | None, output: Path | None
) -> None:
    """Print two studies side by side.

    Args:
        names: The two studies.
        runs: The folder of the sweeps' folders.
        storage: The database's URL; None for the folders' own.
        output: Where it is written as `compare.md`, `.csv` and `.tex` too; None for nowhere.
    """
    table = side_by_side(*(load(name, runs, storage).results for name in names))
    if output is not None:
        table.write(output, "compare")
    table.print()


def side_by_side(one: Results, other: Results) -> Table:
    """Return the rows of two studies in one table.

    The studies are taken as independent of each other: even where seeds are the same, other data or
    another recipe leaves nothing that they share.

    Args:
        one: The first, "before".
        other: The second.

    Raises:
        InputError: If one is a search, or they measure different things.
    """
    for study in (one, other):
        if study.sweep.search is not None:
            raise InputError(f"{study.name}: a search has no rows to compare.")
    if (one.metric, one.sweep.direction) != (other.metric, other.sweep.direction):
        raise InputError(
            f"{one.name} measures {one.metric}, {other.name} {other.metric}.\n"
            "Expected two studies of one metric."
        )
    names = list(dict.fromkeys([*one.lines, *other.lines]))
    rows, records = [], []
    for name in names:
        found = [study.lines.get(name) for study in (one, other)]
        label = next(s.sweep.label(name) for s, f in zip((one, other), found, strict=True) if f)
        values = [list(line.values.values()) if line else [] for line in found]
        change, low, high = _change(*values)
        rows.append(
            {"": label}
            | {s.name: _cell(s, name) for s in (one, other)}
            | {
                "change": "" if change is None else f"{'+' * (change >= 0)}{one.text(change)}",
                "its 95 % interval": ""
                if low is None or high is None
                else f"{one.text(low)} to {one.text(high)}",
            }
            | {f"{s.name}: difference": _difference(s, name) for s in (one, other)}
        )
        means = {
            f"mean_{place}": line.spread.mean if line and line.spread else None
            for place, line in enumerate(found, 1)
        }
        record = {"row": name, "label": label, **means}
        records.append(record | {"change": change, "change_low": low, "change_high": high})
    headings = list(rows[0])
    return Table(
        headings,
        [[row[heading] for heading in headings] for row in rows],
        title=f"{one.name} and {other.name}",
        notes=[
            f"{one.metric}. Change: the second study less the first, with Welch's 95 % t interval "
            "(the studies are independent of each other, and p is not adjusted). Difference: to "
            "the study's own baseline, * as in its table.",
            *_differences(one, other),
        ],
        records=records,
        droppable=["its 95 % interval"],
        label=f"{one.name}-{other.name}",
    )


def _change(
    before: list[float], after: list[float]
) -> tuple[float | None, float | None, float | None]:
    """Return the change of the mean and the ends of Welch's interval, as far as they are known."""
    if not before or not after:
        return None, None, None
    change = sum(after) / len(after) - sum(before) / len(before)
    if min(len(before), len(after)) < MIN_SEEDS or len({*before}) == len({*after}) == 1:
        return change, None, None
    found = stats.ttest_ind(after, before, equal_var=False).confidence_interval(1 - LEVEL)
    return change, float(found.low), float(found.high)


def _cell(results: Results, name: str) -> str:
    return metric_cell(results.lines[name], results) if name in results.lines else "no such row"


def _difference(results: Results, name: str) -> str:
    line = results.lines.get(name)
    if name == results.sweep.baseline:
        return "baseline"
    if line is None or line.against is None or line.against.value is None:
        return ""
    value = line.against.value
    return f"{'+' * (value >= 0)}{results.text(value)}{'*' * line.against.star}"


def _differences(one: Results, other: Results) -> list[str]:
    """Return in sentences what differs between two studies in data, recipe and versions."""
    contents = [content_of(found.sweep) for found in (one, other)]
    found = []
    for key in SETTINGS:
        if different := difference(contents[0][key], contents[1][key], key):
            where, before, after = different
            found.append(f"{where}: {before} in the first, {after} in the second.")
    for name in one.lines.keys() & other.lines.keys():
        old, new = one.lines[name].row.options, other.lines[name].row.options
        if different := difference(old, new, f"rows.{name}.options"):
            where, before, after = different
            found.append(f"{where}: {before} in the first, {after} in the second.")
    before, after = _provenance(one), _provenance(other)
    found += [
        f"{key}: {before.get(key, 'not known')} in the first, {after.get(key, 'not known')} in the "
        "second."
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    return found or ["Data, recipe, versions and machine are the same."]


def _provenance(results: Results) -> dict[str, str]:
    """Return what the trials were trained with, several values joined."""
    values: dict[str, dict[str, None]] = {}
    for trial in results.frozen:
        if trial.state != TrialState.COMPLETE:
            continue
        marks: dict[str, Any] = dict(trial.user_attrs.get("machine", {}))
        marks["epochs"] = trial.user_attrs.get("epochs")
        marks["commit"] = trial.user_attrs.get("git", {}).get("commit", "")[:12]
        for key, value in marks.items():
            if value not in (None, ""):
                values.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(sorted(found)) for key, found in values.items()}
