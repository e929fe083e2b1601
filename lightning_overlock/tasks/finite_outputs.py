"""Outputs that are no numbers: an evaluation would take them for the first class."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_overlock.errors import InputError


class FiniteOutputs:
    """Counts images whose outputs are NaN or infinite, and stops what rests on them."""

    def __init__(self) -> None:
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._bad: Tensor | None = None
        self._seen = 0

    def count(self, outputs: Tensor) -> None:
        """Look at outputs (B, ...) of B images; nothing waits for the device."""
        bad = (~outputs.isfinite()).flatten(1).any(1).sum()
        self._bad = bad if self._bad is None else self._bad + bad
        self._seen += len(outputs)

    def refuse(self, trainer: Trainer, together: bool = True) -> None:
        """Stop if there were any since the last call.

        Args:
            trainer: The trainer.
            together: All processes call this, and all stop.

        Raises:
            InputError: There were.
        """
        found = self._bad is not None and bool(self._bad)
        any_found = found
        if together:
            any_found = trainer.strategy.reduce_boolean_decision(found, all=False)
        bad, seen = self._bad, self._seen
        self._start_afresh()
        if any_found:
            count = f"{int(bad)} of {seen} images" if found and bad is not None else "images"
            raise InputError(
                f"the network's outputs are not finite for {count}: they have no class\n"
                f"try trainer.precision 32-true (it is {trainer.precision}); after a diverged "
                "training an earlier checkpoint, and a lower model.lr"
            )


def refuse_bad_weights(weights: dict[str, Tensor]) -> None:
    """Stop before an evaluation whose weights are no numbers.

    Args:
        weights: A network's state dict.

    Raises:
        InputError: One of them is NaN or infinite.
    """
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    if not floats or bool(torch.stack([v.isfinite().all() for v in floats.values()]).all()):
        return
    bad = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    raise InputError(
        f"{len(bad):,} of {len(floats):,} weights are not finite (first {bad[0]}), so that nothing "
        "can be evaluated with them\nexpected a checkpoint from before the training diverged"
    )
