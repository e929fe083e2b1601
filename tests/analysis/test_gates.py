"""Gates of known weights."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.gates import Gate, gate_rows, gates, plot_gates


def test_convneurs_gate_of_known_weights():
    torch.manual_seed(0)
    model = timm.create_model("test_convneur").eval()
    for stage in model.stages:
        torch.nn.init.zeros_(stage.global_branch.expand.weight)
        torch.nn.init.constant_(stage.global_branch.expand.bias, np.log(3))  # sigmoid: 3/4
    images = torch.randn(2, 3, 64, 64)
    found = gates(model, images)
    assert list(found) == [f"stages.{i}.blocks.0" for i in range(4)]
    with torch.no_grad():
        x = model.stages[0].downsample(model.stem(images))
        block = model.stages[0].blocks[0]
        local = block.mlp(block.norm(block.conv(x))).numpy()
    before, gate, after = found["stages.0.blocks.0"]
    np.testing.assert_allclose(gate, 0.75, rtol=1e-6)
    np.testing.assert_allclose(before, local, atol=1e-6)
    np.testing.assert_allclose(after, 0.75 * local, atol=1e-6)
    row = gate_rows(found)[0]
    assert row["mean"] == pytest.approx(0.75)
    assert row["local kept"] == pytest.approx(0.75)


def test_overlocks_gate_of_known_weights():
    torch.manual_seed(0)
    model = timm.create_model("test_overlock")
    for stage in model.focus:
        for block in stage.blocks:
            torch.nn.init.zeros_(block.gate[0].conv.weight)
            torch.nn.init.constant_(block.gate[0].norm.bias, 2.0)
    inputs = []
    block = model.focus[1].blocks[1]
    handle = block.proj.register_forward_pre_hook(lambda _m, x: inputs.append(x[0]))
    found = gates(model, torch.randn(2, 3, 64, 64))
    handle.remove()
    assert list(found) == [f"focus.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    before, gate, after = found["focus.1.blocks.1"]
    np.testing.assert_allclose(gate, F.silu(torch.tensor(2.0)), rtol=1e-6)
    np.testing.assert_allclose(after, before * gate, rtol=1e-6)
    # What the projection behind the gate takes in is the map after it.
    np.testing.assert_allclose(after, inputs[0].numpy(), rtol=1e-6)
    assert model.training


def test_variance_of_a_gate_is_shared_out():
    ones = np.ones((2, 3, 4, 5), np.float32)
    by_channel = ones * np.array([0, 1, 2], np.float32).reshape(1, 3, 1, 1)
    by_place = ones * np.arange(5, dtype=np.float32)
    by_image = ones * np.array([0, 1], np.float32).reshape(2, 1, 1, 1)
    found = {
        name: Gate(ones, gate, gate)
        for name, gate in (("channel", by_channel), ("place", by_place), ("image", by_image))
    }
    for row in gate_rows(found):
        for name in found:
            assert row[f"by {name}"] == pytest.approx(float(name == row["block"]))


@pytest.mark.parametrize(
    ("name", "switch"), [("test_overlock", {"gate": False}), ("test_convneur", {"fusion": "add"})]
)
def test_models_without_a_gate_are_refused(name, switch):
    with pytest.raises(ValueError, match="the model has no gate"):
        gates(timm.create_model(name, **switch), torch.randn(1, 3, 64, 64))


def test_figure_shows_the_first_gate_of_every_stage():
    images = torch.randn(2, 3, 64, 64)
    figure = plot_gates(images[0], gates(timm.create_model("test_overlock"), images))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:4] == ["focus.0.blocks.0", "local map before", "gate", "map after"]
    assert titles[4:] == ["focus.1.blocks.0"]
    figure.canvas.draw()
