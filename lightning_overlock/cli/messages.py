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
    # A limit that a continued run does not have any more is no mistake.
    warnings.filterwarnings("ignore", r"(?s)Be aware that when using .*: \['Timer'\]", UserWarning)
    # The tasks log values that are reduced over all processes already.
    warnings.filterwarnings("ignore", "It is recommended to use `self.log.*sync_dist", UserWarning)


def _has_substance(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(("💡 Tip", "`weights_only` was not set", "TPU available: False"))


class FirstBatch(Callback):
    """Lets go of what is held back once a batch has gone through."""

    def __init__(self) -> None:
        self.handlers: list[MemoryHandler] = []
        self.warnings: list[tuple[Any, ...]] = []
        self.lines: list[str] = []
        self._show = warnings.showwarning
        self._passed = False

    def show_warning(self, *warning: Any, **more: Any) -> None:
        """Hold a warning back, or show it; in place of `warnings.showwarning`."""
        if self._passed:
            self._show(*warning, **more)
        else:
            self.warnings.append(warning)

    def say(self, line: str) -> None:
        """Hold a line back, or print it."""
        if self._passed:
            print(line)
        else:
            self.lines.append(line)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Let go, unless it is a batch that only shows whether training can begin."""
        if not trainer.sanity_checking:
            self.release()

    def release(self, *_: Any, **__: Any) -> None:
        """Let everything go, and what comes from now on at once."""
        if self._passed:
            return
        self._passed = True
        for line in self.lines:
            print(line)
        for handler in self.handlers:
            handler.capacity = 1
            handler.flush()
        for warning in self.warnings:
            self._show(*warning)

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = release


@contextmanager
def held_messages(wrong_input: tuple[type[Exception], ...]) -> Iterator[FirstBatch]:
    """Hold back what Lightning says (the seed, devices, the model's size) and Python's warnings.

    They are dropped where wrong input ends the command before its first batch, whose message then
    stands alone.

    Args:
        wrong_input: The exceptions that mean wrong input.

    Yields:
        The callback that lets go of them.
    """
    held = FirstBatch()
    kept = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    for name, handlers in kept.items():
        memories = [MemoryHandler(10_000, logging.ERROR, h, flushOnClose=False) for h in handlers]
        logging.getLogger(name).handlers = list[logging.Handler](memories)
        held.handlers += memories
    show, warnings.showwarning = warnings.showwarning, held.show_warning
    try:
        yield held
    except wrong_input:
        raise
    except BaseException:
        held.release()
        raise
    else:
        held.release()
    finally:
        warnings.showwarning = show
        for memory in held.handlers:
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
