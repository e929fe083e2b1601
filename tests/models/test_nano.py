"""The miniatures keep the papers' proportions, and their size-matched controls have their size."""

import functools

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch.utils.flop_counter import FlopCounterMode

import lightning_overlock  # noqa: F401 (registers the backbones)
from lightning_overlock.errors import ConfigError
from lightning_overlock.layers import ContMix

# What overlock_nano takes at 28 and 32 pixels, and convneur_nano at 32.
SMALL_OVERLOCK = dict(
    stem_stride=1, dims=(12, 24, 48, 64), kernel_sizes=(7, 7, 7, 3), context_grid=4
)
SMALL_CONVNEUR = dict(patch_size=1, chunk_size=64)
SIZES = [(48, {}), (64, {}), (96, {}), (28, SMALL_OVERLOCK), (32, SMALL_OVERLOCK)]

STATIC = dict(dds=False, mixer="static", gate=False)
# Rows of an ablation of overlock_nano in the size of the full model.
MATCHED = {
    "static pyramid": dict(**STATIC, dims=(16, 36, 56, 84)),
    "static pyramid, kernels 5": dict(**STATIC, dims=(16, 36, 60, 80), kernel_sizes=(5, 5, 5, 3)),
    "static pyramid, kernels 7": dict(**STATIC, dims=(16, 40, 48, 88), kernel_sizes=(7, 7, 7, 7)),
    "+ DDS": dict(mixer="static", gate=False, dims=(16, 36, 48, 72)),
    "+ DDS + gate": dict(mixer="static", dims=(16, 36, 48, 68)),
    "+ DDS + ContMix": dict(gate=False, dims=(14, 44, 48, 64)),
    "ContMix in a pyramid": dict(dds=False, dims=(16, 36, 48, 80)),
    "ContMix in a pyramid, no gate": dict(dds=False, gate=False, dims=(14, 32, 64, 64)),
    "no guidance of kernels": dict(kernel_guidance=False),
    "no guidance of features": dict(feature_guidance=False),
    "no guidance": dict(kernel_guidance=False, feature_guidance=False),
    "large kernels only": dict(small_kernel=0),
    "small kernels only": dict(kernel_sizes=(7, 7, 3, 3), small_kernel=0),
}
# Rows of an ablation of convneur_nano in the size of the full model. Self-attention among 576
# tokens costs more than the whole network; it has no match.
MATCHED_CONVNEUR = {
    "local only": dict(global_placement="none", dims=(28, 52, 44, 92)),
    "never written": dict(memory_write="none", dims=(22, 44, 48, 84)),
    "linear attention": dict(global_operator="linear_attention", dims=(24, 44, 48, 88)),
    "read by keys": dict(readout_from="key"),
    "ascent": dict(memory_write="ascent", segment_chunks="all"),
    "descent at the initial memory": dict(segment_chunks="all"),
    "no momentum, no decay": dict(momentum=False, decay=False),
    "shuffled": dict(scan="shuffled"),
}
# At 32 pixels, beside `SMALL_OVERLOCK`.
MATCHED_SMALL = {
    "static pyramid": dict(**STATIC, dims=(12, 36, 48, 92)),
    "+ DDS": dict(mixer="static", gate=False, dims=(12, 28, 52, 68)),
    "+ DDS + gate": dict(mixer="static", dims=(12, 36, 40, 76)),
    "+ DDS + ContMix": dict(gate=False, dims=(10, 36, 48, 64)),
    "ContMix in a pyramid": dict(dds=False, dims=(12, 28, 48, 80)),
}


def create(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **{"num_classes": 10, **kwargs}).eval()


def multiply_adds(model, size):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


@functools.cache
def _cost(name, sizes, arguments):
    model = reparameterize_model(create(name, **dict(arguments)), inplace=True)
    return [sum(p.numel() for p in model.parameters()), *(multiply_adds(model, s) for s in sizes)]


def cost(name, sizes, **arguments):
    """Parameters in inference form, and multiply-adds at each of the sizes."""
    return _cost(name, sizes, tuple(arguments.items()))


@pytest.mark.parametrize(("size", "arguments"), SIZES)
@pytest.mark.parametrize("dds", [True, False])
def test_no_map_is_resized_and_the_overview_has_nine_pixels_or_more(size, arguments, dds):
    model = create("overlock_nano", dds=dds, **arguments)
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, ContMix) or name == "overview":
            module.register_forward_hook(
                lambda _m, inputs, output, name=name: shapes.update({name: output.shape[-2:]})
            )
    model(torch.empty(1, 3, size, size, device="meta"))
    overview = shapes.pop("overview", None)
    assert (overview is not None) == dds
    assert not dds or min(overview) >= 3
    assert len(shapes) == 3
    for name, shape in shapes.items():
        mixer = model.get_submodule(name)
        assert mixer.aggregation_size(*shape) == tuple(shape)
        assert mixer.context_grid <= min(shape)


@pytest.mark.parametrize(("size", "arguments"), [SIZES[0], *SIZES[3:]])
def test_the_large_windows_nearly_span_the_maps_of_the_trained_size(size, arguments):
    model = create("overlock_nano", **arguments)
    stride = model.feature_info[0]["reduction"]
    for stage, reduction in zip(model.focus, (4 * stride, 8 * stride), strict=True):
        side = -(-size // reduction)
        kernel = stage.blocks[0].mixer.kernel_size
        assert side - 1 <= kernel <= side


@pytest.mark.parametrize(
    ("name", "arguments", "size", "millions"),
    [
        ("overlock_nano", {}, 48, 10),
        ("overlock_nano", SMALL_OVERLOCK, 32, 13),
        ("convneur_nano", {}, 48, 10),
        ("convneur_nano", SMALL_CONVNEUR, 32, 18),
        ("convneur_nano", {"chunk_size": 16}, 32, 4.5),
    ],
)
def test_a_pass_costs_as_much_as_the_docstring_says(name, arguments, size, millions):
    assert multiply_adds(create(name, **arguments), size) == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize("row", MATCHED)
def test_matched_rows_have_the_size_and_the_cost_of_the_full_model(row):
    full = cost("overlock_nano", (48, 96))
    assert cost("overlock_nano", (48, 96), **MATCHED[row]) == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize("row", MATCHED_SMALL)
def test_matched_rows_at_32_pixels_have_the_size_of_the_full_model(row):
    arguments = SMALL_OVERLOCK | MATCHED_SMALL[row]
    if arguments.get("mixer") == "static":
        del arguments["context_grid"]  # static kernels have no context
    full = cost("overlock_nano", (32,), **SMALL_OVERLOCK)
    assert cost("overlock_nano", (32,), **arguments) == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize("row", MATCHED_CONVNEUR)
def test_matched_rows_of_convneur_have_the_size_of_the_full_model(row):
    full = cost("convneur_nano", (48,))
    assert cost("convneur_nano", (48,), **MATCHED_CONVNEUR[row]) == pytest.approx(full, rel=0.03)


@pytest.mark.parametrize(
    ("name", "argument", "first"),
    [("test_overlock", "stem_stride", 4), ("test_convneur", "patch_size", 4)],
)
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_feature_info_tells_the_true_reductions(name, argument, stride, first):
    model = timm.create_model(name, features_only=True, **{argument: stride}).eval()
    reductions = [stride * 2**i for i in range(first)]
    assert model.feature_info.reduction() == reductions
    with torch.inference_mode():
        maps = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(64 // r, 96 // r) for r in reductions]
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    least = model(torch.zeros(1, 3, 8 * stride, 8 * stride))
    assert least[-1].shape[-2:] == (1, 1)
    with pytest.raises(ValueError, match=f"{8 * stride}x{8 * stride}"):
        model(torch.zeros(1, 3, 64, 8 * stride - 1))


@pytest.mark.parametrize("name", ["overlock_nano", "convneur_nano"])
def test_every_parameter_of_a_miniature_learns(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train()
    model(torch.randn(2, 3, 48, 48)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    size, pool = model.default_cfg["input_size"], model.default_cfg["pool_size"]
    assert size == (3, 48, 48)
    with torch.inference_mode():
        assert model.eval().forward_features(torch.zeros(1, *size)).shape[-2:] == pool


def test_a_kernel_of_three_is_one_convolution_and_its_norm():
    block = create("overlock_nano").overview.blocks[0]
    assert [n for n, _ in block.spatial.named_parameters()] == [
        "conv.weight",
        "norm.weight",
        "norm.bias",
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("overlock_nano", {"stem_stride": 3}, "stem_stride is 3; expected 1, 2 or 4"),
        ("overlock_nano", {"stem_stride": 8}, "stem_stride is 8"),
        ("overlock_nano", {"kernel_sizes": (7, 7, 5)}, r"kernel_sizes is \[7, 7, 5\]"),
        ("overlock_nano", {"kernel_sizes": (1, 7, 5, 3)}, "kernel_size is 1; expected one of"),
        ("overlock_nano", {"small_kernel": (3,)}, r"small_kernel is \[3\]; expected 2 numbers"),
        ("overlock_nano", {"small_kernel": 3}, "small_kernel is 3; expected an odd number below 3"),
        ("overlock_nano", {"mixer": "static", "context_grid": 3}, "context_grid=3 needs mixer"),
        ("convneur_nano", {"patch_size": 3}, "patch_size must be 1, 2 or 4, found 3"),
        ("convneur_nano", {"patch_size": 0}, "patch_size must be 1, 2 or 4, found 0"),
    ],
)
def test_an_impossible_geometry_is_refused(name, arguments, words):
    with pytest.raises(ConfigError, match=words):
        timm.create_model(name, **arguments)
