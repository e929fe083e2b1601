"""Options that were typed and would change nothing: refused."""

import importlib

from lightning_overlock.cli.request import Request, typed_options
from lightning_overlock.errors import InputError

# Options of the trainer and of a run that only training uses.
OF_TRAINING = frozenset(
    f"trainer.{name}"
    for name in (
        "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches",
        "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps",
        "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
        "log_every_n_steps", "enable_checkpointing", "reload_dataloaders_every_n_epochs",
    )
)  # fmt: skip
# Each evaluation uses its own limit.
LIMITS = {
    name: f"trainer.limit_{kind}_batches"
    for name, kind in (("validate", "val"), ("test", "test"), ("predict", "predict"))
}


def options_of_class(class_path: str, attribute: str) -> frozenset[str]:
    """Return a set of options that a task or data module declares, empty where it does not.

    These are "overridable_options" of a task, which may differ from a checkpoint's, and
    "training_options" and "labelled_options" of data, see `BaseDataModule`.
    """
    module, _, name = class_path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return getattr(found, attribute, frozenset())


def refuse_unused(request: Request) -> None:
    """Refuse options of the trainer and of the run that a command makes no use of."""
    command = request.command
    if command == "fit":
        return
    unused = OF_TRAINING | set(LIMITS.values()) - {LIMITS[command]}
    for name, _ in typed_options(request.words):
        if name in unused or name.startswith("ema.") or name in {"logger", "group"}:
            raise InputError(
                f"--{name}: {command} makes no use of this option.\n"
                f"Leave it out; `lightning {command} --help` lists what it uses."
            )


def refuse_unused_data_options(request: Request, class_path: str) -> None:
    """Refuse options of the data that a command makes no use of.

    Args:
        request: What was typed.
        class_path: The data module.
    """
    command = request.command
    if command == "fit":
        return
    unused = dict.fromkeys(options_of_class(class_path, "training_options"), "Only fit does")
    names = [name for name, _ in typed_options(request.words) if name.startswith("data.")]
    typed = {name.removeprefix("data.").removeprefix("init_args."): name for name in names}
    if command != "predict":
        unused["predict_dir"] = "Only predict does"
    elif "predict_dir" in typed and request.checkpoint is not None:
        reason = "The checkpoint and data.predict_dir say all"
        unused |= dict.fromkeys(options_of_class(class_path, "labelled_options"), reason)
    for option in typed.keys() & unused.keys():
        raise InputError(
            f"--{typed[option]}: {command} makes no use of this option.\n"
            f"{unused[option]}; leave it out."
        )
