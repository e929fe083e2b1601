"""The backbones as encoders of segmentation_models_pytorch and torchgeo, through timm's registry.

Run by `make contract` in an environment of its own; not collected by the other test commands.
"""

import lightning.pytorch as pl
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchgeo.trainers import ClassificationTask, SemanticSegmentationTask

import lightning_overlock  # noqa: F401 (registers the backbones)

BACKBONES = ["test_overlock", "test_convneur"]
DECODERS = [
    *("Unet", "UnetPlusPlus", "FPN", "UPerNet", "MAnet", "Linknet", "Segformer"),
    *("DeepLabV3", "DeepLabV3Plus", "PAN"),
]


def decoder(name: str, encoder: str) -> nn.Module:
    return getattr(smp, name)(f"tu-{encoder}", encoder_weights=None, in_channels=3, classes=5)


def refuses(network: nn.Module, images: torch.Tensor) -> bool:
    try:
        network(images)
    except (RuntimeError, ValueError) as error:
        return "divisible" in str(error) or "too small" in str(error)
    return False


@pytest.mark.parametrize("size", [(64, 64), (128, 160), (97, 131)])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_decoder_of_smp_takes_what_it_takes_of_resnet18(
    backbone: str, name: str, size: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *size)
    network = decoder(name, backbone)
    if refuses(decoder(name, "resnet18"), images):
        # The decoder's own limits: sizes that it wants divisible, a pooled map of nothing.
        assert size != (128, 160)
        assert refuses(network, images)
        return
    logits = network(images)
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchgeo_trains_a_classifier_of_four_channels(backbone: str) -> None:
    task = ClassificationTask(backbone, weights=None, in_channels=4, num_classes=3)
    train(task, "label", torch.tensor(1))


@pytest.mark.parametrize("decoder_name", ["unet", "deeplabv3+", "upernet"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchgeo_trains_a_segmenter_of_four_channels(backbone: str, decoder_name: str) -> None:
    task = SemanticSegmentationTask(
        decoder_name,
        f"tu-{backbone}",
        weights=None,
        in_channels=4,
        task="multiclass",
        num_classes=3,
    )
    train(task, "mask", torch.ones(64, 64, dtype=torch.long))


def train(task: pl.LightningModule, key: str, target: torch.Tensor) -> None:
    """One step of training and one of validation change the backbone."""
    before = {name: value.clone() for name, value in task.named_parameters()}
    items = [{"image": torch.randn(4, 64, 64), key: target} for _ in range(4)]
    loader = DataLoader(items, batch_size=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader, loader)
    moved = [
        name for name, value in task.named_parameters() if not torch.equal(value, before[name])
    ]
    assert len(moved) > 0.5 * len(before)
