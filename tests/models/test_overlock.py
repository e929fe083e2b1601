"""OverLoCK's own promises: its switches, its sizes, its insides."""

import pytest
import timm
import torch
from timm.layers import SqueezeExcite
from timm.utils import reparameterize_model

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.tap import capture
from lightning_overlock.models.overlock import ChannelAttention, OverLoCK

DIMS = dict(
    dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    focus_depths=(2, 2),
    num_heads=(1, 2),
    kernel_sizes=(9, 7, 7, 7),
    mlp_ratio=2,
    focus_mlp_ratio=2,
    head_hidden_size=32,
    num_classes=5,
)
# switch -> parts that must be gone with it
SWITCHES = {
    "dds": ({"dds": False}, ["overview.", "context_proj", "context_scale", "context_downsample"]),
    "mixer": ({"mixer": "static"}, ["mixer."]),
    "gate": ({"gate": False}, [".gate."]),
    "feature_guidance": ({"feature_guidance": False}, []),
    "kernel_guidance": ({"kernel_guidance": False}, []),
    "context_update": (
        {"context_update": False},
        ["context_scale", "prior_scale", "context_downsample"],
    ),
    "small_kernel": ({"small_kernel": None}, ["small_bias"]),
    "small_kernel_through_timm": ({"small_kernel": 0}, ["small_bias"]),
    "zero_context": (
        {"context_source": "zero"},
        ["overview.", "context_proj", "prior_scale", "context_scale"],
    ),
    "overview_memory": (
        {"overview": "memory", "overview_chunk_size": 2},
        ["overview.blocks.0.mlp"],
    ),
    "guidance": ({"kernel_guidance": False, "feature_guidance": False}, []),
    "grid": ({"context_grid": 3}, []),
    "wide_small_kernel": ({"small_kernel": 3}, []),
}


def build(**changes):
    torch.manual_seed(0)
    return OverLoCK(**{**DIMS, **changes})


def image(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_removes_what_it_turns_off_and_leaves_nothing_unused(switch):
    changes, gone = SWITCHES[switch]
    paper, model = build(), build(**changes)
    for part in gone:
        assert [n for n in paper.state_dict() if part in n]
        assert not [n for n in model.state_dict() if part in n]
    if switch not in ("kernel_guidance", "dds"):
        # keys from C instead of C/4 channels and the pyramid's wider value are the exceptions
        assert sum(p.numel() for p in model.parameters()) < sum(
            p.numel() for p in paper.parameters()
        )
    for size in ((64, 96), (32, 32)):
        model.zero_grad()
        model.train()(image(*size)).square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_keeps_the_feature_interface(switch):
    model = build(**SWITCHES[switch][0]).eval()
    maps = model.forward_intermediates(image(), indices=[0, 1, 2, 3], intermediates_only=True)
    for feature, info in zip(maps, model.feature_info, strict=False):
        assert feature.shape[1] == info["num_chs"]
        assert feature.shape[2] == 64 // info["reduction"]


def test_a_shuffled_context_is_the_prior_of_the_image_before():
    own, shuffled = build(), build(context_source="shuffled")
    assert own.state_dict().keys() == shuffled.state_dict().keys()
    x = torch.cat([image(), image().flip(3)])[:3]
    for training in (False, True):
        own.train(training), shuffled.train(training)
        with torch.no_grad(), capture(own, "context_prior") as found:
            own(x)
        prior = found["context_prior"]
        # The same network with the priors exchanged by hand.
        handle = own.context_prior_tap.register_forward_hook(lambda _m, _i, p: p[[2, 0, 1]])
        with torch.no_grad():
            expected = own(x)
            handle.remove()
            torch.testing.assert_close(shuffled(x), expected)
            assert not torch.allclose(own(x), expected)
        assert not torch.equal(prior[0], prior[1])
    with pytest.raises(ConfigError, match="this batch has one image; expected two or more"):
        shuffled(x[:1])
    # No image, a cost: one image is enough.
    assert shuffled.to("meta")(x[:1].to("meta")).shape == (1, 5)


@pytest.mark.parametrize("dds", [True, False])
def test_a_memory_takes_the_place_of_the_overviews_blocks(dds):
    model = build(overview="memory", overview_chunk_size=2, overview_memory_dim=12, dds=dds)
    stage = model.overview if dds else model.base[3]
    (block,) = stage.blocks
    memory = block.memory
    assert (memory.dim, memory.chunk_size, memory.scan) == (12, 2, "whole")
    # Drawn as the memory draws itself: its matrices have variance 1 / fan-in.
    assert memory.query.weight.std().item() == pytest.approx(12**-0.5, rel=0.2)
    with torch.no_grad():
        block.scale.weight.uniform_(0.5, 1.5)
        block.scale.bias.normal_()
        x = torch.randn(2, 32, 3, 3)
        z = block.position(x)
        branch = block.expand(memory(block.compress(block.norm(z))))
        scale = block.scale
        expected = z * scale.weight + scale.bias.view(-1, 1, 1) + branch
        torch.testing.assert_close(block(x), expected)
        model.eval()
        before = model(image())
        merged = reparameterize_model(model)
        torch.testing.assert_close(merged(image()), before, atol=1e-5, rtol=1e-4)
    # Written whole before it is read: the first pixel of the overview sees the last one.
    changed = x.clone()
    changed[:, :, 2, 2] += 1
    with torch.no_grad():
        assert not torch.allclose(block(x)[:, :, 0, 0], block(changed)[:, :, 0, 0])


def test_with_a_zero_context_only_the_guidance_is_gone():
    model = build(context_source="zero").eval()
    assert model.overview_index is None
    assert len(model.feature_info) == 4
    # The same as a prior whose scale and shift are zero, and contexts that are taken as they are.
    own = build()
    own.load_state_dict(model.state_dict(), strict=False)
    for module in (own.context_proj, *(b.prior_scale for s in own.focus for b in s.blocks)):
        for parameter in module.parameters() if module is not None else ():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        torch.testing.assert_close(model(image()), own.eval()(image()))


def test_a_fixed_context_is_the_prior_in_every_block():
    model = build(context_update=False).eval()
    with torch.inference_mode(), capture(model, "context_prior") as found:
        maps = model.forward_intermediates(image(), indices=[2, 3], intermediates_only=True)
    prior = found["context_prior"]
    torch.testing.assert_close(maps[1][:, -8:], prior)
    resized = torch.nn.functional.interpolate(prior, maps[0].shape[-2:], mode="bilinear")
    torch.testing.assert_close(maps[0][:, -8:], resized)


def influence_of_prior(model, wanted):
    """Gradient of a captured place with respect to the context prior's bias."""
    prior = model.context_proj.bias
    out = {}
    module = model.get_submodule(wanted)
    handle = module.register_forward_hook(lambda _m, _i, value: out.update(value=value))
    model(image())
    handle.remove()
    (grad,) = torch.autograd.grad(out["value"].square().sum(), prior, allow_unused=True)
    return 0.0 if grad is None else grad.abs().sum().item()


def test_guidance_switches_cut_the_prior_off_from_kernels_and_values():
    # LayerNorm over features and context lets the prior's mean through; without it, nothing may
    def model(**changes):
        built = build(focus_depths=(1, 1), **changes).eval()
        built.focus[0].blocks[0].norm1 = torch.nn.Identity()
        return built

    key, value = "focus.0.blocks.0.mixer.key", "focus.0.blocks.0.value"
    assert influence_of_prior(model(), key) > 0
    assert influence_of_prior(model(), value) > 0
    assert influence_of_prior(model(kernel_guidance=False), key) == 0
    assert influence_of_prior(model(kernel_guidance=False), value) > 0
    assert influence_of_prior(model(feature_guidance=False), value) == 0
    assert influence_of_prior(model(feature_guidance=False), key) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dds": False, "kernel_guidance": False}, "kernel_guidance=False needs dds=True"),
        ({"dds": False, "feature_guidance": False}, "feature_guidance=False needs dds=True"),
        ({"dds": False, "context_update": False}, "context_update=False needs dds=True"),
        ({"dds": False, "overview_head": True}, "overview_head=True needs dds=True"),
        ({"dds": False, "context_source": "zero"}, "context_source='zero' needs dds=True"),
        ({"dds": False, "context_source": "shuffled"}, "context_source='shuffled' needs dds=True"),
        ({"context_source": "zero", "overview_head": True}, "a context_source other than 'zero'"),
        ({"overview": "attention"}, "overview is 'attention'; expected one of"),
        ({"overview": "memory", "context_source": "zero"}, "overview='memory' has no place"),
        ({"overview_chunk_size": 3}, "overview_chunk_size=3 needs overview='memory'"),
        ({"overview_scan": "raster"}, "overview_scan='raster' needs overview='memory'"),
        ({"overview": "memory", "overview_scan": "spiral"}, "scan must be one of"),
        ({"context_source": "other"}, "context_source is 'other'; expected one of"),
        ({"mixer": "static", "small_kernel": None}, "small_kernel=None needs mixer='contmix'"),
        ({"mixer": "static", "context_grid": 5}, "context_grid=5 needs mixer='contmix'"),
        ({"mixer": "static", "kernel_guidance": False}, "kernel_guidance=False needs mixer"),
        ({"mixer": "dynamic"}, "mixer is 'dynamic'"),
        ({"small_kernel": 4}, "small_kernel is 4"),
        ({"small_kernel": 7}, "small_kernel is 7; expected an odd number below 7"),
        ({"kernel_sizes": (9, 7, 6, 7)}, "kernel_size is 6"),
        ({"num_heads": (5, 2)}, "dim is 24; expected a multiple of 4 \\* num_heads = 20"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        build(**changes)


def test_auxiliary_logits_come_only_from_a_model_that_was_asked_for_them():
    model = build(overview_head=True)
    logits, overview = model(image()), model.forward_overview(image())
    assert isinstance(logits, torch.Tensor)
    assert [tuple(part.shape) for part in overview] == [(2, 5), (2, 5)]
    model.zero_grad()
    (overview[0].sum() + overview[1].square().sum()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    with pytest.raises(ValueError, match="overview_head=True"):
        build().forward_overview(image())
    model.reset_classifier(3)
    assert [tuple(part.shape) for part in model.forward_overview(image())] == [(2, 3), (2, 3)]
    model.reset_classifier(0)
    assert [tuple(part.shape) for part in model.forward_overview(image())] == [(2, 32), (2, 32)]


def test_fifth_feature_is_the_overview_network():
    model = build().eval()
    assert model.feature_info[4] == dict(num_chs=32, reduction=32, module="overview")
    (overview,) = model.forward_intermediates(image(), indices=[4], intermediates_only=True)
    assert overview.shape == (2, 32, 2, 3)


def test_drop_path_is_one_linear_ramp_in_the_order_of_the_blocks():
    rates = [
        module.drop_prob
        for module in build(drop_path_rate=0.7).modules()
        if type(module).__name__ == "DropPath"
    ]
    # eight blocks; the first has rate 0 and needs no DropPath
    assert rates == pytest.approx([0.1 * i for i in range(1, 8)])


def test_plain_pyramid_drops_paths_in_its_own_order():
    model = build(drop_path_rate=0.7, dds=False)
    deep = model.base[3].blocks[0].drop_path.drop_prob
    assert model.focus[0].blocks[1].drop_path.drop_prob < deep
    assert deep < model.focus[1].blocks[0].drop_path.drop_prob


def test_channel_attention_computes_what_timms_class_does_with_its_weights():
    torch.manual_seed(0)
    attention = ChannelAttention(24).double()
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *attention.parameters()]
    outputs = attention(x), SqueezeExcite.forward(attention, x)
    grads = [torch.autograd.grad(y.pow(2).sum(), inputs) for y in outputs]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*grads)


def test_insides_can_be_read():
    model = build().eval()
    with torch.inference_mode(), capture(model, "kernel", "context_prior") as found:
        model(image())
    kernels = found["focus.0.blocks.0.mixer.kernel"]
    assert kernels.shape == (2, 2, 7 * 10, 49)  # the 4x6 map, resized to a short side of 7
    torch.testing.assert_close(kernels.sum(-1), torch.ones(kernels.shape[:-1]))
    assert found["context_prior"].shape == (2, 8, 2, 3)
    with capture(model, "gate") as gates:
        model(image())
    assert gates["focus.1.blocks.1.gate"].shape == (2, 32, 2, 3)
    with pytest.raises(ValueError, match="no tap is called 'gates'"), capture(model, "gates"):
        pass


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("overlock_xxt", [24, 48, 128, 160]),
        ("overlock_xt", [56, 112, 340, 420]),
        ("overlock_t", [64, 128, 384, 640]),
        ("overlock_s", [64, 128, 448, 640]),
        ("overlock_b", [80, 160, 528, 720]),
    ],
)
def test_variants_have_the_feature_channels_of_the_paper(name, channels):
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True)
    assert model.feature_info.channels() == channels


def test_xxt_has_about_one_million_parameters():
    with torch.device("meta"):
        model = timm.create_model("overlock_xxt", num_classes=10)
    assert 1.15e6 < sum(p.numel() for p in model.parameters()) < 1.25e6
