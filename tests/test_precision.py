"""Large activations under autocast: in 16 bits they are finite, and near float32's, too."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

import lightning_overlock  # noqa: F401  registers the models
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.conv_mlp import ChannelScale, ConvMlp, GlobalResponseNorm
from lightning_overlock.layers.conv_norm import ConvNorm, NormConv, ResidualDepthwise
from lightning_overlock.layers.dilated_reparam import DilatedReparamConv
from lightning_overlock.models.overlock import ChannelAttention

DIM = 16
PARTS = {
    "seven branches": lambda: DilatedReparamConv(DIM, 13),
    "batch norm": lambda: nn.BatchNorm2d(DIM),
    "convolution and batch norm": lambda: ConvNorm(DIM, DIM, 3),
    "batch norm and convolution": lambda: NormConv(DIM, DIM),
    "global response norm": lambda: GlobalResponseNorm(DIM),
    "layer norm": lambda: LayerNorm2d(DIM),
    "channel attention": lambda: ChannelAttention(DIM),
    "residual convolution": lambda: ResidualDepthwise(DIM),
    "channel scale": lambda: ChannelScale(DIM),
    "MLP": lambda: ConvMlp(DIM, 2 * DIM, DIM),
    "ContMix": lambda: ContMix(DIM, kernel_size=5, small_kernel=3, num_heads=1, context_grid=3),
}
DTYPES = (torch.bfloat16, torch.float16)


def with_random_parameters(module):
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 or "gamma" in name or "beta" in name:
            nn.init.normal_(parameter, float("weight" in name), 0.3)
    return module


def fit_statistics(module, x):
    """Give every batch norm the running statistics of x, as training would have."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1
    with torch.no_grad():
        module.train()(x)


def fits_half(x):
    return x.abs().max() < torch.finfo(torch.float16).max


def loud_map(scale):
    """(2, C, 13, 13) up to twice the scale, with one channel that is far from zero."""
    x = torch.randn(2, DIM, 13, 13).clamp(-2, 2) * scale
    x[:, 3] = x[:, 3].abs()
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_stands_large_activations(part, training, scale, dtype):
    torch.manual_seed(0)
    module, x = with_random_parameters(PARTS[part]()), loud_map(scale)
    fit_statistics(module, x)
    module.train(training)
    wide, narrow = x.clone().requires_grad_(), x.to(dtype).requires_grad_()
    reference = module(wide)
    assert fits_half(reference)
    grad = torch.randn_like(reference) / 16
    expected = torch.autograd.grad(reference, [wide, *module.parameters()], grad)
    with torch.autocast("cpu", dtype):
        found = module(narrow)
    error = (found.float() - reference).norm() / reference.norm()
    assert error < (0.04 if dtype == torch.bfloat16 else 0.005)
    gradients = torch.autograd.grad(found, [narrow, *module.parameters()], grad.to(found.dtype))
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.isfinite().all() or not fits_half(other)


def test_squares_in_the_global_response_norm_do_overflow_half_precision():
    # So that the test above means something: a norm taken in the map's own dtype is infinite.
    x = loud_map(1e3).half()
    assert (x * x).sum((2, 3)).isinf().any()
    norm = with_random_parameters(GlobalResponseNorm(DIM))
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=2e-3, atol=1)


def test_the_gradient_of_the_global_response_norm_does_not_overflow_on_the_way():
    # The gradient of a channel's factor sums gradient times map: 169 * 0.1 * 1e4 is no float16.
    norm = with_random_parameters(GlobalResponseNorm(DIM))
    x = loud_map(1e4).abs()
    wide, narrow = x.clone().requires_grad_(), x.half().requires_grad_()
    grads = [torch.autograd.grad(norm(y), y, torch.full_like(y, 0.1))[0] for y in (wide, narrow)]
    torch.testing.assert_close(grads[1].float(), grads[0], rtol=2e-3, atol=1e-3)


def loud_model():
    """All parts of OverLoCK with activations of up to 1e4 in the residual stream and the MLPs."""
    torch.manual_seed(0)
    model = timm.create_model("test_overlock", num_classes=4)
    nn.init.constant_(model.stem[6].norm.weight, 5e3)
    for module in model.modules():
        if isinstance(module, GlobalResponseNorm):
            nn.init.normal_(module.gamma, 0, 0.3)
        if isinstance(module, ConvMlp):
            module.fc1.weight.data.mul_(1e4)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_the_network_stands_large_activations(training, dtype):
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    loudest = []

    def listen(_module, _inputs, output):
        if isinstance(output, torch.Tensor):
            loudest.append(output.detach().abs().max().item())

    losses = []
    for narrow in (False, True):
        model = loud_model().train(training)
        for module in model.modules():
            module.register_forward_hook(listen)
        with torch.autocast("cpu", dtype, enabled=narrow):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert max(loudest) > 5e3
    assert losses[1] == pytest.approx(losses[0], rel=0.04)
