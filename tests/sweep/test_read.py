"""Sweep files: what they say reaches the command line, and mistakes are told in three lines."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lightning_overlock.cli.build import build
from lightning_overlock.errors import InputError
from lightning_overlock.sweep.agreement import content_of, stored_sweep
from lightning_overlock.sweep.read import find, read
from lightning_overlock.sweep.spec import as_word
from lightning_overlock.sweep.validate import validate
from lightning_overlock.yaml_files import dump_yaml

FILE = """\
title: A sweep
profile: tiny
metric: val/top1
direction: maximize
baseline: full
rows:
  full: {label: all of it}
  no_gate: {options: {model.backbone_args.gate: false}}
  other: {paper: {top1: 78.4, source: somewhere}, missing: not written}
profiles:
  tiny:
    configs: [quickstart]
    options: {model.backbone: test_overlock, model.backbone_args.drop_rate: 0.1}
    seeds: [1, 2]
    data: digits
  subset: {configs: [quickstart], rows: [full], seeds: [3]}
  changed:
    configs: [quickstart, own.yaml]
    rows: {no_gate: {label: closed, options: {model.lr: 0.1}}}
"""
SEARCH = """\
metric: val/loss
direction: minimize
search:
  sampler: random
  pruner: halving
  trials: 7
  space:
    model.lr: {float: [1e-4, 1.0e-2], log: true}
    model.warmup_epochs: {int: [0, 4], step: 2}
    model.label_smoothing: {categorical: [0.0, 0.1]}
profiles:
  tiny: {configs: [quickstart], options: {model.backbone: test_overlock}, seeds: [5, 6]}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=FILE, **changes):
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        Path("mine.yaml").write_text(text)
        return "mine.yaml"

    return write


def message(*arguments, check=False):
    with pytest.raises(InputError) as caught:
        validate(read(*arguments), build) if check else read(*arguments)
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    return text


# What a file says


def test_a_profile_s_options_and_a_row_s_become_a_command_line(write):
    sweep = read(write())
    assert (sweep.profile, sweep.seeds, sweep.baseline) == ("tiny", [1, 2], "full")
    assert list(sweep.rows) == ["full", "no_gate", "other"]
    assert sweep.rows["other"].missing == "not written"
    assert sweep.arguments(sweep.rows["no_gate"].options, 2, "no_gate-seed2") == [
        *("fit", "--config", "quickstart", "--name", "no_gate-seed2", "--seed_everything", "2"),
        "--model.backbone=test_overlock",
        "--model.backbone_args.drop_rate=0.1",
        "--model.backbone_args.gate=false",
    ]


def test_a_profile_names_a_subset_of_the_rows_or_changes_them(write):
    assert list(read(write(), "subset").rows) == ["full"]
    changed = read(write(), "changed")
    assert list(changed.rows) == ["full", "no_gate", "other"]
    assert changed.rows["no_gate"].label == "closed"
    assert changed.rows["no_gate"].options == {
        "model.backbone_args.gate": False,
        "model.lr": 0.1,
    }


def test_configurations_of_one_s_own_lie_beside_the_sweep_file(write, tmp_path, monkeypatch):
    write()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read("../mine.yaml", "changed").configs == ["quickstart", "../own.yaml"]


def test_set_changes_settings_and_options(write):
    sweep = read(
        write(), None, ["seeds=[7]", "rows=[full, other]", "model.lr=1e-3", "metric=val/loss"]
    )
    assert (sweep.seeds, list(sweep.rows), sweep.metric) == ([7], ["full", "other"], "val/loss")
    assert sweep.options["model.lr"] in ("1e-3", 1e-3)
    assert sweep.command == (
        "lightning sweep run mine.yaml --profile tiny --set 'seeds=[7]' --set "
        "'rows=[full, other]' --set model.lr=1e-3 --set metric=val/loss"
    )
    assert read(write(SEARCH), None, ["trials=3", "pruner=none"]).search.trials == 3


def test_a_search_space_is_optuna_s(write):
    search = read(write(SEARCH)).search
    assert search.distributions == {
        "model.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "model.warmup_epochs": IntDistribution(0, 4, step=2),
        "model.label_smoothing": CategoricalDistribution([0.0, 0.1]),
    }
    assert (search.sampler, search.pruner, search.trials) == ("random", "halving", 7)


def test_the_stored_content_is_json(write):
    for text in (FILE, SEARCH):
        sweep = read(write(text))
        stored = json.loads(json.dumps(content_of(sweep)))
        again = stored_sweep(stored, Path())
        assert (again.rows, again.search, again.seeds) == (sweep.rows, sweep.search, sweep.seeds)
        assert content_of(again) == stored


def test_one_key_of_a_dictionary_is_merged_with_what_configurations_and_the_profile_set(write):
    Path("mine.yaml").write_text(FILE)
    Path("own.yaml").write_text(
        "model: {class_path: ClassificationTask, init_args: {backbone: test_convneur, "
        "backbone_args: {memory_dim: 16, chunk_size: 8}}}\n"
        "data: {class_path: DigitsDataModule}\n"
    )
    sweep = read("mine.yaml", "tiny", ["configs=own.yaml", "model.backbone=test_convneur"])
    options = {
        "model.backbone_args.chunk_size": [4, 4, 2, 2],
        "model.backbone_args.segment_chunks": "all",
        "model.backbone_args.memory_dim": None,
    }
    task, _ = build(sweep.arguments(options, 1, "row"))
    assert task.hparams["backbone_args"] == {
        "memory_dim": None,
        "chunk_size": [4, 4, 2, 2],
        "drop_rate": 0.1,
        "segment_chunks": "all",
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["static", "rand-m9-mstd0.5-inc1", "bf16-mixed", "a/b c"]),
    lambda values: st.lists(values, min_size=1, max_size=3),
    max_leaves=4,
)


@given(VALUES)
@settings(deadline=None)
def test_every_value_survives_the_command_line(value):
    parser = ArgumentParser()
    parser.add_argument("--option", type=dict[str, Any])
    found = parser.parse_args([f"--option.key={as_word(value)}"]).option["key"]
    assert found == value
    assert type(found) is type(value)


# Mistakes, told when the file is read


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("baseline: full", "baselin: full", r"mine.yaml, baselin: unknown key. .*'baseline'"),
        ("baseline: full", "baseline: ful", r"mine.yaml, baseline: 'ful' is no row. .*'full'"),
        ("baseline: full", "baseline: other", "baseline: 'other' is a row that cannot be run"),
        ("profile: tiny", "profile: tin", "mine.yaml: no profile is named 'tin'. .*'tiny'"),
        ("  no_gate:", "  full:", r"mine.yaml, line 8: .*'full' stands twice"),
        ("{label: all of it}", "{lable: x}", r"rows.full.lable: unknown key. .*'label'"),
        ("{label: all of it}", "[1]", r"rows.full: found \[1\]"),
        ("direction: maximize", "direction: up", "direction: found 'up'"),
        ("metric: val/top1", "metric: top1", "metric: found 'top1'"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "seeds: found"),
        ("seeds: [1, 2]", "seeds: [a]", "seeds: found"),
        ("seeds: [1, 2]", "sedes: [1, 2]", "profiles.tiny.sedes: unknown key. .*'seeds'"),
        ("title:", "columns: [parms]\ntitle:", "columns.0: found 'parms'. .*'params'"),
        ("source: somewhere", "top5: 1", "rows.other.paper.top5: unknown key"),
        (", source: somewhere", "", "rows.other.paper.source: this key is missing"),
        ("model.backbone_args.gate: false", "seed_everything: 1", "rows.no_gate.options.seed"),
        ("model.backbone_args.gate", "--model.lr", "named without '-'"),
        ("configs: [quickstart]\n", "configs: []\n", "configs: found"),
        ("rows: [full]", "rows: [ful]", "profiles.subset.rows: 'ful' is no row. .*'full'"),
        ("title: A sweep", "title: [", "mine.yaml, line 3: "),
    ],
)
def test_a_mistake_in_a_file_is_told_with_file_and_key(write, old, new, expected):
    profile = "subset" if "rows: [ful" in old else None
    text = message(write(change=(old, new)), profile)
    assert text.startswith("mine.yaml")
    assert re.search(expected, text), text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("float: [1e-4, 1.0e-2]", "float: [1]", "search.space.model.lr: "),
        ("float: [1e-4, 1.0e-2]", "float: [1, 0.1]", "search.space.model.lr: "),
        ("float: [1e-4, 1.0e-2]", "float: [0, 1]", "search.space.model.lr: "),
        (
            "float: [1e-4",
            "flot: [1e-4",
            r"search.space.model.lr: found .*\nUnknown key 'flot'. Did you mean 'float'",
        ),
        ("int: [0, 4]", "int: [0.5, 4]", "search.space.model.warmup_epochs: "),
        ("categorical: [0.0, 0.1]", "categorical: []", "search.space.model.label_smoothing: "),
        ("[0.0, 0.1]}", "[0.0, 0.1], log: true}", "search.space.model.label_smoothing: "),
        ("[0.0, 0.1]}", "[[1]]}", "search.space.model.label_smoothing: "),
        ("sampler: random", "sampler: rand", "search.sampler: found 'rand'. .*'random'"),
        ("pruner: halving", "pruner: halve", "search.pruner: found 'halve'"),
        ("trials: 7", "trials: 0", "search.trials: found 0"),
        ("sampler: random", "sampler: nsga2", "search.sampler: nsga2 weighs"),
        ("pruner: halving", "cost: gmacs\n  pruner: halving", "search.pruner: found halving, but"),
        ("sampler: random", "sampler: cmaes\n  cost: params", "search.sampler: cmaes has no"),
        ("sampler: random", "sampler: tpe\n  cost: time", "search.cost: found 'time'"),
        ("search:", "rows: {a: {}}\nsearch:", "expected either `rows` or `search`"),
    ],
)
def test_a_bad_search_space_is_told_with_its_key(write, old, new, expected):
    assert re.search(expected, message(write(SEARCH, change=(old, new))))


def test_files_and_overrides_that_do_not_exist(write):
    assert "Did you mean 'overlock_guidance'?" in message("overlock_guidanc")
    write()
    assert "Did you mean 'mine.yaml'?" in message("min.yaml")
    assert "expected KEY=VALUE" in message("mine.yaml", None, ["model.lr"])
    assert "Did you mean 'seeds'?" in message("mine.yaml", None, ["seed=3"])
    assert "is no search" in message("mine.yaml", None, ["trials=3"])
    assert find("mine.yaml") == Path("mine.yaml")


def test_the_two_examples_are_yaml():
    assert yaml.safe_load(FILE)
    assert yaml.safe_load(SEARCH)


# Mistakes, told before anything runs


def test_a_good_sweep_is_valid_and_leaves_nothing_behind(write, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    write()
    validate(read("mine.yaml"), build)
    validate(read(write(SEARCH)), build)
    assert sorted(tmp_path.rglob("*")) == sorted({*before, tmp_path / "mine.yaml"})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "backbone_args.gate: false",
            "backbone_args.gat: false",
            r"mine.yaml, rows.no_gate: test_overlock refuses .*\n.*'gat' Did you mean 'gate'",
        ),
        (
            "model.backbone_args.gate: false",
            "model.warmup_epoch: 1",
            "mine.yaml, rows.no_gate: --model.warmup_epoch: unknown option. .*model.warmup_epochs",
        ),
        ("model.backbone_args.gate: false", "model.lr: fast", "rows.no_gate: model.lr: found fast"),
        ("model.backbone_args.gate: false", "data.batch_size: 0", "rows.no_gate: data.batch_size"),
        ("backbone: test_overlock", "backbone: test_over", "profiles.tiny: timm has no model"),
        ("configs: [quickstart]\n", "configs: [quick]\n", "profiles.tiny: --config quick: no"),
        ("options: {model.backbone_args.gate: false}", "options: {}", "rows.no_gate: has the same"),
        ("val/top1", "val/top2", "mine.yaml, metric: ClassificationTask logs no 'val/top2'. .*top"),
    ],
)
def test_what_fit_would_refuse_is_told_with_file_and_row(write, old, new, expected):
    assert re.search(expected, message(write(change=(old, new)), check=True))


def test_a_bad_end_of_a_search_space_is_told(write):
    text = message(write(SEARCH, change=("[0.0, 0.1]", "[0.0, a]")), check=True)
    assert text.startswith("mine.yaml, search.space.model.label_smoothing a: ")


NAMES = ["w/o gate", "a\\b", ".hidden", "-x", "a:b", "x" * 81, "two\nlines", " x", "", "a\u202eb"]


@pytest.mark.parametrize("name", NAMES)
def test_row_names_that_are_no_folder_s_are_refused_when_read(write, name):
    """They were refused after all other rows had been trained."""
    write()
    content = yaml.safe_load(FILE)
    content["rows"][name] = {"options": {"model.lr": 0.5}}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    assert message("mine.yaml").startswith("mine.yaml, rows.")


@pytest.mark.parametrize("name", ["no", "null", "3", "1_000", "~", "true"])
def test_row_names_that_yaml_reads_as_something_else_are_refused(write, name):
    text = message(write(change=("  no_gate:", f"  {name}:")))
    assert re.search("in quotes", text)


@pytest.mark.parametrize(
    "name", ["3e8", "[x]", "with space", "漢字", "🙂", "a'b", "50 %", "x" * 80]
)
def test_other_names_of_rows_are_taken_as_they_are(write, name):
    write()
    content = yaml.safe_load(FILE)
    content["rows"][name] = {"options": {"model.lr": 0.5}}
    Path("mine.yaml").write_text(dump_yaml(content))
    sweep = read("mine.yaml")
    assert name in sweep.rows
    assert f"{name}-seed1" in sweep.arguments({}, 1, f"{name}-seed1")


def with_rows(**rows):
    """Write mine.yaml with further rows, and return its name."""
    content = yaml.safe_load(FILE)
    for place, (name, row) in enumerate(rows.pop("more").items()):
        content["rows"][name] = {"options": {"model.lr": 0.5 + place}} | row
    Path("mine.yaml").write_text(dump_yaml(content | rows))
    return "mine.yaml"


@pytest.mark.parametrize(
    "names",
    [
        ["Gate", "gate"],
        ["caf\u00e9", "cafe\u0301"],
        ["STRASSE", "stra\u00dfe"],
        ["\u00c5ngstr\u00f6m", "\u212bngstro\u0308m"],
    ],
)
def test_rows_whose_folders_a_file_system_might_not_tell_apart_are_refused(write, names):
    write()
    text = message(with_rows(more={name: {} for name in names}))
    assert text.startswith(f"mine.yaml, rows.{names[1]}: its run {names[1]}-seed1 would have")
    assert f"rows.{names[0]}'s run {names[0]}-seed1" in text


def test_tuned_runs_of_two_rows_have_folders_of_their_own(write):
    """Signs of a row's name become _ in the folders of its tuning."""
    write()
    tune = {"options": {"model.lr": [0.1, 0.2]}, "seeds": [7]}
    text = message(with_rows(more={"a b": {}, "a_b": {}}, tune=tune))
    assert "rows.a_b: its run a_b-lr=0.1-seed7 would have the folder of rows.a b's run" in text
    words = {"options": {"model.backbone": ["a/b", "a_b"]}, "seeds": [7]}
    assert "backbone=a_b-seed7 would have the folder of" in message(with_rows(more={}, tune=words))
    long = {"options": {"model.backbone": ["x" * 250, "y"]}, "seeds": [7]}
    assert "a run would have a name of 2" in message(with_rows(more={}, tune=long))


def test_two_rows_of_one_label_are_refused(write):
    write()
    labels = {"one": {"label": "all of it"}}
    assert "rows.one: has the label of rows.full, 'all of it'" in message(with_rows(more=labels))
    read(with_rows(more={"one": {"label": "All of it"}}))  # a reader tells them apart


@pytest.mark.parametrize(
    "name", ["*", "a?b", "[a-z]", "a{b}", "100%", "%s", "a%41", "$HOME", "a;b", "a&b", "a#b", "'"]
)
def test_signs_of_shells_and_urls_in_a_row_s_name_mean_nothing(write, name):
    write()
    if set(name) & set("*?"):  # refused by Windows' file systems
        assert "in a name that becomes a folder's" in message(with_rows(more={name: {}}))
        return
    sweep = read(with_rows(more={name: {}}))
    (job,) = [sweep.reported_job(name, 1, {})]
    assert job.folder == f"{name}-seed1"
    assert stored_sweep(json.loads(json.dumps(content_of(sweep))), Path()).rows.keys() >= {name}


def test_a_name_of_many_bytes_is_refused_before_the_other_rows_are_trained(write):
    write()
    read(with_rows(more={"\N{FOX FACE}" * 50: {}}))
    text = message(with_rows(more={"\N{FOX FACE}" * 80: {}}))
    assert "found 320 bytes in a name that becomes a folder's" in text


def test_seeds_are_a_list(write):
    text = message(write(change=("seeds: [1, 2]", "seeds: 3")))
    assert "[3] for the one seed 3" in text


def test_the_metric_s_unit_is_told_by_its_name_or_the_file(write):
    assert read(write()).percent
    assert not read(write(), None, ["metric=val/loss"]).percent
    assert not read(write(), None, ["unit=plain"]).percent
    assert read(write(), None, ["metric=val/mine", "unit=percent"]).percent
    assert not read(write(), None, ["metric=val/mine"]).percent


TUNED = "tune: {options: {model.lr: [1e-3, 2e-3]}, seeds: [9]}\n"


def test_a_grid_is_read_as_numbers_and_has_seeds_of_its_own(write):
    sweep = read(write(TUNED + FILE))
    assert sweep.tune.points == [{"model.lr": 0.001}, {"model.lr": 0.002}]
    assert [job.folder for job in sweep.tuning_jobs("full")] == [
        "full-lr=0.001-seed9",
        "full-lr=0.002-seed9",
    ]
    shared = message(write(TUNED.replace("[9]", "[2]") + FILE))
    assert shared.startswith("mine.yaml, tune.seeds: found [2], which the reported seeds share")
    assert "tune.options.model.lr: found" in message(write(TUNED.replace("2e-3", "1e-3") + FILE))


def test_comparisons_and_factors_name_rows_and_levels(write):
    text = "comparisons: [[full, no_gat]]\n" + FILE
    assert "comparisons: 'no_gat' is no row. Did you mean 'no_gate'?" in message(write(text))
    text = """\
metric: val/top1
baseline: gate_on-lr_low
factors:
  gate: {"on": {model.backbone_args.gate: true}, "off": {model.backbone_args.gate: false}}
  lr: {low: {model.lr: 0.1}, high: {model.lr: 0.2}}
profiles: {tiny: {configs: [quickstart]}}
"""
    rows = read(write(text)).rows
    assert list(rows) == [
        "gate_on-lr_low",
        "gate_on-lr_high",
        "gate_off-lr_low",
        "gate_off-lr_high",
    ]
    assert rows["gate_off-lr_high"].options == {
        "model.backbone_args.gate": False,
        "model.lr": 0.2,
    }
    some = text + 'rows: {a: {levels: {gate: "on", lr: low}}, b: {levels: {gate: "of", lr: low}}}'
    found = message(write(some, change=("gate_on-lr_low", "a")))
    assert found.startswith("mine.yaml, rows.b.levels.gate: found 'of'")


def test_rows_of_one_configuration_are_refused_when_the_file_is_read(write):
    text = message(write(change=("{options: {model.backbone_args.gate: false}}", "{}")))
    assert text.startswith("mine.yaml, rows.no_gate: has the same options as rows.full.")


def test_reading_a_sweep_file_needs_no_torch():
    code = (
        "import sys\n"
        "from lightning_overlock.sweep.read import read\n"
        "read('overlock_components')\n"
        "heavy = {'torch', 'lightning', 'timm', 'matplotlib', 'pandas', 'statsmodels', 'scipy'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
