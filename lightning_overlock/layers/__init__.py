"""Modules that a backbone is made of, usable in anybody's network."""

# First: timm's import registers our models, which import the layers below.
import timm as timm

from lightning_overlock.layers.contmix import ContMix as ContMix
from lightning_overlock.layers.dilated_reparam import DilatedReparamConv as DilatedReparamConv
from lightning_overlock.layers.neural_memory import NeuralMemory as NeuralMemory
