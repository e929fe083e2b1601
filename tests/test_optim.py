"""Parameter groups and learning rates against rules written out by hand and timm's scheduler."""

import pytest
import timm
import torch
from timm.scheduler import CosineLRScheduler

import lightning_overlock  # noqa: F401 - registers the backbones
from lightning_overlock.optim import parameter_groups, warmup_cosine


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
