"""Effects of factors, against effects that were put in."""

from pathlib import Path

import numpy as np
import pytest

from lightning_overlock.sweep.factors import effects
from lightning_overlock.sweep.read import read

FILE = """\
metric: val/top1
baseline: gate_on-mixer_a-dds_yes
factors:
  gate: {"on": {}, "off": {model.gate: false}}
  mixer: {a: {}, b: {model.mixer: b}, c: {model.mixer: c}}
  dds: {"yes": {}, "no": {model.dds: false}}
profiles: {tiny: {configs: [quickstart], seeds: [1, 2, 3]}}
"""
GATE, DDS, BOTH = 0.10, 0.02, 0.06
MIXER = {"a": 0.0, "b": 0.03, "c": -0.05}


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "mine.yaml").write_text(FILE)
    return read(Path(tmp_path / "mine.yaml"))


def values_of(sweep, rows=None, noise=1e-3):
    generator = np.random.default_rng(0)
    found = {}
    for name, row in sweep.rows.items():
        on, yes = row.levels["gate"] == "on", row.levels["dds"] == "yes"
        base = 0.5 + GATE * on + DDS * yes + BOTH * on * yes + MIXER[row.levels["mixer"]]
        # Seeds differ more than anything else, and are taken out.
        found[name] = {s: base + 0.2 * s + generator.normal(0, noise) for s in (1, 2, 3)}
    return found if rows is None else {name: found[name] for name in rows}


def test_effects_that_were_put_in_are_found(sweep):
    found = {effect.name: effect for effect in effects(sweep, values_of(sweep))}
    assert list(found) == ["gate", "mixer", "dds", "gate x mixer", "gate x dds", "mixer x dds"]
    # The mean over the other factor's levels has half of what both do together.
    assert found["gate"].value == pytest.approx(GATE + BOTH / 2, abs=2e-3)
    assert found["dds"].value == pytest.approx(DDS + BOTH / 2, abs=2e-3)
    assert found["gate"].levels == "on less off"
    assert found["gate"].low < found["gate"].value < found["gate"].high
    assert found["gate x dds"].p < 1e-6
    assert found["gate x mixer"].p > 0.01
    assert found["mixer"].value is None
    assert found["mixer"].p < 1e-6
    assert 0 < found["dds"].share < found["gate"].share < 1


def test_a_fraction_of_the_product_tells_the_factors_alone(sweep):
    rows = [
        "gate_on-mixer_a-dds_yes",
        "gate_on-mixer_b-dds_no",
        "gate_off-mixer_a-dds_no",
        "gate_off-mixer_c-dds_yes",
        "gate_on-mixer_c-dds_yes",
    ]
    found = effects(sweep, values_of(sweep, rows))
    assert [effect.name for effect in found] == ["gate", "mixer", "dds"]


def test_rows_that_cannot_tell_the_factors_have_no_effects(sweep):
    two = ["gate_on-mixer_a-dds_yes", "gate_off-mixer_a-dds_no"]
    assert effects(sweep, values_of(sweep, two)) == []
    assert effects(sweep, {}) == []
