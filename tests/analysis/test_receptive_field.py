"""Fields whose shape is known: one convolution, two of them, a whole-image mean."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.analysis.receptive_field import (
    central_square,
    field_rows,
    plot_receptive_fields,
    receptive_fields,
)


def convolution(size, stride=1, weight=0.5):
    conv = nn.Conv2d(3, 4, size, stride, size // 2, bias=False)
    nn.init.constant_(conv.weight, weight)
    return conv


def test_one_convolution_sees_its_window_evenly():
    fields = receptive_fields(convolution(7, weight=-0.5), torch.randn(5, 3, 15, 15), batch_size=2)
    expected = np.zeros((15, 15))
    expected[4:11, 4:11] = 1 / 49
    np.testing.assert_allclose(fields["output 0"], expected, atol=1e-7)


def test_two_convolutions_see_the_convolution_of_their_windows():
    model = nn.Sequential(convolution(3), nn.Conv2d(4, 2, 3, padding=1, bias=False))
    nn.init.ones_(model[1].weight)
    (field,) = receptive_fields(model, torch.randn(2, 3, 11, 11)).values()
    line = np.array([1, 2, 3, 2, 1]) / 9
    np.testing.assert_allclose(field[3:8, 3:8], np.outer(line, line), atol=1e-6)
    assert field[3:8, 3:8].sum() == pytest.approx(1)


def test_slopes_of_all_images_count_whatever_their_sign():
    class SignOfImage(nn.Module):
        def forward(self, x):
            return x * x.mean((1, 2, 3), keepdim=True).sign().detach()

    images = torch.cat([torch.ones(1, 3, 5, 5), -torch.ones(1, 3, 5, 5)])
    (field,) = receptive_fields(SignOfImage(), images).values()
    assert field[2, 2] == 1


def test_squares_of_an_even_field():
    field = np.zeros((20, 20))
    field[3:10, 5:12] = 1 / 49
    square = central_square(field, 0.99)
    assert square == (7, 49 / 400, 6, 8)
    assert central_square(field, 1).side == 7
    assert central_square(field, 9 / 49).side == 3
    assert central_square(field, 9.1 / 49).side == 5


def test_squares_lie_between_pixels_where_the_mass_does():
    field = np.zeros((8, 8))
    field[2:6, 2:6] = 1 / 16
    assert central_square(field, 0.25) == (2, 4 / 64, 3.5, 3.5)
    assert central_square(field, 0.99).side == 4


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 9).flatmap(
        lambda n: st.lists(st.floats(0.01, 1), min_size=n * 7, max_size=n * 7)
    ),
    st.floats(0.01, 1),
)
def test_a_square_holds_its_share_and_more_takes_a_larger_one(values, share):
    field = np.array(values).reshape(-1, 7)
    field /= field.sum()
    square = central_square(field, share)
    rows, columns = np.indices(field.shape)
    near = np.maximum(abs(rows - square.row), abs(columns - square.column))
    pixels = round(square.area * field.size)
    inside = near <= np.sort(near.ravel())[pixels - 1]
    assert inside.sum() == pixels
    assert field[inside].sum() >= share - 1e-6
    assert central_square(field, share / 2).area <= square.area


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="expected above 0 and at most 1"):
        central_square(np.ones((2, 2)), share)


def test_table_names_what_it_holds():
    (row,) = field_rows({"all": np.full((10, 10), 0.01)})
    assert row["stage"] == "all"
    assert row["20 % side px"] == pytest.approx(6)  # 4 x 4 is 16 %, 6 x 6 is 36 %
    assert row["99 % area"] == 1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_overlock", "test_convneur"])
def test_any_backbone_has_a_field_per_stage(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2)
    size = 160 if "vit" in name else 64
    fields = receptive_fields(model, torch.randn(1, 3, size, size))
    assert list(fields) == [info["module"] for info in model.feature_info]
    for field in fields.values():
        assert field.shape == (size, size)
        assert field.sum() == pytest.approx(1)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chosen_stages_keep_their_names_whatever_the_order():
    torch.manual_seed(0)
    model, images = timm.create_model("test_overlock"), torch.randn(1, 3, 64, 64)
    some, everything = receptive_fields(model, images, [4, 0]), receptive_fields(model, images)
    assert list(some) == ["base.0", "overview"]
    for name, field in some.items():
        np.testing.assert_allclose(field, everything[name], atol=1e-9)


def test_features_only_models_give_the_same_fields():
    torch.manual_seed(0)
    model = timm.create_model("test_convneur")
    maps = timm.create_model("test_convneur", features_only=True)
    maps.load_state_dict({f"model.{k}": v for k, v in model.state_dict().items()}, strict=False)
    images = torch.randn(1, 3, 64, 64)
    whole, only = receptive_fields(model, images), receptive_fields(maps, images)
    assert list(whole) == list(only)
    np.testing.assert_allclose(whole["stages.2"], only["stages.2"], atol=1e-7)


def test_what_has_no_map_is_refused():
    with pytest.raises(ValueError, match=r"expected a map \(B, C, h, w\)"):
        receptive_fields(nn.Flatten(), torch.randn(1, 3, 4, 4))


def test_figure_has_a_panel_per_stage_with_named_axes():
    fields = receptive_fields(convolution(7), torch.randn(1, 3, 15, 15))
    figure = plot_receptive_fields(fields)
    assert figure.axes[0].get_xlabel() == "column (px)"
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["50 %: 5 px", "99 %: 7 px"]
    figure.canvas.draw()


def test_cells_are_means_and_leave_the_squares_alone():
    field = np.zeros((8, 12))
    field[2, 3] = 0.75
    field[3, 2] = 0.25
    figure = plot_receptive_fields({"stage": field}, cell=2)
    drawn = figure.axes[0].images[0]
    expected = np.full((4, 6), 1e-4)
    expected[1, 1] = 1
    np.testing.assert_allclose(drawn.get_array(), expected)
    assert list(drawn.get_extent()) == [-0.5, 11.5, 7.5, -0.5]
    fine = plot_receptive_fields({"stage": field})
    labels = [
        [text.get_text() for text in f.axes[0].get_legend().get_texts()] for f in (figure, fine)
    ]
    assert labels[0] == labels[1]
    with pytest.raises(ValueError, match="8x12; expected multiples of cell=5"):
        plot_receptive_fields({"stage": field}, cell=5)
