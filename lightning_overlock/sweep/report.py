"""A sweep's results as one HTML file that opens without a network."""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.sweep import plots
from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.plan import PLAN, as_planned
from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.spec import as_word
from lightning_overlock.sweep.table import comparison_sheet, factor_sheet, sheet
from lightning_overlock.sweep.trials import metric_of
from lightning_overlock.tables import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; padding: 1.5rem;
  max-width: 78rem; } figure { margin: 0; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1rem;
  font-size: .88rem; } td:first-child, th:first-child { position: sticky; left: 0;
  background: #fff; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; } td.word { white-space: normal; min-width: 8rem; }
th { border-bottom: 2px solid #444; cursor: pointer; vertical-align: bottom; font-weight: 600; }
th[data-sign="1"]::after { content: " \\2191"; } th[data-sign="-1"]::after { content: " \\2193"; }
th.word, td.word { text-align: left; }
tbody tr:hover td { background: #f5f5f5; } tr[title] td:first-child { text-decoration: underline
  dotted #999; text-underline-offset: 3px; cursor: help; }
svg { max-width: 100%; height: auto; display: block; }
ul { color: #444; font-size: .9rem; padding-left: 1.2rem; }
li { margin: .2rem 0; overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .8rem; }
details { border-bottom: 1px solid #ddd; padding: .35rem 0; } summary { cursor: pointer; }
.fail { color: #a00; }
@media print { @page { size: A4; margin: 12mm; } body { max-width: none; padding: 0;
  font-size: 9pt; } ul, pre { font-size: 7.5pt; } tr[title] td:first-child {
  text-decoration: none; } th::after { content: none !important; } th, td { padding: .1rem .25rem;
  font-size: 7pt; } td, td.word { white-space: normal; min-width: 0; } .wide { overflow: visible; }
  figure, svg, tr, details { break-inside: avoid; } h2 { break-after: avoid; }
  svg { max-width: 150mm; } }
"""
# A click on a heading sorts by its column, numbers as numbers; once more turns the order. Without a
# number in them (baseline, not run) cells stand at the end.
SCRIPT = """
document.querySelectorAll('th').forEach(th => { th.title = 'sort'; th.tabIndex = 0;
const sort = () => {
  const place = th.cellIndex, body = th.closest('table').tBodies[0], old = th.dataset.sign;
  th.parentNode.querySelectorAll('th').forEach(other => delete other.dataset.sign);
  const sign = th.dataset.sign = old ? -old : 1;
  const value = tr => { const t = tr.cells[place].innerText.replace(/,/g, '');
    const n = parseFloat(t); return isNaN(n) ? t : n; };
  [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  }).forEach(tr => body.append(tr));
};
th.addEventListener('click', sort);
th.addEventListener('keydown', e => { if (e.key === 'Enter') sort(); }); });
addEventListener('beforeprint', () => document.querySelectorAll('details.fails').forEach(d =>
  d.open = true));
"""
TITLES = {
    "rows": "Rows",
    "curves": "Learning curves",
    "cost": "Cost and metric",
    "history": "History",
    "importance": "Importance of the options",
    "slice": "Each option by itself",
    "contour": "Options in pairs",
    "parallel": "Every trial",
}
LOG_LINES = 25


def write_report(results: Results, path: Path) -> None:
    """Write the report.

    Args:
        results: What was measured.
        path: The HTML file.
    """
    sweep = results.sweep
    tables = [sheet(results), comparison_sheet(results), factor_sheet(results)]
    hovers = [_seeds(results, name) for name in results.lines]
    parts = [f"<h1>{_text(sweep.title)}</h1><p>{_text(sweep.data)}</p>"]
    for number, table in enumerate(found for found in tables if found is not None):
        title = f"<h2>{_text(table.title)}</h2>" if number else ""
        parts.append(title + _table(table, hovers if number == 0 else []) + _list(table.notes))
    if sweep.search is not None and (best := results.best) is not None:
        marks = best.user_attrs
        found = [marks.get("command", ""), marks.get("checkpoint") or ""]
        parts.append("<h2>Best trial</h2>" + "".join(f"<pre>{_text(f)}</pre>" for f in found if f))
    for name, figure in plots.figures(results).items():
        parts.append(f"<h2>{TITLES[name]}</h2><figure>{_svg(figure)}</figure>")
        pyplot.close(figure)
    planned = _planned(results)
    parts.append("<h2>Planned and run</h2>")
    parts.append("<p>No plan was frozen before it ran.</p>" if planned is None else "")
    parts.append("" if planned is None else _table(planned, []) + _list(planned.notes))
    parts.append(f"<h2>Trials</h2>{''.join(_trial(results, trial) for trial in results.frozen)}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(sweep.title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _planned(results: Results) -> Table | None:
    """Return what was planned beside what was run; None where no plan was frozen."""
    path = results.folder / PLAN
    if not path.is_file():
        return None
    plan = json.loads(path.read_text(encoding="utf-8"))
    hours = {record["row"]: record for record in plan["rows"]}
    rows = []
    for name in results.lines:
        done = [
            t.user_attrs.get("seconds", 0.0)
            for t in results.frozen
            if t.user_attrs.get("row") == name and t.state == TrialState.COMPLETE
        ]
        found = hours.get(results.sweep.label(name), {})
        rows.append(
            {
                "": results.sweep.label(name),
                "trials planned": found.get("trials"),
                "trials run": len(done),
                "hours planned": found.get("hours"),
                "hours run": sum(done) / 3600,
            }
        )
    table = Table.of(rows)
    stored = content_of(results.sweep)
    notes = [*as_planned(stored, results.folder), "Hours planned are of training steps alone."]
    return Table(table.headings, table.cells, notes=notes)


def _text(value: object) -> str:
    return html.escape(str(value))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _table(table: Table, hovers: Sequence[str]) -> str:
    def row(cells: Sequence[str], tag: str, hover: str = "") -> str:
        words = [" class='word'" if place in table.words else "" for place in range(len(cells))]
        inner = "".join(
            f"<{tag}{word}>{_text(cell)}</{tag}>" for word, cell in zip(words, cells, strict=True)
        )
        return f'<tr title="{_text(hover)}">{inner}</tr>' if hover else f"<tr>{inner}</tr>"

    padded = [*hovers, *[""] * (len(table.cells) - len(hovers))]
    body = "".join(row(c, "td", hover) for c, hover in zip(table.cells, padded, strict=True))
    head = row(table.headings, "th")
    return f"<div class='wide'><table><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _seeds(results: Results, name: str) -> str:
    values = results.lines[name].values
    return ", ".join(f"seed {s}: {value * results.scale:.4g}" for s, value in values.items())


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight")
    found = text.getvalue()
    return found[found.index("<svg") :]


def _trial(results: Results, trial: FrozenTrial) -> str:
    """Return a trial's details, folded away."""
    marks = trial.user_attrs
    name = marks.get("folder", f"trial {trial.number}")
    state, value = trial.state.name.lower(), metric_of(trial)
    result = state if value is None else f"{value * results.scale:.4g}"
    failed = trial.state == TrialState.FAIL
    kind, fails = (" class='fail'", " class='fails'") if failed else ("", "")
    facts: dict[str, Any] = {
        "differs from the baseline in": _against_baseline(results, marks),
        "options that are its own": json.dumps(marks.get("options", {})),
        "checkpoint": marks.get("checkpoint"),
        "epoch": None if "epoch" not in marks else marks["epoch"] + 1,
        "seconds": marks.get("seconds"),
        "tries": marks.get("attempts"),
        "configuration": marks.get("config_hash"),
        "code": json.dumps(marks.get("git", {})),
        "machine": json.dumps(marks.get("machine", {})),
    }
    shown = [f"{key}: {found}" for key, found in facts.items() if found not in (None, "{}")]
    blocks = [marks.get("command", ""), marks.get("error", ""), _log_end(results.folder / name)]
    pre = "".join(f"<pre>{_text(block)}</pre>" for block in blocks if block)
    title = f"<summary{kind}>{_text(name)}: {result}</summary>"
    return f"<details{fails}>{title}{_list(shown)}{pre}</details>"


def _against_baseline(results: Results, marks: dict[str, Any]) -> str | None:
    """Return in words in which options a trial differs from the baseline's row."""
    baseline = results.sweep.rows.get(results.sweep.baseline)
    if baseline is None or "row" not in marks:
        return None
    ours, theirs = marks.get("options", {}), dict(baseline.options)
    if results.sweep.tune is not None:  # its tuned options are its trials'
        theirs |= results.lines[results.sweep.baseline].chosen
    missing = "not set"
    found = [
        f"{option} {as_word(ours.get(option, missing))} (baseline: "
        f"{as_word(theirs.get(option, missing))})"
        for option in dict.fromkeys([*ours, *theirs])
        if ours.get(option, missing) != theirs.get(option, missing)
    ]
    return "; ".join(found) or "nothing"


def _log_end(folder: Path) -> str:
    """Return the last lines of a trial's log, "" where it is not here."""
    try:
        text = folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LOG_LINES:])
