"""A network of 16 bits must not round away what adds up over many steps."""

import pytest
import torch
from torch import nn

from lightning_overlock.tasks import ClassificationTask

TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def task(backbone="test_resnet"):
    torch.manual_seed(0)
    return ClassificationTask(class_names=["a", "b"], backbone=backbone)


@TYPES
def test_running_statistics_reach_the_values_that_they_have_in_float32(dtype):
    found, expected = task().model.to(dtype), task().model
    converted = task().to(dtype).model
    norms = {
        name: next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
        for name, network in (("plain", found), ("kept", converted), ("exact", expected))
    }
    channels = norms["exact"].num_features
    for step in range(200):
        x = 1 + 0.5 * torch.randn(4, channels, 4, 4, generator=torch.manual_seed(step))
        for name, norm in norms.items():
            norm(x if name == "exact" else x.to(dtype))
    mean = norms["exact"].running_mean
    assert norms["kept"].running_mean.dtype == torch.float32
    assert (norms["kept"].running_mean - mean).abs().max() < 2e-3
    if dtype == torch.bfloat16:  # what the test protects from
        assert (norms["plain"].running_mean - mean).abs().max() > 4e-3


@TYPES
def test_the_mean_loss_of_many_batches_is_that_of_all(dtype):
    model = task().to(dtype)
    values = torch.linspace(1, 3, 600)
    torch.set_default_dtype(dtype)  # as Lightning does around a step
    try:
        for value in values:
            model.losses["val"].update(value.to(dtype), weight=2)
        found = model.losses["val"].compute()
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(found) == pytest.approx(float(values.mean()), rel=1e-3)


@TYPES
@pytest.mark.parametrize("backbone", ["test_resnet", "test_overlock", "test_convnext"])
def test_a_converted_network_trains_and_is_evaluated(backbone, dtype):
    model = task(backbone).to(dtype)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(t.dtype != dtype for m in norms for t in (*m.parameters(), *m.buffers()))
    of_norms = {id(weight) for norm in norms for weight in norm.parameters()}
    assert {p.dtype for p in model.parameters() if id(p) not in of_norms} == {dtype}
    images = torch.randn(2, 3, 64, 64).to(dtype)
    assert model(images).dtype == dtype
    model(images).float().sum().backward()
    assert model.eval()(images).dtype == dtype


def test_what_was_kept_is_the_same_bit_by_bit():
    model = task()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    # float64 is no loss, and wanted by whoever asks for it.
    model.to(torch.float64)
    assert {v.dtype for v in model.buffers() if v.is_floating_point()} == {torch.float64}
