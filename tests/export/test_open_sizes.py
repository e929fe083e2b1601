"""Layers and backbones exported with open sizes give eager's values at sizes never seen."""

import pytest
import timm
import torch
from torch import nn
from torch.export import Dim

from lightning_overlock.layers import ContMix, NeuralMemory

OPEN = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


def exported(module, example):
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=(OPEN,))
    own = [n for n in program.graph.nodes if "lightning_overlock" in str(n.target)]
    assert own == [], "an operator of ours is left"
    return program.module(check_guards=False)


def assert_agrees(module, network, *shapes):
    generator = torch.Generator().manual_seed(1)
    for shape in shapes:
        x = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected, found = module(x), network(x)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("small_kernel", [None, 3])
def test_contmix_with_open_sizes(small_kernel):
    torch.manual_seed(0)
    module = ContMix(8, kernel_size=5, small_kernel=small_kernel, num_heads=1, context_grid=3)
    for bias in (module.large_bias, module.small_bias):
        if bias is not None:
            nn.init.normal_(bias)
    network = exported(module.eval(), torch.randn(2, 8, 7, 9))
    assert_agrees(module, network, (2, 8, 7, 9), (1, 8, 5, 5), (3, 8, 11, 6))


def test_contmix_of_a_map_below_its_kernel_keeps_its_size():
    module = ContMix(8, kernel_size=5, num_heads=1, small_kernel=None).eval()
    with pytest.raises(ValueError, match="smaller than ContMix's kernel of 5x5"):
        exported(module, torch.randn(2, 8, 4, 9))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scan": "bidirectional", "segment_chunks": "all"},
        {"scan": "whole", "summary": "mean"},
        {"scan": "shuffled", "segment_chunks": 2, "readout_from": "key"},
        {"momentum": False, "decay": False, "depth": 1, "eval_chunk_size": 6},
        {"write": "none"},
    ],
    ids=str,
)
def test_memory_with_open_sizes(options):
    torch.manual_seed(0)
    module = NeuralMemory(8, chunk_size=8, expansion=2, **options).eval()
    network = exported(module, torch.randn(2, 8, 5, 6))
    # Of whole and of partial chunks, of chunks as long as the map allows, and of many.
    assert_agrees(module, network, (2, 8, 5, 6), (1, 8, 3, 3), (3, 8, 4, 2), (2, 8, 9, 11))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "size", "others"),
    [
        (
            "test_overlock",
            {"focus_depths": (1, 1)},
            (224, 224),
            [(1, 224, 256), (3, 211, 237)],
        ),
        ("test_convneur", {}, (64, 64), [(1, 64, 96), (3, 131, 97)]),
    ],
)
def test_backbone_with_open_sizes(name, arguments, size, others):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **arguments).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model = timm.utils.reparameterize_model(model)
    network = exported(model, torch.randn(2, 3, *size))
    assert_agrees(model, network, *((batch, 3, *other) for batch, *other in others))
