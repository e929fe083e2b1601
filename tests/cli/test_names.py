"""Names that users give go through YAML, files, tables and figures unharmed, or are refused."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from PIL import Image
from rich.console import Console

from lightning_overlock.cli.main import main
from lightning_overlock.cli.request import read_request
from lightning_overlock.errors import InputError, printable
from lightning_overlock.runs.config import checkpoint_config
from lightning_overlock.runs.layout import run_folder, run_of
from lightning_overlock.tables import Table
from lightning_overlock.yaml_files import dump_yaml, parse_yaml

NAMES = [
    "3e8", "1e-3", "1_000", "010", "0x1F", "1:30", "2026-01-01", ".5", "+1", "-0", "inf", ".nan",
    "null", "~", "no", "yes", "True", "on", "=", "<<", "*star", "&anchor", "!tag", "%percent",
    "@at", "`tick`", "[brackets]", "[red]bold[/red]", "{braces}", r"$\ours$", "$x_1$", "a: b",
    "- dash", "? key", "# comment", "a #b", "it's", '"quoted"', "two  blanks", "a,b", "a;b", "a|b",
    "<b>", "&amp;", "back\\slash", "w_o", "x^2", "~home", "größer", "Ω", "日本語", "שלום", "مرحبا",
    "🦊", "👩‍🔬", "e\u0301", "x" * 200,
]  # fmt: skip
# What people's keyboards and file systems may give: any text without lone surrogates.
TEXT = st.one_of(
    st.sampled_from(NAMES),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.from_regex(r"[-+0-9._eExobnNaAiIfF:~]{1,12}", fullmatch=True),
)
# Names with line breaks and other control characters are refused when they are read.
READABLE = TEXT.filter(lambda name: printable(name) == name)
FAST = settings(max_examples=300, deadline=None)


def every_reader(text):
    """Return a YAML text as PyYAML, jsonargparse and the package read it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--names", type=list[str])
    parser.add_argument("--key", type=dict)
    return (
        yaml.safe_load(text),
        parse_yaml(text, "here"),
        parser.parse_string(text).as_dict(),
    )


@FAST
@given(st.lists(TEXT, min_size=1, max_size=4), TEXT)
def test_every_reader_of_a_configuration_gets_the_names_that_were_written(names, key):
    content = {"names": names, "key": {"inner": key, "number": 3e8, "small": 1e-5, "none": None}}
    for found in every_reader(dump_yaml(content)):
        assert found == content


@FAST
@given(TEXT)
def test_a_run_s_name_is_kept_or_refused_when_it_is_read(name):
    try:
        folder = run_folder(name)
    except InputError:
        return
    assert folder.name == name
    assert printable(name) == name
    assert len(name.encode()) <= 240
    assert parse_yaml(dump_yaml({"name": name}), "here") == {"name": name}
    assert run_of(folder / "checkpoints" / "last.ckpt") in {name, None}


@FAST
@given(st.lists(READABLE, min_size=1, max_size=3), READABLE)
def test_tables_show_names_as_they_are(names, heading):
    rows = [{"": name, heading: 1.5} for name in names]
    table = Table.of(rows)
    read = list(csv.reader(io.StringIO(table.csv(), newline="")))
    assert [line[0] for line in read[-len(names) :]] == names
    for text in (table.markdown(), table.latex()):
        assert isinstance(text, str)
    console = Console(file=io.StringIO(), width=4000, legacy_windows=False)
    console.print(table.terminal())
    shown = console.file.getvalue()
    assert all(name in shown for name in names if name.isprintable() and name.isascii())


@pytest.mark.parametrize("name", NAMES)
def test_every_such_name_of_a_run_reaches_the_request(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"--name={name}"]
    if name.startswith("-") or "/" in name:
        with pytest.raises(InputError, match="--name"):
            read_request("fit", words)
        return
    assert read_request("fit", words).name == name
    Path("mine.yaml").write_text(dump_yaml({"name": name}))
    assert read_request("fit", ["--config=mine.yaml"]).name == name
    run_folder(name).mkdir(parents=True)


def test_a_checkpoint_s_classes_are_what_they_were():
    content = {
        "config": dump_yaml({"model": {"class_path": "X"}, "data": {"init_args": {"of": NAMES}}}),
        "hyper_parameters": {"class_names": NAMES},
    }
    own = checkpoint_config(content, "here")
    assert own["model"]["init_args"]["class_names"] == NAMES
    assert own["data"]["init_args"]["of"] == NAMES
    for found in every_reader(dump_yaml({"names": own["model"]["init_args"]["class_names"]})):
        assert found["names"] == NAMES


def test_a_printed_configuration_is_read_as_it_was_given(tmp_path, capsys):
    words = ["fit", "--config=segmentation_quickstart"]
    given = [name for name in NAMES if name.isascii()]
    data = {"class_path": "SegmentationFolderDataModule", "init_args": {"class_names": given}}
    Path("names.yaml").write_text(dump_yaml({"data": data}))
    assert main([*words, "--config=names.yaml", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["data"]["init_args"]["class_names"] == given
    assert parse_yaml(printed, "here")["data"]["init_args"]["class_names"] == given
    Path("printed.yaml").write_text(printed)
    assert main(["fit", "--config=printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed


def test_classes_with_such_names_are_trained_evaluated_continued_and_predicted(tmp_path):
    # A folder whose name begins with a point is hidden, as everywhere.
    names = sorted(n for n in NAMES if "/" not in n and len(n) < 100 and not n.startswith("."))
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / name / "0.png")
    small = [
        "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    first = [
        "fit", "--model=ClassificationTask", "--model.backbone=test_convnext",
        "--data=ImageFolderDataModule", f"--data.root={tmp_path / 'data'}", "--data.image_size=32",
        "--data.batch_size=4", "--data.num_workers=0", "--name=[3e8]", *small,
    ]  # fmt: skip
    assert main([*first, "--trainer.max_epochs=1"]) == 0
    run = Path("runs/[3e8]")
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == names
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    assert main(["fit", "--name=[3e8]", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0
    shutil.move(tmp_path / "data" / "val", tmp_path / "pictures")
    shutil.rmtree(tmp_path / "data")
    words = [f"--data.predict_dir={tmp_path / 'pictures'}", "--trainer.limit_predict_batches=1"]
    assert main(["predict", "--ckpt_path", str(run), *words]) == 0
    with next(run.glob("predictions*.csv")).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["class1"] for row in rows} <= set(names)
