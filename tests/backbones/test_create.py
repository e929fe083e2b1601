"""What a backbone refuses is told by its cause."""

import pytest
import timm
import torch

from lightning_overlock.backbones.create import input_channels, refusal_explained
from lightning_overlock.errors import InputError


def refusal(name, shape, train=False, **arguments):
    model = timm.create_model(name, **arguments).train(train)
    images = torch.zeros(shape)
    with pytest.raises(InputError) as raised, refusal_explained(name, model, images):
        model(images)
    return str(raised.value)


@pytest.mark.parametrize("name", ["test_overlock", "test_convnext", "test_resnet", "test_convneur"])
@pytest.mark.parametrize(("taken", "given"), [(1, 3), (3, 1), (4, 3)])
def test_other_channels_are_told_as_such(name, taken, given):
    told = refusal(name, (2, given, 64, 64), in_chans=taken)
    assert told.splitlines() == [
        f"{name} has in_chans {taken}, the images have {given} channels",
        f"expected model.backbone_args.in_chans {given}",
    ]


@pytest.mark.parametrize("name", ["test_overlock", "test_resnet", "test_efficientnet"])
def test_a_batch_norm_with_one_value_is_told_as_such(name):
    told = refusal(name, (1, 3, 32, 32), train=True)
    assert told.startswith(f"BatchNorm of {name} cannot train on one value: a batch of 1 image")
    assert "data.batch_size of at least 2" in told


def test_a_size_that_the_network_refuses_is_told_as_such():
    told = refusal("test_overlock", (2, 3, 16, 16))
    assert told.startswith("test_overlock takes no images of (3, 16, 16)")


@pytest.mark.parametrize("name", ["test_overlock", "test_vit", "resnet18", "test_convnext3"])
def test_a_model_says_its_channels(name):
    assert input_channels(timm.create_model(name, in_chans=5)) == 5
