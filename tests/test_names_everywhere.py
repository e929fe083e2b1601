"""One name, every place that it goes to: whatever a user calls a thing comes through unharmed."""

import csv
import html.parser
import io
import json
import re
import tempfile
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from cli.test_names import NAMES, READABLE
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_overlock.callbacks.trackers import TrackedRun, loggers_of
from lightning_overlock.data.class_names import check_class_names
from lightning_overlock.errors import InputError
from lightning_overlock.runs.layout import run_folder
from lightning_overlock.runs.metrics_file import read_curve, write_row
from lightning_overlock.sweep.agreement import content_of, stored_sweep
from lightning_overlock.sweep.parts import Row
from lightning_overlock.sweep.plots import curve_figure, row_figure
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.report import write_report
from lightning_overlock.sweep.results import results
from lightning_overlock.tables import Table, latex_escape
from lightning_overlock.tasks.drawing import draw_class
from lightning_overlock.tasks.per_class import write_classes, write_confusion
from lightning_overlock.yaml_files import dump_yaml

# What the formats that names go through read as signs of their own.
SIGNS = st.text(r"$_^*`~|&<>[](){}#%\\!-+=:;,.'\"/?@ aB0\u00e9", min_size=1, max_size=12)
NAME = (
    st.one_of(READABLE, SIGNS, st.sampled_from(["$HOME", "a*b*c", "&lt;", "_x_", "~~x~~", "$a$"]))
    .map(str.strip)
    .filter(bool)
)
LISTS = st.lists(NAME, min_size=1, max_size=4, unique=True)
FAST = {"max_examples": 25, "deadline": None, "suppress_health_check": list(HealthCheck)}
LONG = FAST | {"max_examples": 300, "phases": (Phase.explicit, Phase.reuse, Phase.generate)}
# No font has all scripts; what is missing is drawn as a box.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph:UserWarning", "ignore:Matplotlib currently")


def one_line(name):
    """Blanks of all kinds are one blank where tables are printed."""
    return " ".join(name.split())


# Tables


def cells_of_markdown(text):
    """The texts of a table's cells, as CommonMark with GitHub's tables and strikethrough reads."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found = []
    for token in reader.parse(text):
        if token.type == "inline":
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special"}, (token.content, kinds)
            found.append("".join(child.content for child in token.children))
    return found


def text_of_latex(text):
    """What LaTeX prints, by a reader that knows the commands the tables use and nothing else."""
    words = {
        "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<",
        "textgreater": ">", "textbar": "|", "textasciigrave": "`", "ldots": "\u2026",
    }  # fmt: skip
    formulas = {
        r"\pm": "\u00b1", r"\times": "\u00d7", r"\leq": "\u2264", r"\geq": "\u2265",
        r"\rightarrow": "\u2192", r"^\circ": "\u00b0", "^2": "\u00b2", "^3": "\u00b3", "-": "-",
    }  # fmt: skip
    greek = {
        r"\alpha": "\u03b1", r"\beta": "\u03b2", r"\gamma": "\u03b3", r"\delta": "\u03b4",
        r"\epsilon": "\u03b5", r"\eta": "\u03b7", r"\lambda": "\u03bb", r"\mu": "\u03bc",
        r"\sigma": "\u03c3", r"\tau": "\u03c4", r"\Delta": "\u0394", r"\Sigma": "\u03a3",
    }  # fmt: skip
    pattern = re.compile(
        r"\\(?P<word>[a-z]+)\{\}|\\(?P<sign>[&%$#_{}])|\$(?P<formula>[^$]+)\$|(?P<hyphen>-\{\})"
        r"|(?P<dash>---?)|(?P<plain>[^\\&%$#_{}~^])"
    )
    found, place = "", 0
    while place < len(text):
        match = pattern.match(text, place)
        assert match, f"LaTeX reads {text[place:]!r} otherwise"
        kind, place = match.lastgroup, match.end()
        if kind == "word":
            found += words[match["word"]]
        elif kind == "formula":
            found += (formulas | greek)[match["formula"]]
        elif kind == "hyphen":
            found += "-"
        elif kind == "dash":
            found += {"--": "\u2013", "---": "\u2014"}[match["dash"]]
        else:
            found += match[kind]
    return found


class Cells(html.parser.HTMLParser):
    """The texts of a page's cells, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.titles, self.tags, self._open = [], [], set(), False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._open = tag == "td"
        if self._open:
            self.cells.append("")
        self.titles += [value for name, value in attributes if name == "title"]

    def handle_endtag(self, tag):
        self._open = self._open and tag != "td"

    def handle_data(self, text):
        if self._open:
            self.cells[-1] += text


def tables_are_unharmed(names, heading):
    table = Table.of([{"": name, heading: 1.5} for name in names])
    assert cells_of_markdown(table.markdown()) == [
        "",
        one_line(heading),
        *(cell for name in names for cell in (one_line(name), "1.5")),
    ]
    read_rows = list(csv.DictReader(io.StringIO(table.csv(), newline="")))
    assert [row[""] for row in read_rows] == names
    assert list(read_rows[0]) == ["", heading]
    assert list(table.dataframe()[""]) == names
    lines = table.latex().split(r"\midrule")[1].split(r"\bottomrule")[0].strip().split("\n")
    for name, line in zip(names, lines, strict=True):
        cell = line.strip().removesuffix(r" & 1.5 \\").removeprefix("{}")
        plain = one_line(name).replace("\N{MINUS SIGN}", "-").replace("\u00b5", "\u03bc")
        assert text_of_latex(cell) == text_of_latex(latex_escape(name)) == plain
    console = Console(file=io.StringIO(), width=9000, legacy_windows=False)
    console.print(table.terminal())
    assert all(name in console.file.getvalue() for name in names)


# Files of a run


def files_are_unharmed(folder, names):
    check_class_names(names, "a list")
    shares = {"iou": torch.full((len(names),), 0.5)}
    counts = {"pixels": torch.arange(len(names))}
    write_classes(folder / "classes.csv", names, shares, counts)
    with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == names
    metrics = {f"val/{name}": float(place) for place, name in enumerate(names)}
    write_row(folder / "run", {"stage": "fit", "epoch": 0, "step": 1} | metrics)
    assert read_curve(folder / "run") == [{"epoch": 0, "step": 1} | metrics]
    for name in names:
        drawn = draw_class(torch.rand(3, 16, 16), name)
        assert drawn.shape == (3, 16, 16)


def runs_are_unharmed(folder, name):
    try:
        path = folder / run_folder(name)
    except InputError:
        return
    (board,) = loggers_of(["tensorboard"], TrackedRun(name, path, "", {}))
    board.log_metrics({"val/top1": 0.5}, step=3)
    board.finalize("success")
    assert [found.parent for found in folder.rglob("events.out.tfevents.*")] == [path]
    events = EventAccumulator(str(path)).Reload()
    assert events.Tags()["scalars"] == ["val/top1"]
    assert [(e.step, e.value) for e in events.Scalars("val/top1")] == [(3, 0.5)]


# Sweeps


def sweep_of(folder, names):
    """A sweep whose rows have these names where they can be, and these labels in any case."""
    rows = {}
    for place, label in enumerate(names):
        try:
            Row.model_validate({"label": label})
            content = {"baseline": label, "rows": {label: {}}}
            name = next(iter(read(write_sweep(folder, content)).rows))
        except InputError:
            name = f"row{place}"
        folded = {row.casefold() for row in rows}
        name = f"row{place}" if name.casefold() in folded else name
        rows[name] = {"label": label, "options": {"model.lr": 1.0 + place}}
    content = {"title": names[0], "baseline": next(iter(rows)), "rows": rows}
    return read(write_sweep(folder, content))


def write_sweep(folder, content):
    path = folder / "mine.yaml"
    rest = {"metric": "val/top1", "profiles": {"p": {"configs": ["quickstart"], "seeds": [1, 2]}}}
    path.write_text(dump_yaml(content | rest), encoding="utf-8")
    return path


def study_of(sweep, storage, name):
    study = optuna.create_study(direction="maximize", study_name=name, storage=storage)
    study.set_user_attr("sweep", content_of(sweep))
    for row in sweep.rows:
        for seed in sweep.seeds:
            marks = {"row": row, "seed": seed, "folder": f"{row}-seed{seed}", "options": {}}
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=0.5 + seed / 10,
                    user_attrs=marks,
                    intermediate_values={0: 0.4, 1: 0.5 + seed / 10},
                )
            )
    return optuna.load_study(study_name=name, storage=storage)


def sweeps_are_unharmed(folder, names, storage, figures):
    labels = list({" ".join(name.split()): None for name in names if len(name) < 80})
    if not labels:
        return
    sweep = sweep_of(folder, labels)
    study = study_of(sweep, storage, f"{len(optuna.get_all_study_names(storage))} {names[0]}")
    assert study.study_name.endswith(names[0])
    stored = stored_sweep(study.user_attrs["sweep"], folder)
    assert list(stored.rows) == list(sweep.rows)
    assert [stored.label(row) for row in stored.rows] == labels
    assert {trial.user_attrs["row"] for trial in study.trials} == set(sweep.rows)
    assert json.loads(json.dumps(study.user_attrs["sweep"])) == study.user_attrs["sweep"]
    if figures:
        found = results(study, sweep, folder)
        figures_are_unharmed(found, labels)
        write_report(found, folder / "report.html")
        page = Cells((folder / "report.html").read_text(encoding="utf-8"))
        first = [cell for cell in page.cells if one_line(cell) in labels]
        assert [one_line(cell) for cell in first[: len(labels)]] == labels
        assert "b" not in page.tags
        assert "x" not in page.tags


def figures_are_unharmed(found, labels):
    """Labels are plain text: matplotlib reads no formula in them and leaves none with _ out."""
    rows = row_figure(found)
    rows.draw_without_rendering()
    (axes,) = rows.axes
    shown = [one_line(shown_text(text)) for text in axes.get_yticklabels()]
    assert shown == labels
    curves = curve_figure(found)
    curves.draw_without_rendering()
    legend = curves.axes[0].get_legend()
    assert {one_line(shown_text(text)) for text in legend.get_texts()} == set(labels)
    assert one_line(shown_text(rows.axes[0].title)) in {"", labels[0]}


def shown_text(text):
    """What matplotlib draws of a text that it does not take for a formula."""
    drawn, formula = text._preprocess_math(text.get_text())
    assert not formula, text.get_text()
    return drawn


def confusions_are_unharmed(folder, names):
    kept = []

    def keep(self, *_, **__):
        self.draw_without_rendering()
        kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", keep)
        write_confusion(folder / "confusion.csv", names, torch.eye(len(names)).long())
    with (folder / "confusion.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["true class", *names]
    assert [line[0] for line in lines[1:]] == names
    axes = kept[0].axes[0]
    shown = [shown_text(text) for text in axes.get_xticklabels()]
    assert shown == [name[:24] for name in names]


def everything_is_unharmed(names, storage, figures):
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        folder = Path(place)
        tables_are_unharmed(names, names[-1] + "x")
        files_are_unharmed(folder, names)
        runs_are_unharmed(folder / "board", names[0])
        sweeps_are_unharmed(folder, names, storage, figures)
        if figures:
            confusions_are_unharmed(folder, names)


@pytest.fixture(scope="module")
def storage():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return RDBStorage("sqlite://")


@given(LISTS)
@settings(**FAST)
@example(NAMES[:20])
@example(NAMES[20:40])
@example(NAMES[40:])
@example(["$HOME"])
@example(["_x_", "a*b*c", "&amp;", "~~x~~", r"$\ours$"])
@example(["a|b", "[b]x[/b]", "<b>x</b>", "50 %", "#1"])
def test_names_come_through_everywhere(storage, names):
    everything_is_unharmed(names, storage, figures=False)


@given(LISTS)
@settings(**FAST | {"max_examples": 3})
@example(["_x_", "$a$", r"\$", "<b>x</b>", "x_1^2"])
def test_names_come_through_figures_and_reports(storage, names):
    everything_is_unharmed(names, storage, figures=True)


@pytest.mark.long
@pytest.mark.timeout(3600)  # some minutes on an idle core
@given(LISTS)
@settings(**LONG)
def test_three_hundred_lists_of_names_come_through_everywhere(storage, names):
    everything_is_unharmed(names, storage, figures=True)
