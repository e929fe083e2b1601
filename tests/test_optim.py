"""Parameter groups and learning rates against rules written out by hand and timm's scheduler."""

import json
from pathlib import Path

import pytest
import timm
import torch
from parity import fill
from timm.scheduler import CosineLRScheduler

import lightning_overlock  # noqa: F401 - registers the backbones
from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.heads.upernet import UPerHead
from lightning_overlock.optim import (
    Float32AdamW,
    dense_parameter_groups,
    linear_warmup,
    parameter_groups,
    warmup_cosine,
    warmup_multistep,
    warmup_poly,
)


def by_name(model, groups):
    """Return {parameter name: (weight decay, factor on the learning rate)}; fail on doubles."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found
            found[name] = group["weight_decay"], group["lr_scale"]
    return found


@pytest.mark.parametrize("name", ["test_overlock", "test_convnext", "test_resnet"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_weight_decay_falls_on_every_parameter_with_more_than_one_dimension(name, layer_decay):
    model = timm.create_model(name)
    found = by_name(model, parameter_groups(model, weight_decay=0.05, layer_decay=layer_decay))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert found[name][0] == (0.05 if parameter.ndim > 1 else 0), name


def test_overlock_decays_what_the_release_decays():
    model = timm.create_model("test_overlock", overview_head=True)
    found = by_name(model, parameter_groups(model, weight_decay=0.05))
    decay = {name: value[0] for name, value in found.items()}
    for ending in ("grn.gamma", "grn.beta", "scale.weight", "scale1.weight", "large_bias"):
        names = [name for name in decay if name.endswith(ending)]
        assert names
        assert all(decay[name] == 0.05 for name in names), ending
    for ending in ("norm.weight", "norm.bias", "scale.bias", "fc1.bias", "head.fc.bias"):
        names = [name for name in decay if name.endswith(ending)]
        assert names
        assert all(decay[name] == 0 for name in names), ending


def test_parameters_that_a_model_exempts_are_not_decayed():
    model = timm.create_model("test_vit")
    assert "pos_embed" in model.no_weight_decay()
    found = by_name(model, parameter_groups(model, weight_decay=0.05))
    assert found["pos_embed"][0] == 0
    assert found["blocks.0.attn.qkv.weight"][0] == 0.05


def test_frozen_parameters_are_in_no_group():
    model = timm.create_model("test_resnet")
    model.conv1[0].weight.requires_grad_(False)
    found = by_name(model, parameter_groups(model, weight_decay=0.05))
    assert "conv1.0.weight" not in found
    assert "fc.weight" in found


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (
            "test_overlock",
            [
                ["stem."],
                ["base.0."],
                ["base.1."],
                ["base.2."],
                ["overview.", "context_proj."],
                ["focus.0.blocks.0."],
                ["focus.0.blocks.1."],
                ["focus.1.downsample.", "focus.1.context_downsample.", "focus.1.blocks.0."],
                ["focus.1.blocks.1."],
                ["head.", "overview_head."],
            ],
        ),
        (
            "test_convnext",
            [
                ["stem."],
                ["stages.0.blocks.0."],
                ["stages.1.downsample.", "stages.1.blocks.0."],
                ["stages.1.blocks.1."],
                ["stages.2.downsample.", "stages.2.blocks.0."],
                ["stages.2.blocks.1."],
                ["stages.2.blocks.2."],
                ["stages.2.blocks.3."],
                ["stages.3.downsample.", "stages.3.blocks.0."],
                ["stages.3.blocks.1."],
                ["head."],
            ],
        ),
    ],
)
def test_layer_decay_shrinks_the_learning_rate_from_the_head_to_the_stem(name, layers):
    arguments = {"overview_head": True} if name == "test_overlock" else {}
    model = timm.create_model(name, **arguments)
    found = by_name(model, parameter_groups(model, weight_decay=0.05, layer_decay=0.6))
    for parameter, (_, scale) in found.items():
        (depth,) = [i for i, starts in enumerate(layers) if parameter.startswith(tuple(starts))]
        assert scale == pytest.approx(0.6 ** (len(layers) - 1 - depth)), parameter


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_warmup_and_cosine_are_those_of_timm(warmup_steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-3)
    reference = CosineLRScheduler(
        optimizer, 30, 1e-5, warmup_t=warmup_steps, warmup_lr_init=1e-6, t_in_epochs=False
    )
    for step in range(40):  # ten steps of cool-down
        reference.step_update(step)
        lr = warmup_cosine(
            step,
            lr=2e-3,
            total_steps=30,
            warmup_steps=warmup_steps,
            warmup_lr=1e-6,
            min_lr=1e-5,
        )
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
    assert lr == 1e-5


def test_the_cosine_counts_the_steps_of_the_linear_warmup():
    given = {"lr": 1.0, "total_steps": 100, "warmup_steps": 50, "warmup_lr": 0.0, "min_lr": 0.2}
    assert warmup_cosine(0, **given) == 0
    assert warmup_cosine(10, **given) == pytest.approx(0.2)
    assert warmup_cosine(50, **given) == pytest.approx(
        0.6
    )  # half way down: the cosine began at step 0
    assert warmup_cosine(100, **given) == pytest.approx(0.2)


# Dense models


def segmenter(name, overview=False):
    features = DenseFeatures(name, overview=overview)
    return torch.nn.ModuleDict({"features": features, "head": UPerHead(features.channels, 3, 8)})


def test_overlock_decays_all_but_what_its_release_calls_norm():
    """Each weight of the release's detection model is marked by its name there, then loaded."""
    keys = json.loads((Path(fill.__file__).parent / "keys_detection_overlock_t.json").read_text())
    marks = {k: torch.full(shape, float("norm" in k)) for k, shape in keys.items()}
    features = DenseFeatures("overlock_t", overview=True)
    features.load_weights(marks)
    marked = {n: p.detach().flatten()[0].item() for n, p in features.named_parameters()}
    groups = dense_parameter_groups(features, features, weight_decay=0.05)
    found = by_name(features, groups)
    assert set(found) == set(marked)
    for name, (decay, scale) in found.items():
        assert (decay, scale) == (0.0 if marked[name] else 0.05, 1.0), name
    assert sum(marked.values()) == 2 * (2 * 14 + 5)  # 14 dynamic blocks, five maps


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_convneur"])
def test_norms_of_other_backbones_are_not_decayed_and_all_of_the_head_is(name):
    model = segmenter(name)
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d, torch.nn.RMSNorm)
    expected = {
        f"features.{module}.{leaf}"
        for module, part in model["features"].named_modules()
        if isinstance(part, norms)
        for leaf, _ in part.named_parameters(recurse=False)
    }
    groups = dense_parameter_groups(model, model["features"], weight_decay=0.05)
    found = by_name(model, groups)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert {name for name, value in found.items() if value[0] == 0} == expected


def test_layer_decay_of_a_dense_model_starts_below_its_head():
    model = segmenter("test_convnext")
    found = by_name(
        model,
        dense_parameter_groups(model, model["features"], weight_decay=0.05, layer_decay=0.5),
    )
    start = "features.backbone."
    for name, (_, scale) in found.items():
        if not name.startswith(start):
            assert scale == 1, name
    # The stem and ten blocks (see above) lie below the head.
    assert found[f"{start}stages.3.blocks.1.mlp.fc1.weight"][1] == pytest.approx(0.5)
    assert found[f"{start}stages.3.blocks.0.mlp.fc1.weight"][1] == pytest.approx(0.5**2)
    assert found[f"{start}stem.0.weight"][1] == pytest.approx(0.5**10)


def test_frozen_parameters_of_a_dense_model_are_in_no_group():
    model = segmenter("test_resnet")
    model["features"].backbone.requires_grad_(False)
    found = by_name(model, dense_parameter_groups(model, model["features"], weight_decay=0.05))
    assert not [name for name in found if name.startswith("features.backbone.")]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 2e-7),  # .001 x lr
        (250, 2e-4 * 0.5005),
        (499, 2e-4 * (0.001 + 0.999 * 499 / 500)),
        (500, 2e-4),
        (7999, 2e-4),
        (8000, 2e-5),
        (10999, 2e-5),
        (11000, 2e-6),
        (99999, 2e-6),
    ],
)
def test_multistep_of_the_1x_schedule_by_hand(step, expected):
    """An epoch of 1000 steps, drops after the 8th and the 11th."""
    lr = warmup_multistep(
        step, lr=2e-4, milestones=[8000, 11000], gamma=0.1, warmup_steps=500, warmup_factor=0.001
    )
    assert lr == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 6e-11),  # 1e-6 x lr
        (750, 6e-5 * (1 - 750 / 160000) * (1e-6 + (1 - 1e-6) / 2)),
        (1500, 6e-5 * (1 - 1500 / 160000)),
        (80000, 3e-5),
        (160000, 0.0),
        (170000, 0.0),
    ],
)
def test_poly_of_the_ade20k_schedule_by_hand(step, expected):
    lr = warmup_poly(
        step,
        lr=6e-5,
        total_steps=160000,
        power=1.0,
        min_lr=0.0,
        warmup_steps=1500,
        warmup_factor=1e-6,
    )
    assert lr == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_poly_takes_its_power_and_its_floor():
    rates = [
        warmup_poly(
            s, lr=1.0, total_steps=4, power=2.0, min_lr=0.2, warmup_steps=0, warmup_factor=0.5
        )
        for s in range(6)
    ]
    assert rates == pytest.approx([1, 0.65, 0.4, 0.25, 0.2, 0.2])


def test_warmup_and_drops_are_those_of_torchs_schedulers():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, total_iters=4)
    drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [6, 8], 0.5)
    both = torch.optim.lr_scheduler.ChainedScheduler([warmup, drops])
    for step in range(10):
        lr = warmup_multistep(
            step, lr=0.1, milestones=[6, 8], gamma=0.5, warmup_steps=4, warmup_factor=0.01
        )
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        both.step()
    assert linear_warmup(0, 0, 0.1) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_the_optimiser_is_that_of_float32(dtype):
    """Small gradients after a large one: in 16 bits the second moment would never fall."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, generator=generator).to(dtype)
    half, full = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    ours = Float32AdamW([half], lr=1e-4, weight_decay=0.1)
    reference = torch.optim.AdamW([full], lr=1e-4, weight_decay=0.1)
    for step in range(300):
        gradient = torch.randn(64, generator=generator).to(dtype) * (1 if step < 5 else 1e-4)
        half.grad, full.grad = gradient, gradient.float()
        ours.step()
        reference.step()
        if step == 150:  # continued from a checkpoint
            state = ours.state_dict()
            ours = Float32AdamW([half], lr=1e-4, weight_decay=0.1)
            ours.load_state_dict(state)
    found, expected = ours.state[half], reference.state[full]
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(found["weight"], full.detach())
    assert half.dtype == dtype
    assert torch.equal(half.detach(), found["weight"].to(dtype))
