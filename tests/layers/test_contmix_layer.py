"""The ContMix layer against a loop over pixels that follows the paper's steps in float64."""

import pytest
import torch
from torch.nn import functional as F

from lightning_overlock.layers import ContMix


def batch_norm(norm, x):
    shape = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def one_by_one(conv, x):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)


def by_hand(layer, x, context, value):
    size = x.shape[-2:]
    short = min(size)
    if short < layer.kernel_size:
        new = [layer.kernel_size * length // short for length in size]
        x, context, value = (
            F.interpolate(t, new, mode="bilinear", align_corners=False) for t in (x, context, value)
        )
    batch, channels, height, width = x.shape
    groups, grid = layer.groups, layer.context_grid
    query = batch_norm(layer.query.norm, one_by_one(layer.query.conv, x))
    query = query * (channels / groups) ** -0.5
    pooled = F.adaptive_avg_pool2d(context, grid)
    key = batch_norm(layer.key.norm, one_by_one(layer.key.conv, pooled))
    query = query.reshape(batch, groups, -1, height, width)
    key = key.reshape(batch, groups, -1, grid * grid)
    out = torch.zeros_like(value)
    sizes = [s for s in (layer.small_kernel, layer.kernel_size) if s]
    tables = [layer.small_bias, layer.large_bias][-len(sizes) :]
    part = channels // len(sizes)
    for i in range(height):
        for j in range(width):
            affinity = torch.einsum("bgc,bgcn->bgn", query[..., i, j], key)
            logits = affinity @ layer.kernel_map.weight.T + layer.kernel_map.bias
            for number, (k, table) in enumerate(zip(sizes, tables, strict=True)):
                mine = logits[..., -(k * k) :] if number else logits[..., : k * k]
                top = min(max(i - k // 2, 0), height - k)
                left = min(max(j - k // 2, 0), width - k)
                rows = torch.arange(top, top + k) - i + k - 1
                columns = torch.arange(left, left + k) - j + k - 1
                mine = mine + table[:, rows][:, :, columns].reshape(groups, -1)
                kernel = mine.softmax(-1).repeat_interleave(part // groups, dim=1)
                own = slice(number * part, (number + 1) * part)
                window = value[:, own, top : top + k, left : left + k].flatten(2)
                out[:, own, i, j] = (window * kernel).sum(-1)
    out = F.adaptive_avg_pool2d(out, size)
    return batch_norm(layer.proj.norm, one_by_one(layer.proj.conv, out))


@pytest.mark.parametrize("size", [(7, 9), (4, 5), (1, 1), (8, 7)])
@pytest.mark.parametrize("small", [3, None])
def test_layer_follows_the_papers_steps(size, small):
    torch.manual_seed(0)
    layer = ContMix(16, 4, kernel_size=7, small_kernel=small, num_heads=2, context_grid=3)
    layer = layer.double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, value = torch.randn(2, 2, 16, *size, dtype=torch.float64)
    context = torch.randn(2, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        ours, expected = layer(x, context, value), by_hand(layer, x, context, value)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_without_context_the_input_is_its_own():
    torch.manual_seed(0)
    layer = ContMix(16, kernel_size=5, small_kernel=3, num_heads=2).eval()
    x = torch.randn(1, 16, 9, 6)
    torch.testing.assert_close(layer(x), layer(x, x, x))


def test_context_may_have_another_size_than_the_features():
    layer = ContMix(16, 8, kernel_size=5, small_kernel=3, num_heads=2)
    assert layer(torch.randn(2, 16, 10, 12), torch.randn(2, 8, 3, 3)).shape == (2, 16, 10, 12)
