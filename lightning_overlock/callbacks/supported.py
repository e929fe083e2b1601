"""Which of Lightning's callbacks cannot do here what they are documented to do."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

from lightning_overlock.errors import InputError

# Why, and what to do instead. Subclasses are meant as well.
REFUSED: dict[type[Callback], str] = {
    BaseFinetuning: "every parameter has its rate from the start; set model.layer_decay",
    BatchSizeFinder: "the schedule and exact continuation rest on data.batch_size; set that",
    GradientAccumulationScheduler: (
        "the schedule counts steps of one size; set trainer.accumulate_grad_batches"
    ),
    LearningRateFinder: (
        "a run must be repeatable from its configuration; try rates with the sweep learning_rate "
        "and set model.lr"
    ),
    ModelPruning: "it renames the weights that checkpoints and evaluation are built on",
    StochasticWeightAveraging: (
        "its rate and its statistics are the task's own; set ema.decay and model.reestimate_bn"
    ),
    WeightAveraging: "the average of the weights is the package's own; set ema.decay",
}


def refuse_unsupported(trainer: Trainer) -> None:
    """Refuse callbacks that would work against the tasks' schedule, weights or checkpoints.

    Raises:
        InputError: There is one among the trainer's callbacks.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise InputError(f"trainer.callbacks: no {type(callback).__name__} here: {reason}")
