"""Two studies side by side: matched rows, an interval of independent studies, what differs."""

import pytest
from scipy import stats
from sweep.test_results import complete, results, study_of
from sweep.test_results import write as write  # a fixture

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.side_by_side import print_comparison, side_by_side

VALUES = {1: 0.50, 2: 0.53, 3: 0.52}


def measured(sweep, name, tmp_path, shift=0.0, rows="ab", **marks):
    trials = [
        complete(row, seed, value + shift + 0.1 * (row == "b") + seed * shift, **marks)
        for row in rows
        for seed, value in VALUES.items()
    ]
    study = study_of(sweep, trials)
    found = results(study, sweep, tmp_path)
    object.__setattr__(found, "name", name)
    return found


def test_rows_are_matched_by_name_with_welch_s_interval(write, tmp_path):
    one = measured(write(), "one", tmp_path)
    two = measured(write(), "two", tmp_path, shift=0.02)
    table = side_by_side(one, two)
    cells = [dict(zip(table.headings, line, strict=True)) for line in table.cells]
    assert cells[0] | {"": "a"} == {
        "": "a",
        "one": "51.67 ± 1.53",
        "two": "57.67 ± 3.21",
        "change": "+6.00",
        "its 95 % interval": cells[0]["its 95 % interval"],
        "one: difference": "-10.00",
        "two: difference": "-10.00",
    }
    assert cells[1]["one: difference"] == "baseline"
    before, after = one.lines["a"].values.values(), two.lines["a"].values.values()
    # Welch's t by hand
    n, (v, w) = 3, (stats.tvar(list(before)), stats.tvar(list(after)))
    freedom = (v / n + w / n) ** 2 / ((v / n) ** 2 / (n - 1) + (w / n) ** 2 / (n - 1))
    half = stats.t.ppf(0.975, freedom) * ((v + w) / n) ** 0.5
    assert table.records[0]["change_low"] == pytest.approx(0.06 - half)
    assert table.records[0]["change_high"] == pytest.approx(0.06 + half)


def test_what_differs_is_named(write, tmp_path):
    machine = {"torch": "2.11"}
    one = measured(
        write(),
        "one",
        tmp_path,
        machine=machine,
        epochs=3,
        git={"commit": "a" * 40, "changed": False},
    )
    other = write("model.lr: 1", "model.lr: 3", overrides=["data=photos", "trainer.max_epochs=9"])
    two = measured(other, "two", tmp_path, machine={"torch": "2.15"}, epochs=9)
    notes = side_by_side(one, two).notes[1:]
    assert notes == [
        "data: digits in the first, photos in the second.",
        "options.trainer.max_epochs: nothing in the first, 9 in the second.",
        "rows.b.options.model.lr: 1 in the first, 3 in the second.",
        "torch: 2.11 in the first, 2.15 in the second.",
        "epochs: 3 in the first, 9 in the second.",
        "commit: aaaaaaaaaaaa in the first, not known in the second.",
    ]


def test_the_same_study_twice_differs_in_nothing(write, tmp_path):
    one = measured(write(), "one", tmp_path)
    table = side_by_side(one, one)
    assert table.notes[1:] == ["Data, recipe, versions and machine are the same."]
    assert {record["change"] for record in table.records[:2]} == {0.0}


def test_rows_of_one_study_alone_and_rows_without_spread(write, tmp_path):
    one = measured(write(), "one", tmp_path)
    fewer = write(overrides=["rows=[b, c]"])
    table = side_by_side(one, measured(fewer, "two", tmp_path, rows="b"))
    assert [line[2] for line in table.cells] == ["no such row", "61.67 ± 1.53", "not run"]
    assert table.records[0]["change"] is None


def test_other_metrics_and_searches_are_refused(write, tmp_path):
    one = measured(write(), "one", tmp_path)
    loss = measured(write("val/top1", "val/loss"), "two", tmp_path)
    with pytest.raises(InputError, match="one measures val/top1"):
        side_by_side(one, loss)
    text = ("rows:", "search: {space: {model.lr: {float: [0.1, 1]}}}\n#")
    (tmp_path / "s.yaml").write_text("")
    search = one.sweep.model_copy(update={"rows": {}, "search": text})
    object.__setattr__(loss, "sweep", search)
    with pytest.raises(InputError, match="two: a search has no rows"):
        side_by_side(one, loss)


def test_it_is_printed_and_written(tmp_path, capsys, repository):
    names = ["overlock_overview-claims"] * 2
    print_comparison(names, repository / "sweeps" / "results", None, tmp_path)
    out = capsys.readouterr().out
    assert "context prior of another image" in out
    assert "Data, recipe, versions and machine are the same." in out
    files = {f"compare.{suffix}" for suffix in ("md", "csv", "tex")}
    assert {file.name for file in tmp_path.iterdir()} == files


@pytest.fixture
def repository(request):
    return request.config.rootpath
