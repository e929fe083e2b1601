"""What Lightning says: held back until there is a result, so that a mistake is told alone."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count

LOGGERS = ("lightning.pytorch", "lightning.fabric")


def keep_quiet() -> None:
    """Silence what Lightning says that nobody at the command line can act on."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_has_substance)
    # Lightning 2.6 asks torch in a way that torch 2.10 has deprecated.
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.", FutureWarning)
    # The tasks log values that are reduced over all processes already.
    warnings.filterwarnings("ignore", "It is recommended to use `self.log.*sync_dist", UserWarning)


def _has_substance(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(("💡 Tip", "`weights_only` was not set", "TPU available: False"))


class FirstBatch(Callback):
    """Lets go of the messages that are held back, once a batch has gone through.

    Args:
        handlers: What holds them.
    """

    def __init__(self, handlers: list[MemoryHandler]) -> None:
        self.handlers = handlers

    def _release(self, *_: Any, **__: Any) -> None:
        for handler in self.handlers:
            handler.capacity = 1  # what comes from now on passes at once
            handler.flush()

    on_train_batch_end = on_validation_batch_end = _release
    on_test_batch_end = on_predict_batch_end = _release


@contextmanager
def held_messages(wrong_input: tuple[type[Exception], ...]) -> Iterator[FirstBatch]:
    """Hold Lightning's messages (the seed, devices, the model's summary) back.

    They are dropped where wrong input ends the command before its first batch, whose message then
    stands alone.

    Args:
        wrong_input: The exceptions that mean wrong input.

    Yields:
        The callback that lets go of them.
    """
    kept = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    held: list[MemoryHandler] = []
    for name, handlers in kept.items():
        for handler in handlers:
            memory = MemoryHandler(10_000, logging.ERROR, handler, flushOnClose=False)
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).addHandler(memory)
            held.append(memory)
    dropped = False
    try:
        yield FirstBatch(held)
    except wrong_input:
        dropped = True
        raise
    finally:
        for memory in held:
            if not dropped:
                memory.flush()
            memory.close()
        for name, handlers in kept.items():
            logging.getLogger(name).handlers = handlers


class ParameterCount(ModelSummary):
    """Says how large the network is: a line per part with its trainable and frozen parameters.

    Lightning's own table has columns of FLOPs that are 0 for every model, as it measures none.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the lines."""
        if not trainer.is_global_zero:
            return
        parts = [(name, part) for name, part in pl_module.named_children() if _count(part)]
        lines = [
            f"{name}: {type(part).__name__}, {get_human_readable_count(_count(part))} parameters"
            + (f", {get_human_readable_count(frozen)} of them frozen" if frozen else "")
            for name, part in parts
            for frozen in [_count(part) - _count(part, trainable=True)]
        ]
        logging.getLogger("lightning.pytorch.callbacks.model_summary").info("\n".join(lines))


def _count(part: Any, trainable: bool = False) -> int:
    return sum(p.numel() for p in part.parameters() if p.requires_grad or not trainable)
