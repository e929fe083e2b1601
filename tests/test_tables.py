"""Tables as text, against what was written by hand."""

import pytest

from lightning_overlock.tables import markdown


def test_cells_are_padded_and_numbers_stand_on_the_right():
    rows = [
        {"stage": "focus.0", "chunks": 4, "change": 0.012345, "ms": 1234.5},
        {"stage": "stem", "chunks": 16, "change": None, "ms": -1.5},
    ]
    assert markdown(rows).splitlines() == [
        "| stage   | chunks | change |   ms |",
        "| ------- | -----: | -----: | ---: |",
        "| focus.0 |      4 | 0.0123 | 1234 |",
        "| stem    |     16 |      - | -1.5 |",
    ]


def test_columns_choose_and_order():
    rows = [{"a": 1, "b": 2.0, "c": "x"}]
    assert markdown(rows, ["c", "a"]).splitlines()[0] == "| c   |   a |"
    with pytest.raises(KeyError, match="d"):
        markdown(rows, ["d"])


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        markdown([])
