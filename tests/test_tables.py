"""Tables as text, against what was written by hand."""

import pytest

from lightning_overlock.tables import latex_escape, markdown


def test_cells_are_padded_and_numbers_stand_on_the_right():
    rows = [
        {"stage": "focus.0", "chunks": 4, "change": 0.012345, "ms": 1234.5},
        {"stage": "stem", "chunks": 16, "change": None, "ms": -1.5},
    ]
    assert markdown(rows).splitlines() == [
        "| stage   | chunks | change |    ms |",
        "| ------- | -----: | -----: | ----: |",
        "| focus.0 |      4 | 0.0123 | 1,234 |",
        "| stem    |     16 |      - |  -1.5 |",
    ]


def test_columns_choose_and_order():
    rows = [{"a": 1, "b": 2.0, "c": "x"}]
    assert markdown(rows, ["c", "a"]).splitlines()[0] == "| c   |   a |"
    with pytest.raises(KeyError, match="d"):
        markdown(rows, ["d"])


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        markdown([])


def test_latex_escapes_what_latex_reads():
    assert latex_escape("50 % of A_1 & B #2 {x} \\ ~ ^ 1 ± 2 $") == (
        r"50 \% of A\_1 \& B \#2 \{x\} \textbackslash{} \textasciitilde{} "
        r"\textasciicircum{} 1 $\pm$ 2 \$"
    )
    assert latex_escape("-0.4") == "$-$0.4"
    assert latex_escape("val/top1-seed2") == "val/top1-seed2"
