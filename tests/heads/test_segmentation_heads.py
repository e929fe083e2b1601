"""Segmentation heads against parameter counts by hand, plain arithmetic and their gradients."""

import pytest
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn import functional as F

from lightning_overlock.heads.conv import HeadNorm
from lightning_overlock.heads.fcn import FCNHead
from lightning_overlock.heads.semantic_fpn import SemanticFPNHead
from lightning_overlock.heads.upernet import UPerHead

CHANNELS = [8, 16, 24, 32]


def maps(height=16, width=24, batch=2, channels=CHANNELS):
    """Return four maps; sides that do not halve evenly are rounded up, as convolutions do."""
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(4)]
    return [torch.randn(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def conv(inside, outside, kernel):
    """Parameters of convolution without bias and batch norm."""
    return inside * outside * kernel**2 + 2 * outside


def test_upernet_of_overlock_t_has_as_many_parameters_as_its_parts():
    """PPM with 1 2 3 6, bottleneck, three laterals, three 3x3, fusion, 150 classes."""
    channels, w = [64, 128, 384, 640], 512
    parts = 4 * conv(640, w, 1) + conv(640 + 4 * w, w, 3)
    parts += sum(conv(c, w, 1) for c in channels[:3]) + 3 * conv(w, w, 3)
    parts += conv(4 * w, w, 3) + w * 150 + 150
    with torch.device("meta"):
        assert count(UPerHead(channels, 150)) == parts
        assert count(FCNHead(384, 150)) == conv(384, 256, 3) + 256 * 150 + 150


def test_semantic_fpn_has_as_many_parameters_as_its_parts():
    parts = sum(c * 256 + 256 for c in CHANNELS) + 4 * (256 * 256 * 9 + 256)
    # One convolution at H/4 and H/8, two at H/16, three at H/32.
    parts += 4 * conv(256, 128, 3) + 3 * conv(128, 128, 3) + 128 * 150 + 150
    with torch.device("meta"):
        assert count(SemanticFPNHead(CHANNELS, 150)) == parts


@pytest.mark.parametrize("size", [(16, 24), (19, 13)])
@pytest.mark.parametrize("head", [UPerHead, SemanticFPNHead])
def test_logits_have_the_finest_maps_size_and_every_parameter_a_gradient(head, size):
    head = head(CHANNELS, 5, 16)
    logits = head(maps(*size))
    assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []


def test_fcn_head_keeps_the_maps_size():
    head = FCNHead(24, 5, 16, depth=2)
    logits = head(torch.randn(2, 24, 7, 9))
    assert logits.shape == (2, 5, 7, 9)
    logits.square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []


def test_pyramid_pooling_averages_the_last_map_over_its_grids():
    """A pool's input is numpy-plain cell means; scale 1 is the mean of the whole map."""
    head = UPerHead(CHANNELS, 5, 16).eval()
    seen = []
    for pool in head.pools:
        pool[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = maps(48, 48)
    head(x)
    assert [tuple(s.shape[2:]) for s in seen] == [(1, 1), (2, 2), (3, 3), (6, 6)]
    torch.testing.assert_close(seen[0][..., 0, 0], x[3].mean((2, 3)))
    torch.testing.assert_close(seen[2][..., 1, 2], x[3][..., 2:4, 4:6].mean((2, 3)))


def test_semantic_fpn_sums_its_levels():
    head = SemanticFPNHead(CHANNELS, 5, 16).eval()
    levels = []
    for level in head.levels:
        level.register_forward_hook(lambda module, args, out: levels.append(out))
    seen = []
    head.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    head(maps(16, 32))
    assert {tuple(level.shape) for level in levels} == {(2, 16, 16, 32)}
    torch.testing.assert_close(seen[0], sum(levels))


@pytest.mark.parametrize("head", [UPerHead, SemanticFPNHead])
def test_a_batch_of_one_small_image_trains(head):
    head = head(CHANNELS, 5, 16)
    logits = head(maps(8, 8, batch=1))
    logits.sum().backward()
    assert torch.isfinite(logits).all()


def test_one_value_per_channel_is_normalised_by_running_statistics_and_more_as_ever():
    ours, plain = HeadNorm(3), nn.BatchNorm2d(3)
    for norm in (ours, plain):
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0, 9.0]))
    one = torch.tensor([3.0, 2.0, 9.0]).reshape(1, 3, 1, 1)
    expected = torch.tensor([1.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(ours(one), expected, rtol=1e-4, atol=1e-4)
    assert ours.running_mean.tolist() == [1, 2, 3]
    many = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours(many), plain(many))
    torch.testing.assert_close(ours.running_mean, plain.running_mean)


def test_heads_learn_a_map_of_two_halves():
    torch.manual_seed(0)
    x = maps(16, 16, batch=4)
    target = torch.zeros(4, 16, 16, dtype=torch.long)
    target[:, :, 8:] = 1
    for level, y in enumerate(x):
        y[..., : 8 // 2**level] += 2
    head = UPerHead(CHANNELS, 2, 16)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(head(x), target).backward()
        optimizer.step()
    assert (head.eval()(x).argmax(1) == target).float().mean() > 0.95


@pytest.mark.parametrize("head", [UPerHead, SemanticFPNHead])
def test_timm_s_inference_form_changes_no_output(head):
    model, levels = head(CHANNELS, 5).eval(), maps()
    with torch.inference_mode():
        torch.testing.assert_close(reparameterize_model(model)(levels), model(levels))
