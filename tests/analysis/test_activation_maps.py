"""Maps of classifiers whose logits are linear in the features, so that slopes are their weights."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.activation_maps import (
    activation_maps,
    plot_activation_maps,
    share_inside,
    stage_names,
)


def linear_model():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    return model.double()


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
def test_maps_of_a_linear_model_have_a_closed_form(method):
    torch.manual_seed(0)
    model, images = linear_model(), torch.randn(3, 3, 6, 8, dtype=torch.float64)
    classes = [2, 0, 3]
    found = activation_maps(model, images, ["0"], classes, method)["0"]
    features = model[0](images).detach().numpy()
    weights = model[3].weight.detach().numpy()[classes] / 48
    if method == "layer_cam":
        weights = weights.clip(0)
    expected = np.einsum("bc,bchw->bhw", weights, features).clip(0)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_methods_differ_where_slopes_differ_from_pixel_to_pixel():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Identity()

        def forward(self, x):
            return self.features(x)[:, :2, 0, 0]

    images = torch.full((1, 3, 2, 2), 2.0)
    grad_cam = activation_maps(Corner(), images, ["features"], [0])["features"]
    layer_cam = activation_maps(Corner(), images, ["features"], [0], "layer_cam")["features"]
    np.testing.assert_allclose(grad_cam, np.full((1, 2, 2), 0.5))
    np.testing.assert_allclose(layer_cam, [[[2, 0], [0, 0]]])


def test_without_classes_the_found_one_is_explained():
    torch.manual_seed(0)
    model, images = linear_model(), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    found = model(images).argmax(1)
    np.testing.assert_array_equal(
        activation_maps(model, images, ["0"])["0"],
        activation_maps(model, images, ["0"], found)["0"],
    )


@pytest.mark.parametrize("name", ["test_overlock", "test_convneur", "test_resnet", "test_vit"])
def test_every_stage_of_any_backbone_has_maps(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    size = 160 if "vit" in name else 64
    maps = activation_maps(model, torch.randn(2, 3, size, size))
    assert list(maps) == stage_names(model)
    assert all(found.ndim == 3 and found.shape[0] == 2 for found in maps.values())
    assert all((found >= 0).all() for found in maps.values())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_maps_of_channels_last_networks_lie_the_right_way():
    class Swinlike(nn.Module):
        output_fmt = "NHWC"

        def __init__(self):
            super().__init__()
            self.stage = nn.Identity()

        def forward(self, x):
            return self.stage(x.permute(0, 2, 3, 1)).mean((1, 2))

    images = torch.rand(1, 3, 4, 6)
    found = activation_maps(Swinlike(), images, ["stage"], [1])["stage"]
    np.testing.assert_allclose(found, images[:, 1] / 24, rtol=1e-5)


def test_tokens_become_maps_without_the_class_token():
    model = timm.create_model("test_vit", num_classes=3)
    maps = activation_maps(model, torch.randn(1, 3, 160, 160), ["blocks.1"])
    assert maps["blocks.1"].shape == (1, 10, 10)


def test_the_overview_alone_sees_nothing_of_focus_net():
    torch.manual_seed(0)
    model = timm.create_model("test_overlock", num_classes=3, overview_head=True)
    images = torch.randn(1, 3, 64, 64)
    maps = activation_maps(model, images, output="overview")
    assert list(maps) == ["base.0", "base.1", "base.2", "overview"]
    with pytest.raises(ValueError, match=r"'focus.0' has no part in the overview"):
        activation_maps(model, images, ["focus.0"], output="overview")


def test_stages_of_a_plain_pyramid():
    model = timm.create_model("test_overlock", num_classes=3, dds=False)
    maps = activation_maps(model, torch.randn(1, 3, 64, 64))
    assert list(maps) == ["base.0", "base.1", "base.2", "focus.0", "base.3", "focus.1"]


def test_unknown_names_are_refused():
    model, images = linear_model(), torch.randn(1, 3, 5, 5)
    with pytest.raises(ValueError, match="expected one of"):
        activation_maps(model, images, ["0"], method="gradcam")
    with pytest.raises(ValueError, match="no module 'O'"):
        activation_maps(model, images, ["O"])
    with pytest.raises(ValueError, match=r"expected a map \(B, C, h, w\)"):
        activation_maps(model, images, ["3"])


def test_share_inside_a_box():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 1, 2] = 5
    maps[1] = 1
    boxes = np.array([[2, 1, 3, 2], [0, 0, 4, 1], [0, 0, 4, 4]])
    np.testing.assert_allclose(share_inside(maps, boxes, (4, 4)), [1, 0.25, np.nan])


def test_figure_has_a_row_per_image():
    figure = plot_activation_maps(
        torch.rand(2, 3, 8, 8), {"a": np.zeros((2, 2, 2), np.float32)}, ["seven", "two"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["seven", "a", "two", ""]
    figure.canvas.draw()
