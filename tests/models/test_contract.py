"""What every backbone of the package promises to timm, Lightning and their users."""

import copy
import math
from itertools import chain

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from timm.utils import reparameterize_model

import lightning_overlock  # noqa: F401 (registers the backbones)
from lightning_overlock.errors import ConfigError

MODELS = ["test_overlock", "test_convneur"]
SIZES = [(32, 32), (33, 47), (64, 160), (97, 40)]


def create(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 7, **kwargs})


def stir(model):
    """Give norms and scales values that a merged or misplaced one would show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += (0.3 if parameter.squeeze().ndim <= 1 else 0.05) * noise.to(parameter)
    return model


def image(height=64, width=64, batch=2, channels=3):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, channels, height, width, generator=generator)


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_learns_from_an_image_of_any_size(name, size):
    model = stir(create(name)).train()
    logits = model(image(*size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_an_image_that_is_too_small_is_refused_with_both_sizes(name, size):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*32x32"):
        create(name).eval()(image(*size))


def test_an_image_does_not_depend_on_its_batch(name):
    model = stir(create(name)).double().eval()
    x = image(batch=3).double()
    with torch.inference_mode():
        one_by_one = torch.cat([model(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(model(x), one_by_one, rtol=0, atol=1e-12)


def test_default_configuration_names_real_parts(name):
    model = create(name)
    keys = model.state_dict().keys()
    assert f"{model.default_cfg['classifier']}.weight" in keys
    assert f"{model.default_cfg['first_conv']}.weight" in keys
    assert model.get_classifier().weight is model.get_submodule("head.fc").weight
    size = model.default_cfg["input_size"]
    pool = model.default_cfg["pool_size"]
    with torch.inference_mode():
        assert model.eval().forward_features(torch.zeros(1, *size)).shape[-2:] == pool


def test_classifier_can_be_replaced_and_removed(name):
    model = create(name).eval()
    x = image()
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        before = model.forward_head(features, pre_logits=True)
        assert before.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(before), model(x))
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        assert model.num_classes == 3
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), before)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, model.head_hidden_size, *features.shape[-2:])
        model.reset_classifier(5, "avg")
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_created_without_classes_gives_pooled_features(name, pool):
    model = create(name, num_classes=0, global_pool=pool).eval()
    assert model(image()).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("size", SIZES)
def test_features_come_at_four_strides_with_their_channels(name, size):
    model = create(name, features_only=True).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.inference_mode():
        maps = model(image(*size))
    for feature, channels, stride in zip(
        maps, model.feature_info.channels(), [4, 8, 16, 32], strict=True
    ):
        assert feature.shape[1] == channels
        for side, length in zip(feature.shape[-2:], size, strict=True):
            assert side in (max(length // stride, 1), math.ceil(length / stride))


@pytest.mark.parametrize("indices", [(0,), (0, 1), (2,), (1, 3), (0, 1, 2), (-1,), 2])
def test_chosen_features_are_those_of_the_whole_and_cost_no_more(name, indices):
    whole = create(name).eval()
    part = create(name, features_only=True, out_indices=indices).train()
    weights = whole.state_dict()
    part.model.load_state_dict({k: weights[k] for k in part.model.state_dict()})
    x = image()
    with torch.inference_mode():
        expected = whole.forward_intermediates(
            x, list(indices) if isinstance(indices, tuple) else indices, intermediates_only=True
        )
        for ours, theirs in zip(part.eval()(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    sum(feature.square().sum() for feature in part.train()(x)).backward()
    assert not [n for n, p in part.named_parameters() if p.grad is None]


def test_intermediates_end_in_the_final_features(name):
    model = create(name).eval()
    x = image()
    with torch.inference_mode():
        final, maps = model.forward_intermediates(x, indices=[0, 3])
        torch.testing.assert_close(final, model.forward_features(x))
        torch.testing.assert_close(maps[1], final)
        early, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
        assert early.shape[-1] == 8


def test_gradient_checkpointing_changes_nothing_but_memory(name):
    plain = stir(create(name)).double().train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = image().double()
    for model in (plain, saving):
        model(x).square().sum().backward()
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=key)


def test_channels_last_gives_the_same_logits(name):
    model = stir(create(name)).double().eval()
    x = image(64, 96).double()
    with torch.inference_mode():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


def test_bf16_autocast_trains_near_float32(name):
    model = stir(create(name)).train()
    x = image()
    expected = copy.deepcopy(model)(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = logits.float().square().sum()
    loss.backward()
    assert (logits - expected).norm() / expected.norm() < 0.1
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_can_be_built_on_the_meta_device(name):
    with torch.device("meta"):
        model = create(name, drop_path_rate=0.2)
        features = create(name, features_only=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.device.type for p in features.parameters()} == {"meta"}
    real = model.to_empty(device="cpu")
    real.load_state_dict(create(name).state_dict())
    torch.testing.assert_close(real.eval()(image()), create(name).eval()(image()))


@pytest.mark.parametrize("channels", [1, 6])
def test_images_may_have_any_number_of_channels(name, channels):
    assert create(name, in_chans=channels).eval()(image(channels=channels)).shape == (2, 7)


def test_drop_path_and_dropout_act_while_training_only(name):
    model = stir(create(name, drop_path_rate=0.5, drop_rate=0.5))
    x = image()
    assert not torch.equal(model.train()(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_groups_for_layer_decay_cover_the_network_from_stem_to_head(name):
    model = create(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(chain.from_iterable(groups.values())) == sorted(
            n for n, _ in model.named_parameters()
        )
        assert len(groups) > 4
    fine = list(group_parameters(model, model.group_matcher()).values())
    assert all(key.startswith("stem") for key in fine[0])
    assert "head.fc.weight" in fine[-1]
    decayed = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in decayed for p in group["params"]}
    assert scale[id(model.head.fc.weight)] == 1
    lowest = 0.5 ** (len(fine) - 1)
    assert scale[id(next(model.stem.parameters()))] == min(scale.values()) == lowest


def test_own_checkpoint_loads_through_timm(name, tmp_path):
    model = stir(create(name)).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = timm.create_model(
        name,
        pretrained=True,
        num_classes=7,
        pretrained_cfg_overlay={"file": str(tmp_path / "own.pth"), "num_classes": 7},
    ).eval()
    assert torch.equal(again(image()), model(image()))


def test_inference_form_gives_the_same_logits_with_fewer_parameters(name):
    model = stir(create(name)).double().eval()
    merged = reparameterize_model(model)
    for size in SIZES:
        with torch.inference_mode():
            x = image(*size).double()
            torch.testing.assert_close(merged(x), model(x), rtol=1e-9, atol=1e-9)
    count = [sum(p.numel() for p in m.parameters()) for m in (merged, model)]
    assert count[0] <= count[1]
    left = [m for m in merged.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not left


@pytest.mark.slow
def test_compiles_as_one_graph_and_in_place_by_block(name):
    model = stir(create(name)).eval()
    x = image()
    with torch.no_grad():
        expected = model(x)
        whole = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(whole(x), expected)
    torch._dynamo.reset()
    keys = list(model.state_dict())
    for module in list(model.modules()):
        if type(module).__name__.endswith("Block"):
            module.compile(backend="aot_eager")
    assert list(model.state_dict()) == keys
    model.train()(x).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    torch._dynamo.reset()


def test_exports(name):
    model = stir(create(name)).eval()
    x = image()
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_can_be_traced_for_one_size(name):
    model = stir(create(name)).eval()
    x = image(48, 80)
    with torch.no_grad():
        traced = torch.jit.trace(model, image(48, 80).flip(0), check_trace=False)
        torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_bounds_the_reductions_and_keeps_the_weights(name, stride):
    model = create(name, features_only=True, output_stride=stride).eval()
    reductions = [min(r, stride) for r in (4, 8, 16, 32)]
    assert model.feature_info.reduction() == reductions
    with torch.inference_mode():
        maps = model(image(64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(64 // r, 96 // r) for r in reductions]
    coarse = create(name, features_only=True).state_dict()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in coarse.items()
    }
    with pytest.raises(ConfigError, match="output_stride"):
        create(name, output_stride=4)
