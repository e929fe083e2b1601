"""A sweep's results as one HTML file that opens without a network."""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.sweep import plots
from lightning_overlock.sweep.results import Results
from lightning_overlock.sweep.table import comparison_sheet, factor_sheet, sheet
from lightning_overlock.sweep.trials import metric_of
from lightning_overlock.tables import Table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; padding: 1.5rem;
  max-width: 72rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th { border-bottom: 2px solid #444; cursor: pointer; vertical-align: bottom; }
th.word, td.word { text-align: left; }
tr:hover td { background: #f5f5f5; }
svg { max-width: 100%; height: auto; }
li { margin: .2rem 0; overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { border-bottom: 1px solid #ddd; padding: .35rem 0; } summary { cursor: pointer; }
.fail { color: #a00; }
@media print { body { max-width: none; padding: 0; font-size: 10px; } th { cursor: auto; }
  th, td { padding: .1rem .3rem; white-space: normal; } details { break-inside: avoid; } }
"""
# A click on a heading sorts by its column, numbers as numbers; once more turns the order.
SCRIPT = """
document.querySelectorAll('th').forEach(th => th.addEventListener('click', () => {
  const place = th.cellIndex, body = th.closest('table').tBodies[0];
  const sign = th.dataset.sign = -(th.dataset.sign || -1);
  const value = tr => { const t = tr.cells[place].innerText.replace(/,/g, '');
    const n = parseFloat(t); return isNaN(n) ? t : n; };
  [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    return sign * (typeof x === typeof y ? (x < y ? -1 : x > y) : typeof x === 'number' ? -1 : 1);
  }).forEach(tr => body.append(tr));
}));
"""
TITLES = {"curves": "Learning curves", "cost": "Cost and metric", "parallel": "Parallel axes"}
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
    for name, figure in plots.figures(results).items():
        parts.append(f"<h2>{TITLES.get(name, name.capitalize())}</h2>{_svg(figure)}")
    parts.append(f"<h2>Trials</h2>{''.join(_trial(results, trial) for trial in results.frozen)}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(sweep.title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


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
    kind = " class='fail'" if trial.state == TrialState.FAIL else ""
    facts: dict[str, Any] = {
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
    return f"<details><summary{kind}>{_text(name)}: {result}</summary>{_list(shown)}{pre}</details>"


def _log_end(folder: Path) -> str:
    """Return the last lines of a trial's log, "" where it is not here."""
    try:
        text = folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LOG_LINES:])
