"""Dense features of several families of backbones, and the weights that they start from."""

import re

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch.nn import functional as F

from lightning_overlock.backbones.features import REDUCTIONS, DenseFeatures
from lightning_overlock.errors import InputError

SMALL = ["test_overlock", "test_convneur", "test_resnet", "test_convnext", "test_efficientnet"]


def raised_by_one(model):
    """Return a state dict in which no tensor is as a new model has it."""
    state = model.state_dict()
    return {k: v + 0.1 if v.is_floating_point() else v + 3 for k, v in state.items()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
def test_four_maps_of_any_backbone_at_any_size_and_a_gradient_for_every_parameter(name, size):
    features = DenseFeatures(name)
    maps = features(torch.randn(2, 3, *size))
    assert features.reductions == [4, 8, 16, 32]
    for x, channels, reduction in zip(maps, features.channels, features.reductions, strict=True):
        assert x.shape[:2] == (2, channels)
        for found, side in zip(x.shape[2:], size, strict=True):
            assert side // reduction <= found <= -(-side // reduction)
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [n for n, p in features.named_parameters() if p.grad is None] == []


def test_a_backbone_that_works_in_channels_last_gives_maps_with_channels_first():
    features = DenseFeatures(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 64},
    )
    assert features.channels == [12, 24, 48, 96]
    maps = features(torch.randn(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in maps] == [(12, 16, 16), (24, 8, 8), (48, 4, 4), (96, 2, 2)]
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    assert [n for n, p in features.named_parameters() if p.grad is None] == []
    with pytest.raises(InputError, match=r"no images of \(3, 96, 96\)"):
        features(torch.randn(1, 3, 96, 96))


@pytest.mark.parametrize("name", ["test_resnet", "test_convneur"])
def test_every_map_is_the_backbones_own_normalised_over_channels(name):
    features = DenseFeatures(name).eval()
    whole = timm.create_model(name, features_only=True).eval()
    state = dict(features.backbone.state_dict())
    whole.load_state_dict(
        {k: state.get(k, state.get(re.sub(r"^model\.", "", k))) for k in whole.state_dict()},
        strict=False,
    )
    images = torch.randn(1, 3, 64, 64)
    for found, plain in zip(features(images), whole(images)[-4:], strict=True):
        expected = F.layer_norm(plain.permute(0, 2, 3, 1), plain.shape[1:2], eps=1e-6)
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_the_overview_starts_with_almost_no_weight_on_the_last_map():
    torch.manual_seed(0)
    features = DenseFeatures("test_overlock", overview=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with_overview = features(images)[3]
    features.overview_scale.weight.data.zero_()
    without = features(images)[3]
    assert 0 < (with_overview - without).abs().max() < 1e-4
    features.overview_scale.weight.data.fill_(1)
    features.overview_proj.weight.data.zero_()
    features.overview_proj.bias.data.fill_(2)
    torch.testing.assert_close(features(images)[3], without + 2)


@pytest.mark.parametrize(
    ("name", "arguments", "overview", "said"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, False, r"reductions \[16\].*\n.*4, 8, 16, 32"),
        ("test_convnext", {}, True, "no overview"),
        ("test_overlock", {"dds": False}, True, "no overview"),
        ("test_overlok", {}, False, "Did you mean 'test_overlock'"),
        ("test_overlock", {"num_classes": 3}, False, "num_classes"),
    ],
)
def test_backbones_that_cannot_do_it_say_why(name, arguments, overview, said):
    with pytest.raises(InputError, match=said) as raised:
        DenseFeatures(name, arguments, overview)
    assert str(raised.value).count("\n") <= 2


def test_backbone_arguments_reach_the_backbone():
    features = DenseFeatures("test_overlock", {"drop_path_rate": 0.3, "gate": False})
    rates = [m.drop_prob for m in features.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    names = [name for name, _ in features.named_modules()]
    assert not [name for name in names if re.search(r"blocks\.\d+\.gate$", name)]


@pytest.mark.parametrize("name", ["test_overlock", "test_convnext", "test_resnet"])
def test_a_classifiers_weights_reach_the_backbone_and_its_head_is_named(name):
    source = raised_by_one(timm.create_model(name, num_classes=7))
    features = DenseFeatures(name)
    before = {k: v.clone() for k, v in features.norms.state_dict().items()}
    unused, new = features.load_weights(source)
    for key, value in features.backbone.state_dict().items():
        assert torch.equal(value, source[key]), key
    assert sorted(unused) == sorted(source.keys() - features.backbone.state_dict().keys())
    assert unused
    assert new == [f"norms.{key}" for key in before]
    assert all(torch.equal(value, before[k]) for k, value in features.norms.state_dict().items())


def test_the_weights_of_an_overview_head_are_among_the_unused():
    source = timm.create_model("test_overlock", num_classes=7, overview_head=True).state_dict()
    unused, _ = DenseFeatures("test_overlock").load_weights(source)
    assert "overview_head.fc.weight" in unused


def test_the_merged_form_gives_the_same_maps():
    features = DenseFeatures("test_overlock", overview=True).eval()
    for module in features.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = features(images)
        merged = reparameterize_model(features)(images)
    for a, b in zip(expected, merged, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "features.", "backbone.features."])
def test_weights_of_a_network_around_dense_features_load(prefix):
    first = DenseFeatures("test_overlock", overview=True)
    source = {f"{prefix}{key}": value for key, value in raised_by_one(first).items()}
    source["head.weight"] = torch.zeros(3)
    second = DenseFeatures("test_overlock", overview=True)
    unused, new = second.load_weights(source)
    assert (unused, new) == (["head.weight"], [])
    for key, value in second.state_dict().items():
        assert torch.equal(value, source[prefix + key]), key


def test_without_overview_the_new_parts_are_named():
    source = DenseFeatures("test_overlock").state_dict()
    unused, new = DenseFeatures("test_overlock", overview=True).load_weights(source)
    assert unused == []
    assert {name.split(".")[0] for name in new} == {
        "overview_norm",
        "overview_proj",
        "overview_scale",
    }


@pytest.mark.parametrize("kind", ["classifier", "dense"])
def test_weights_of_another_network_are_refused(kind):
    other = DenseFeatures("test_convnext")
    source = (timm.create_model("test_convnext") if kind == "classifier" else other).state_dict()
    with pytest.raises(RuntimeError, match="stem"):
        DenseFeatures("test_overlock").load_weights(source)


def maps_and_hooks(name):
    """Return the reductions of a timm model's maps, and its dense features where it can be one."""
    with torch.device("meta"):
        model = timm.create_model(name)
        found = [info["reduction"] for info in getattr(model, "feature_info", [])]
        dense = set(REDUCTIONS) <= set(found) and hasattr(model, "forward_intermediates")
        features = DenseFeatures(name, overview=None) if dense and len(found) > 4 else None
    return model, features


def assert_no_overview(name):
    model, features = maps_and_hooks(name)
    assert getattr(model, "overview_index", None) is None, name
    if features is not None:
        assert (features.overview, features.inner_norm) == (False, False), name
        hooked = [key for key, part in features.backbone.named_modules() if part._forward_hooks]
        assert hooked == [], name
        assert len(features.indices) == 4, name
    return features is not None


# Networks of timm with more than four maps, those of H/4 to H/32 among them; selecsls42b's last is
# one of H/64.
MANY_MAPS = ["selecsls42b", "resnet18", "mobilenetv3_small_050", "test_efficientnet", "vgg11"]


@pytest.mark.parametrize("name", MANY_MAPS)
def test_a_model_that_declares_no_overview_is_taken_for_none_however_many_maps_it_has(name):
    assert assert_no_overview(name)


@pytest.mark.long
def test_no_architecture_of_timm_is_taken_for_one_with_an_overview():
    names = [name for name in timm.list_models() if "overlock" not in name]
    assert sum(assert_no_overview(name) for name in names) > 100


def test_an_overview_is_declared_with_its_place_and_only_where_there_is_one():
    model = timm.create_model("test_overlock")
    assert model.feature_info[model.overview_index]["module"] == "overview"
    assert DenseFeatures("test_overlock", overview=None).overview
    assert not DenseFeatures("test_overlock").overview
    without = timm.create_model("test_overlock", dds=False)
    assert without.overview_index is None
    assert not DenseFeatures("test_overlock", {"dds": False}, overview=None).overview
