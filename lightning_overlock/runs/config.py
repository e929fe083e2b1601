"""The configuration that made a run, kept beside it and inside its checkpoints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class RunConfig(Callback):
    """Writes the configuration to a file when training starts, and into every checkpoint.

    Args:
        text: The configuration as YAML.
        path: The file, None to write none.
    """

    def __init__(self, text: str, path: Path | None) -> None:
        self.text = text
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        if stage == "fit" and self.path is not None and trainer.is_global_zero:
            self.path.write_text(self.text)

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Add the key "config"."""
        checkpoint["config"] = self.text
