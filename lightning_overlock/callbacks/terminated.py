"""A prediction that is asked to end."""

import signal
from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_overlock.errors import Interrupted


class StopPrediction(Callback):
    """Ends a prediction after the batch in which SIGTERM came; Lightning would go on to the end."""

    def on_predict_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Stop if a signal asked for it; what was written until now is good.

        Raises:
            Interrupted: It did.
        """
        if trainer.received_sigterm:
            raise Interrupted(signal.SIGTERM)
