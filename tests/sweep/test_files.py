"""Every shipped sweep is valid, and every one of its rows can be built and trained."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import lightning_overlock
from lightning_overlock.cli.build import build
from lightning_overlock.cli.main import main
from lightning_overlock.sweep.read import find, read, shipped
from lightning_overlock.sweep.validate import validate

ROOT = Path(lightning_overlock.__file__).parents[1]
EXPECTED = {
    "convneur_chunks",
    "convneur_fusion",
    "convneur_memory",
    "convneur_operator",
    "convneur_placement",
    "convneur_width",
    "crossing",
    "fashion_mnist",
    "learning_rate",
    "overlock_components",
    "overlock_guidance",
    "overlock_kernels",
    "overlock_overview",
    "overlock_pathfinder",
}
# Those that decide one claim, on a task made for it; the others also have the paper's protocol.
CLAIMS = {"convneur_memory", "overlock_overview", "overlock_pathfinder"}
# Needs its data and a run of its own: test_fashion_mnist.py.
FASHION = "fashion_mnist"
# Those whose question no paper asks.
OURS = {"crossing", FASHION, *CLAIMS}
# arXiv 2603.19567, ablations on M3: top-1 and FLOPs (G)
PUBLISHED = {
    "convneur_placement": {"none": (78.2, 1.4), "stage": (80.0, 1.8), "block": (80.4, 2.3)},
    "convneur_operator": {
        "cbam": (78.4, 1.5),
        "non_local": (79.1, 3.0),
        "self_attention": (79.8, 1.8),
        "ir_rwkv": (77.6, 2.0),
        "titans": (79.6, 3.1),
        "memory": (80.0, 1.8),
    },
    "convneur_fusion": {"add": (79.6, 1.8), "concat": (79.5, 1.9), "gate": (80.0, 1.8)},
    "convneur_width": {"once": (78.6, 1.5), "twice": (80.0, 1.8), "four_times": (80.3, 2.7)},
}


def profiles(name):
    return list(yaml.safe_load(find(name).read_text())["profiles"])


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def images(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((70, 80, 3), np.uint8)).save(folder / "0.png")
    return tmp_path / "images"


def test_the_sweeps_are_those_of_the_readme():
    assert set(shipped()) == EXPECTED
    for name in EXPECTED:
        expected = {"mini"} if name in OURS else {"mini", "imagenet"}
        expected = {"networks"} if name == FASHION else expected
        expected = {"claims", "extended"} if name in CLAIMS else expected
        assert expected <= set(profiles(name))


def test_the_wheel_carries_the_sweeps_where_they_are_looked_for():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"]["force-include"] == {
        f"sweeps/{name}.yaml": f"lightning_overlock/sweeps/{name}.yaml" for name in EXPECTED
    }


def test_published_figures_are_the_paper_s_and_overlock_has_none():
    for name in EXPECTED - OURS:
        rows = read(name, "imagenet").rows
        if name in PUBLISHED:
            found = {name: (row.paper.top1, row.paper.gmacs) for name, row in rows.items()}
            assert found == PUBLISHED[name]
            assert all("2603.19567" in row.paper.source for row in rows.values())
        else:
            assert not any(row.paper for row in rows.values())


def test_rows_that_cannot_be_run_say_so():
    missing = {n for name in EXPECTED for n, r in read(name).rows.items() if r.missing}
    assert missing == {"ir_rwkv", "titans"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXPECTED - OURS))
def test_every_row_of_the_papers_protocol_can_be_built(name, images):
    validate(read(name, "imagenet", [f"data.root={images}"]), build)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "profile"),
    [(n, p) for n in sorted(EXPECTED - {FASHION}) for p in profiles(n) if p != "imagenet"],
)
def test_every_row_is_valid_and_trains_a_step(name, profile, capsys):
    sweep = read(name, profile)
    validate(sweep, build)
    assert not Path("runs").exists()
    # Of a search, one point
    points = [row.options for row in sweep.rows.values() if not row.missing]
    if sweep.search is not None:
        points = [{"model.lr": 1e-3, "model.weight_decay": 0.01, "model.label_smoothing": 0.1}]
        assert points[0].keys() == sweep.search.space.keys()
    for options in points:
        small = {"data.batch_size": 2, "trainer.fast_dev_run": True}
        assert main(sweep.arguments(options | small, sweep.seeds[0], "row")) == 0


@pytest.mark.parametrize("name", ["overlock_components", "convneur_width"])
def test_rows_differ_in_what_they_build(name):
    """Above all, none of the options is dropped on the way to the network."""
    sweep = read(name)
    sizes = {}
    for name, row in sweep.rows.items():
        task, _ = build(sweep.arguments(row.options, 1, name))
        sizes[name] = sum(p.numel() for p in task.parameters())
    assert len(set(sizes.values())) == len(sizes)
