"""Kernels of ContMix layers made by hand."""

import numpy as np
import pytest
import timm
import torch

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.kernels import (
    context_rows,
    dynamic_kernels,
    effective_size,
    entropy,
    exchanged_prior,
    kernel_rows,
    on_map,
    plot_context,
    plot_kernels,
)
from lightning_overlock.layers import ContMix


def silent_layer(**kwargs):
    """A layer whose affinities and biases are zero."""
    layer = ContMix(8, kernel_size=5, small_kernel=3, num_heads=1, **kwargs)
    torch.nn.init.zeros_(layer.kernel_map.weight)
    torch.nn.init.zeros_(layer.kernel_map.bias)
    return layer


def test_without_affinities_kernels_are_uniform():
    kernels = dynamic_kernels(silent_layer(), torch.randn(2, 8, 6, 7))
    assert list(kernels) == ["5x5", "3x3"]
    for size in (5, 3):
        found = kernels[f"{size}x{size}"]
        assert found.shape == (2, 2, 6, 7, size, size)
        np.testing.assert_allclose(found, 1 / size**2, rtol=1e-5)
        np.testing.assert_allclose(entropy(found), np.log(size**2), rtol=1e-5)
        np.testing.assert_allclose(effective_size(found), size, rtol=1e-5)
    rows = kernel_rows(kernels)
    assert [(row["kernel"], row["group"]) for row in rows] == [
        ("5x5", 0),
        ("5x5", 1),
        ("3x3", 0),
        ("3x3", 1),
    ]
    assert rows[0]["entropy nats"] == pytest.approx(np.log(25), rel=1e-5)
    assert rows[0]["share of log K^2"] == pytest.approx(1, rel=1e-5)


def test_a_strong_bias_makes_kernels_of_one_tap():
    layer = silent_layer()
    with torch.no_grad():
        # The taps one row above and two columns left of the pixel, for the second group only.
        layer.large_bias[1, 4 - 1, 4 - 2] = 200
    found = dynamic_kernels(layer, torch.randn(1, 8, 9, 9))["5x5"]
    np.testing.assert_allclose(entropy(found[:, 1, 2:7, 2:7]), 0, atol=1e-6)
    np.testing.assert_allclose(effective_size(found[:, 1, 2:7, 2:7]), 1, atol=1e-6)
    np.testing.assert_allclose(entropy(found[:, 0]), np.log(25), rtol=1e-5)
    placed = on_map(found, 4, 5)
    assert placed[0, 1].argmax() == 3 * 9 + 3
    assert placed[0, 1].sum() == pytest.approx(1)
    # At the corner the window is clamped: that tap lies outside and nothing is preferred.
    np.testing.assert_allclose(on_map(found, 0, 0)[0, 1, :5, :5], 1 / 25, rtol=1e-5)
    assert on_map(found, 8, 8)[0, 1].argmax() == 7 * 9 + 6


def test_a_map_smaller_than_the_kernel_is_named_by_its_resized_size():
    found = dynamic_kernels(silent_layer(), torch.randn(1, 8, 3, 4))["5x5"]
    assert found.shape[2:4] == (5, 6)


def test_entropy_of_a_known_distribution():
    weights = np.array([[0.5, 0.25], [0.25, 0.0]])
    assert entropy(weights) == pytest.approx(1.5 * np.log(2))
    assert effective_size(weights) == pytest.approx(2**0.75)


def test_every_layer_of_the_model_is_found():
    model = timm.create_model("test_overlock")
    kernels = dynamic_kernels(model, torch.randn(1, 3, 64, 96))
    assert set(kernels) == {
        f"focus.{stage}.blocks.{block} {size}"
        for stage in (0, 1)
        for block in (0, 1)
        for size in ("7x7", "5x5")
    }
    assert kernels["focus.0.blocks.0 7x7"].shape[2:4] == (7, 10)  # of 4 x 6
    assert model.training


def test_kernels_that_do_not_look_at_the_context_do_not_react_to_it():
    torch.manual_seed(0)
    model = timm.create_model("test_overlock")
    for module in model.modules():
        if isinstance(module, ContMix):
            torch.nn.init.zeros_(module.kernel_map.weight)
    rows = context_rows(model, torch.randn(2, 3, 64, 64))
    assert max(row["change"] for row in rows) < 1e-6
    assert max(row["difference"] for row in rows) < 1e-6


def test_kernels_of_the_same_image_twice_do_not_change():
    torch.manual_seed(0)
    model = timm.create_model("test_overlock")
    rows = context_rows(model, torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1))
    assert max(row["change"] for row in rows) < 1e-5


def test_change_is_the_total_variation_distance():
    torch.manual_seed(0)
    model = timm.create_model("test_overlock").eval()
    for layer in model.modules():
        if isinstance(layer, ContMix):  # untrained kernels are all alike to seven digits
            torch.nn.init.normal_(layer.query.conv.weight)
            torch.nn.init.normal_(layer.key.conv.weight)
            torch.nn.init.normal_(layer.kernel_map.weight)
    images = torch.randn(2, 3, 64, 64)
    own = dynamic_kernels(model, images)["focus.0.blocks.0 7x7"]
    with exchanged_prior(model):
        other = dynamic_kernels(model, images)["focus.0.blocks.0 7x7"]
    row = context_rows(model, images)[0]
    assert row["kernel"] == "focus.0.blocks.0 7x7"
    by_hand = np.abs(own[:, 0] - other[:, 0]).sum((-1, -2)).mean() / 2
    assert 0 < row["change"] == pytest.approx(by_hand, rel=1e-5)
    assert not model.context_prior_tap.wanted


def test_the_prior_that_is_exchanged_is_the_neighbours():
    model = timm.create_model("test_overlock").eval()
    seen = []
    handle = model.focus[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        model(images := torch.randn(3, 3, 64, 64))
        with exchanged_prior(model):
            model(images)
    handle.remove()
    torch.testing.assert_close(seen[1], seen[0][[2, 0, 1]])


def test_models_without_a_context_are_refused():
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match="no ContMix layer"):
        dynamic_kernels(timm.create_model("test_convneur"), images)
    with pytest.raises(ValueError, match="no context prior"):
        context_rows(timm.create_model("test_overlock", dds=False), images)
    with pytest.raises(ValueError, match="takes two"):
        context_rows(timm.create_model("test_overlock"), images[:1])


def test_figures_draw():
    torch.manual_seed(0)
    model, images = timm.create_model("test_overlock"), torch.randn(2, 3, 64, 64)
    kernels = dynamic_kernels(model, images)
    two = {name: kernels[name] for name in list(kernels)[:2]}
    figure = plot_kernels(images[1], two, [(0, 0), (63, 63)], group=1, index=1)
    assert len(figure.axes) == 2 * 3
    figure.canvas.draw()
    plot_context(context_rows(model, images)).canvas.draw()
