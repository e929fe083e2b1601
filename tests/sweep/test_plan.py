"""A plan: what a sweep will take, and whether it was run as planned."""

import re
from pathlib import Path

import pytest

from lightning_overlock.cli.main import main
from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import content_of
from lightning_overlock.sweep.plan import Step, as_planned, epochs_of, plan_table, write_plan
from lightning_overlock.sweep.read import read

FILE = """\
metric: val/top1
baseline: a
rows: {a: {}, b: {options: {trainer.max_epochs: 7}}, c: {missing: no code}}
tune: {options: {model.lr: [0.1, 0.2, 0.4]}, seeds: [90]}
profiles: {p: {configs: [quickstart, own.yaml], seeds: [1, 2]}}
"""


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "own.yaml").write_text("trainer: {max_epochs: 5}\n")
    (tmp_path / "mine.yaml").write_text(FILE)
    return read(tmp_path / "mine.yaml")


def test_epochs_are_those_of_the_options_or_the_last_configuration(sweep):
    assert (epochs_of(sweep, "a"), epochs_of(sweep, "b")) == (5, 7)
    nothing = sweep.model_copy(update={"configs": ["imagenet"]})
    Path(sweep.configs[1]).write_text("trainer: {}\n")
    with pytest.raises(InputError, match=r"rows.a: expected trainer.max_epochs"):
        epochs_of(nothing.model_copy(update={"configs": sweep.configs[1:]}), "a")


def test_a_plan_counts_trials_hours_and_seeds(sweep):
    steps = {"a": Step(0.5, 100, 5), "b": Step(1.0, 100, 7)}
    table = plan_table(sweep, steps, {"b": 0.01}, 0.01)
    a, b = table.records
    assert (a["trials"], a["of them tuning"], a["steps"]) == (5, 3, 500)
    assert a["hours"] == pytest.approx(5 * 250 / 3600)
    assert b["hours"] == pytest.approx(5 * 700 / 3600)
    # An effect of one standard deviation: Cohen's 10 pairs with 80 % power
    assert (a["seeds needed"], b["seeds needed"]) == (None, 10)
    assert table.notes[0].startswith("10 trials, 1.32 hours")


def test_the_table_says_whether_it_was_run_as_planned(sweep, tmp_path):
    assert as_planned(content_of(sweep), tmp_path) == []
    steps = dict.fromkeys(("a", "b"), Step(1.0, 1, 1))
    found = write_plan(sweep, tmp_path, plan_table(sweep, steps, {}, None))
    assert as_planned(content_of(sweep), tmp_path)[0].startswith(f"Run as planned (plan {found} of")
    more = sweep.model_copy(update={"seeds": [1, 2, 3]})
    (note,) = as_planned(content_of(more), tmp_path)
    assert note.startswith("Not run as planned")
    assert note.endswith("seeds was [1, 2], run with [1, 2, 3].")


def test_a_plan_is_timed_whatever_the_schedule_s_length_and_says_nothing_else(tmp_path, capfd):
    file = tmp_path / "cools.yaml"
    file.write_text(
        "metric: val/top1\nbaseline: a\nrows: {a: {}}\n"
        "profiles: {p: {configs: [quickstart], seeds: [1], options: {\n"
        "  model.backbone: test_overlock, model.warmup_epochs: 1, model.cooldown_epochs: 4,\n"
        "  data.batch_size: 8, data.image_size: 32, trainer.max_epochs: 6}}}\n"
    )
    assert main(["sweep", "plan", str(file), "--runs", str(tmp_path)]) == 0
    said = capfd.readouterr()
    assert "Frozen as" in said.out
    # Neither Lightning's words on devices nor those on an end after a few steps.
    assert not re.search("GPU|TPU|max_steps|warning", said.out + said.err, re.IGNORECASE)
