"""Task and data of a `fit` command line, without training: a sweep looks at its rows."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_overlock.cli.request import read_request
from lightning_overlock.cli.training import TrainingCLI


class _Builder(TrainingCLI):
    """Parses as `fit` does and builds task and data, without trainer, seed and run folder."""

    def _set_seed(self) -> None:
        """Leave the random state alone."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build none."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def build(
    arguments: list[str], device: str = "meta"
) -> tuple[LightningModule, LightningDataModule]:
    """Build the task and the data of a `fit` command line; nothing is trained or written.

    Args:
        arguments: What a person would type after `lightning`: "fit" and its options.
        device: Where the task's weights are made; "meta" makes none and takes no time.

    Raises:
        InputError: `lightning fit` would refuse it as well.
    """
    with torch.device(device):
        cli = _Builder(read_request(arguments[0], arguments[1:]))
    return cli.model, cli.datamodule


class _Parsed(_Builder):
    """Parses as `fit` does and builds nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


def warm_up(arguments: list[str]) -> None:
    """Read a `fit` command line and drop it: the next one finds the parser built.

    No operation of torch is run.

    Args:
        arguments: What a person would type after `lightning`: "fit" and its options.
    """
    _Parsed(read_request(arguments[0], arguments[1:]))
