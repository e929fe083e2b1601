"""Backbones, registered with timm on import."""

from lightning_overlock.models import convneur as convneur
from lightning_overlock.models import overlock as overlock
