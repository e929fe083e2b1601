import pytest
import torch

from lightning_overlock.layers import conv_mlp
from lightning_overlock.layers.conv_mlp import ConvMlp


def make() -> tuple[ConvMlp, torch.Tensor]:
    torch.manual_seed(0)
    mlp = ConvMlp(4, 16, 4).double()
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mlp, torch.randn(5, 4, 6, 7, dtype=torch.float64)


def batches(mlp: ConvMlp) -> list[int]:
    """Sizes of the batches that the first convolution sees from now on."""
    seen = []
    forward = mlp.fc1.forward

    def watched(x):
        seen.append(len(x))
        return forward(x)

    mlp.fc1.forward = watched
    return seen


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_inference_takes_a_few_images_at_a_time_and_gives_the_same(memory_format, monkeypatch):
    mlp, x = make()
    x = x.contiguous(memory_format=memory_format)
    expected = mlp(x).detach()
    seen = batches(mlp)
    for images, parts in ((2, [2, 2, 1]), (0.5, [1] * 5), (5, [5])):
        monkeypatch.setattr(conv_mlp, "HIDDEN_BYTES", int(images * 16 * 42 * 8))
        seen.clear()
        with torch.inference_mode():
            found = mlp(x)
        assert seen == parts
        assert found.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_training_hooks_and_traces_see_the_whole_batch(monkeypatch):
    monkeypatch.setattr(conv_mlp, "HIDDEN_BYTES", 1)
    mlp, x = make()
    shapes = []
    with torch.no_grad():
        with mlp.grn.register_forward_hook(lambda *args: shapes.append(args[2].shape)):
            mlp(x)
        assert shapes == [(5, 16, 6, 7)]
        program = torch.export.export(mlp, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        assert program.module()(x[:3]).shape == (3, 4, 6, 7)
    seen = batches(mlp)
    mlp(x)
    assert seen == [5]
