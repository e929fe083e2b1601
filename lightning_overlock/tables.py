"""Tables: for the terminal, as Markdown, CSV, LaTeX and as a DataFrame."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import rich.table


# Tables with more columns are scaled down to the page by LaTeX.
LATEX_COLUMNS = 6
# Characters that a narrow terminal leaves to the first column.
MIN_LABEL = 12


def format_figure(value: float | None) -> str:
    """Return a number with three significant digits, or all those before its point.

    Args:
        value: The number; None gives an empty text.
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return rows of figures as a Markdown table that also reads well as plain text.

    Args:
        rows: Dictionaries with the same keys, as the functions of this package return them.
        columns: The keys to show and their order; None shows all.

    Returns:
        A heading, a rule and a line per row, columns padded to one width. Floats have three
        significant digits (all their digits before the point), None is "-".

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> print(markdown([{"model": "a", "error %": 12.345}, {"model": "b", "error %": None}]))
        | model | error % |
        | ----- | ------: |
        | a     |    12.3 |
        | b     |       - |
    """
    return Table.of(rows, columns).markdown()


@dataclass(frozen=True)
class Table:
    """A table, for whatever it is printed with.

    Attributes:
        headings: The columns' headings.
        cells: The text of every cell, a list per row.
        title: The title; "" for none.
        notes: Sentences below the table.
        records: The same rows as plain values, for CSV and DataFrames.
        words: The places of the columns that hold words, which stand on the left.
        droppable: Headings of the columns that a narrow terminal does without, the first ones
            first.
        label: LaTeX's label.
        printed: Headings as a paper prints them, by the heading.
    """

    headings: list[str]
    cells: list[list[str]]
    title: str = ""
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    words: frozenset[int] = frozenset({0})
    droppable: list[str] = field(default_factory=list)
    label: str = ""
    printed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> "Table":
        """Return rows of plain values as a table.

        Args:
            rows: Dictionaries with the same keys.
            columns: The keys to show and their order; None shows all.

        Raises:
            ValueError: If there are no rows.
        """
        if not rows:
            raise ValueError("found no rows to make a table of")
        keys = list(rows[0] if columns is None else columns)
        words = [i for i, key in enumerate(keys) if any(isinstance(row[key], str) for row in rows)]
        return cls(
            keys,
            [[_cell(row[key]) for key in keys] for row in rows],
            records=[{key: row[key] for key in keys} for row in rows],
            words=frozenset(words),
        )

    def markdown(self) -> str:
        """Return the table as Markdown that also reads well as plain text."""
        lines = [[escape_markdown(cell) for cell in line] for line in (self.headings, *self.cells)]
        widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(lines[0]))]
        rule = [
            "-" * width if place in self.words else "-" * (width - 1) + ":"
            for place, width in enumerate(widths)
        ]
        padded = [
            [
                cell.ljust(width) if place in self.words else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            for line in lines
        ]
        body = [f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])]
        title = [f"**{escape_markdown(self.title)}**", ""] if self.title else []
        notes = ["", *(f"- {escape_markdown(note)}" for note in self.notes)] if self.notes else []
        return "\n".join([*title, *body, *notes])

    def csv(self) -> str:
        """Return the plain values as CSV that needs no options to be read."""
        text = io.StringIO()
        fields = list(dict.fromkeys(name for record in self.records for name in record))
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def dataframe(self) -> "pandas.DataFrame":
        """Return the plain values as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.records)

    def latex(self) -> str:
        """Return the table as a LaTeX float; the packages that it needs stand in its first line.

        The notes are comments: captions are written by people.
        """

        def stacked(heading: str) -> str:
            lines = [latex_escape(part) for part in _broken(heading).split("\n")]
            joined = r" \\ ".join(lines)
            return rf"\shortstack[r]{{{joined}}}" if lines[1:] else joined

        def line(cells: Sequence[str]) -> str:
            text = " & ".join(map(latex_escape, cells)) + r" \\"
            # What LaTeX would take for an argument of the line's end before.
            return "{}" + text if text.startswith(("[", "*")) else text

        wide = len(self.headings) > LATEX_COLUMNS
        needs = r"\usepackage{booktabs}" + r"\usepackage{graphicx}" * wide
        headings = [self.printed.get(heading, heading) for heading in self.headings]
        foreign = {c for cells in (headings, *self.cells, [self.title]) for t in cells for c in t}
        if foreign := {c for c in foreign if ord(c) > 0xFF and c not in _LATEX}:
            needs += f" and XeLaTeX or LuaLaTeX with a font that has {' '.join(sorted(foreign))}"
        kinds = "".join("l" if place in self.words else "r" for place in range(len(self.headings)))
        comments = [f"% {' '.join(note.split())}" for note in self.notes]
        label = re.sub(r"[^A-Za-z0-9_.:-]", "-", self.label or "table")
        return "\n".join(
            [
                f"% Needs {needs}.",
                *comments,
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{latex_escape(self.title)}}}",
                rf"  \label{{tab:{label}}}",
                *[r"  \resizebox{\linewidth}{!}{%"] * wide,
                rf"  \begin{{tabular}}{{{kinds}}}",
                r"    \toprule",
                f"    {' & '.join(map(stacked, headings))} \\\\",
                r"    \midrule",
                *(f"    {line(cells)}" for cells in self.cells),
                r"    \bottomrule",
                r"  \end{tabular}" + "}" * wide,
                r"\end{table}",
                "",
            ]
        )

    def terminal(self, width: int | None = None) -> "rich.table.Table":
        """Return the table for a terminal.

        Args:
            width: The terminal's width in characters. Columns are dropped until the table fits,
                in the order of `droppable`, then the first column is broken into lines; None leaves
                all as it is.
        """
        from rich.console import Console

        left_out: list[str] = []
        table = self._terminal(left_out)
        for heading in self.droppable if width is not None else []:
            if Console(width=1000).measure(table).maximum <= (width or 0):
                break
            if heading in self.headings:
                left_out.append(heading)
                table = self._terminal(left_out)
        if width is not None and (excess := Console(width=1000).measure(table).maximum - width) > 0:
            # Nothing more can go: the rows' names are broken into lines.
            longest = max(len(line[0]) for line in self.cells)
            table = self._terminal(left_out, max(longest - excess, MIN_LABEL))
        return table

    def _terminal(self, left_out: list[str], label_width: int | None = None) -> "rich.table.Table":
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = [place for place, name in enumerate(self.headings) if name not in left_out]
        table = RichTable(title=Text(self.title) if self.title else None, title_justify="left")
        for place in shown:
            justify: Any = "left" if place in self.words else "right"
            wraps = place == 0 and label_width is not None
            table.add_column(
                Text(_broken(self.headings[place])),
                justify=justify,
                no_wrap=not wraps,
                max_width=label_width if wraps else None,
            )
        for cells in self.cells:
            table.add_row(*(Text(cells[place]) for place in shown))
        return table

    def write(self, folder: Path, name: str) -> None:
        """Write the table as Markdown, CSV and LaTeX into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        forms = {"md": self.markdown() + "\n", "csv": self.csv(), "tex": self.latex()}
        for suffix, text in forms.items():
            (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")

    def print(self) -> None:
        """Print the table: whole into a pipe, into a terminal what it has room for."""
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        table = self.terminal(console.width if console.is_terminal else None)
        width = Console(width=1000).measure(table).maximum
        Console(width=max(width, console.width)).print(table)
        for note in self.notes:
            console.print(f"- {note}", soft_wrap=True)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def _broken(heading: str) -> str:
    """Return a heading in lines: the unit below the quantity, the quantity below whose it is."""
    return heading.replace(": ", ":\n").replace(" (", "\n(")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return format_figure(value) if isinstance(value, float) else str(value)


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, also in a cell."""
    # * marks emphasis within a word too, ~ crosses out, & begins an entity.
    signs = r"[\\|`<$\[\]~]|\*(?=\S)|&(?=#?\w+;)"
    escaped = re.sub(signs, r"\\\g<0>", " ".join(text.split()))
    # _ means something only where emphasis could begin.
    return re.sub(
        r"(?<![\w_])(_+)(?=\S)", lambda found: "".join(rf"\{c}" for c in found[0]), escaped
    )


GREEK = {
    chr(0x3B1): "alpha",
    chr(0x3B2): "beta",
    chr(0x3B3): "gamma",
    chr(0x3B4): "delta",
    chr(0x3B5): "epsilon",
    chr(0x3B7): "eta",
    chr(0x3BB): "lambda",
    chr(0x3BC): "mu",
    "µ": "mu",
    chr(0x3C3): "sigma",
    chr(0x3C4): "tau",
    chr(0x394): "Delta",
    chr(0x3A3): "Sigma",
}
# In one pass, so that what is put in is not escaped again.
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "…": r"\ldots{}",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    **{letter: rf"$\{name}$" for letter, name in GREEK.items()},
    "\N{MINUS SIGN}": r"$-$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_escape(text: str) -> str:
    """Return text that LaTeX prints as it is."""
    # Two hyphens would become a dash.
    text = re.sub("-(?=-)", "-\0", text)
    escaped = re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
    escaped = escaped.replace("-\0", "-{}")
    return re.sub(r"(?<=\s)-(?=\d)|^-(?=\d)", "$-$", " ".join(escaped.split()))
