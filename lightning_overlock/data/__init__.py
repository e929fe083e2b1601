"""Data modules: images and labels for the tasks."""

from lightning_overlock.data.digits import ClutteredDigitsDataModule, DigitsDataModule

__all__ = ["ClutteredDigitsDataModule", "DigitsDataModule"]
