"""BatchNorm statistics of the weights that are evaluated, not of those of earlier steps.

The running statistics that BatchNorm keeps in training lag behind weights that move fast, and the
errors multiply with depth: after a short run a network can look half as good as it is.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_overlock.callbacks.ema import EMA

# A `BaseTask`, whose file imports this one.
Task = Any
# The entry of a checkpoint with the statistics that training goes on with.
TRAINING_STATISTICS = "training_statistics"
# For the comparison at the end of a run that does not re-estimate.
COMPARED_BATCHES = 20


class EvaluationStatistics:
    """Re-estimates the statistics of a task's batch norms for its evaluation and its checkpoints.

    They are averaged over the first training batches of the epoch, all equally, as in
    `torch.optim.swa_utils.update_bn`, with dropout and drop path as in evaluation; over several
    processes the mean is taken. So they are a function of the weights, the seed and the epoch.
    With an average of the weights they are those of the averaged network. Training goes on with
    its own running statistics. A checkpoint holds the re-estimated ones in its `state_dict` and
    training's as `training_statistics`. Norms that do not train keep what they have.

    Args:
        batches: How many batches; 0 leaves everything as it is.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.forget()

    def forget(self) -> None:
        """Start a run: what was found belongs to other weights."""
        self._norms: set[str] | None = None
        self._found: dict[str, Tensor] = {}
        self._step = -1
        # Training's statistics, as long as those for evaluation are in the network.
        self._held: dict[str, Tensor] = {}
        self._passes = 0
        self._seconds = 0.0

    def start(self, task: Task) -> None:
        """Note which norms train; frozen ones are left alone."""
        self._norms = {name for name, norm in batch_norms(task) if norm.training}

    def cost(self) -> str:
        """Say how often statistics were re-estimated and how long it took, "" for never."""
        if not self._passes:
            return ""
        return (
            f"BatchNorm statistics were re-estimated {self._passes} time(s) on {self.batches} "
            f"batches, {self._seconds:.1f} s in all"
        )

    def put_in(self, task: Task) -> None:
        """Give the network the statistics of its present weights."""
        if self._held or not self.batches:
            return
        found = self._of_this_step(task)
        buffers = dict(task.named_buffers())
        self._held = {name: buffers[name].clone() for name in found}
        _copy(found, buffers)

    def take_out(self, task: Task) -> None:
        """Give the network the statistics that it trains with."""
        _copy(self._held, dict(task.named_buffers()))
        self._held = {}

    def save(self, task: Task, checkpoint: dict[str, Any]) -> None:
        """Put both into a checkpoint that has the evaluated weights in its `state_dict`."""
        state = checkpoint["state_dict"]
        if self._held:
            checkpoint[TRAINING_STATISTICS] = dict(self._held)
        elif self.batches and (found := self._of_this_step(task, state)):
            checkpoint[TRAINING_STATISTICS] = {name: state[name].clone() for name in found}
            checkpoint["state_dict"] = {**state, **found}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Put training's statistics into the `state_dict` of a checkpoint that a run goes on from.

        A run that does not re-estimate goes on with them as well.
        """
        self.forget()
        checkpoint["state_dict"] |= checkpoint.get(TRAINING_STATISTICS, {})

    def compare(self, task: Task) -> None:
        """Log the monitored metric with running and with re-estimated statistics.

        Nothing is logged where there is nothing to compare: without batch norms that train,
        validation images, or training batches that can be read again.
        """
        trainer = task.trainer
        # One loader, or none; a list of several is another data module's.
        loader, counts = trainer.val_dataloaders, trainer.num_val_batches
        if loader is None or isinstance(loader, list) or counts == [0] or self._held:
            return
        with ExitStack() as stack:
            for callback in trainer.callbacks:
                if isinstance(callback, EMA):
                    stack.enter_context(callback.average_in(task))
            found = self._of_this_step(task) or self._estimate(task, COMPARED_BATCHES)
            if not found:
                return
            running = _evaluate(task)
            buffers = dict(task.named_buffers())
            held = {name: buffers[name].clone() for name in found}
            _copy(found, buffers)
            reestimated = _evaluate(task)
            _copy(held, buffers)
        name = task.monitor.removeprefix("val/")
        task.log_dict(
            {f"val_bn/{name}_running": running, f"val_bn/{name}_reestimated": reestimated}
        )
        if abs(running - reestimated) > noise(reestimated, len(getattr(loader, "source", ()))):
            used = "first is what this run reports; model.reestimate_bn 20 reports the second"
            if self.batches:
                used = "second is what this run reports"
            rank_zero_info(
                f"{task.monitor} is {running:.4f} with BatchNorm's running statistics and "
                f"{reestimated:.4f} with those of the final weights\nthe {used}"
            )

    def _of_this_step(
        self, task: Task, state: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the statistics by the buffers' names, of `state` or of what is in the task."""
        if self.batches and self._step != task.global_step:
            begin = time.perf_counter()
            with _weights(task, state or {}):
                self._found = self._estimate(task, self.batches)
            self._step = task.global_step
            if self._found:
                self._passes += 1
                self._seconds += time.perf_counter() - begin
        return self._found

    def _estimate(self, task: Task, batches: int) -> dict[str, Tensor]:
        trainer = task.trainer
        first_batches = getattr(trainer.train_dataloader, "first_batches", None)
        norms = [(n, m) for n, m in batch_norms(task) if self._norms is None or n in self._norms]
        if first_batches is None or not norms:
            return {}
        before = {f"{n}.{key}": b.clone() for n, m in norms for key, b in m.named_buffers()}
        count = min(batches, int(trainer.num_training_batches))
        with _averaging(task, [norm for _, norm in norms]), torch.no_grad():
            for batch in _on_device(task, islice(first_batches(count), count)):
                with trainer.precision_plugin.val_step_context():
                    task.pass_for_statistics(batch)
        found = {
            f"{name}.{key}": getattr(norm, key).clone()
            for name, norm in norms
            # What the pass does not reach, as a head of the training alone, keeps its own.
            if norm.num_batches_tracked
            for key in ("running_mean", "running_var")
        }
        _copy(before, dict(task.named_buffers()))
        return _mean_over_processes(task, found)


def batch_norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Return the batch norms with running statistics, by name."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def set_bn_momentum(network: nn.Module, momentum: float | None) -> None:
    """Set the weight of a new batch in the running statistics; None leaves the network's own."""
    if momentum is None:
        return
    for _, norm in batch_norms(network):
        norm.momentum = momentum


def _copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


@contextmanager
def _averaging(task: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Let norms average over what they see from now on, and all else be in evaluation mode."""
    modes = [(module, module.training) for module in task.modules()]
    momenta = [norm.momentum for norm in norms]
    task.eval()
    for norm in norms:
        norm.training = True
        norm.momentum = None  # the cumulative average
        assert norm.num_batches_tracked is not None
        # At the first batch the average is this batch; what was there has no part in it.
        norm.num_batches_tracked.zero_()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode


@contextmanager
def _weights(task: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Have the weights of `state` in the task where they are others than its own."""
    with torch.no_grad():
        own = task.state_dict()
        held = {
            name: own[name].clone()
            for name, value in state.items()
            if name in own and value.data_ptr() != own[name].data_ptr()
        }
        _copy({name: state[name] for name in held}, own)
        try:
            yield
        finally:
            _copy(held, own)


def _mean_over_processes(task: Task, found: dict[str, Tensor]) -> dict[str, Tensor]:
    if task.trainer.world_size == 1 or not found:
        return found
    flat = torch.cat([value.float().flatten() for value in found.values()])
    flat = task.trainer.strategy.reduce(flat, reduce_op="mean")
    parts = flat.split([value.numel() for value in found.values()])
    return {name: part.to(found[name].dtype) for name, part in zip(found, parts, strict=True)}


def ends_here(trainer: Trainer) -> bool:
    """Tell at the end of an epoch whether it is the run's last one; never of `fast_dev_run`."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return not trainer.fast_dev_run and (  # type: ignore[attr-defined]
        trainer.should_stop
        or 0 <= epochs <= trainer.current_epoch + 1
        or 0 <= steps <= trainer.global_step
    )


def _evaluate(task: Task) -> float:
    """Return the monitored metric of the validation images, amid a training."""
    trainer = task.trainer
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    task.reset_evaluation("val")
    batches = islice(trainer.val_dataloaders, int(trainer.num_val_batches[0]))
    with torch.no_grad(), trainer.precision_plugin.val_step_context():
        for batch in _on_device(task, batches):
            task.evaluate(batch, "val")
    for module, mode in modes:
        module.training = mode
    return float(task.evaluation("val")[task.monitor.removeprefix("val/")])


def _on_device(task: Task, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches as Lightning hands them to a step."""
    for batch in batches:
        converted = task.trainer.precision_plugin.convert_input(batch)
        yield task.trainer.strategy.batch_to_device(converted)


def noise(value: float, images: int) -> float:
    """Return what two measurements of a metric may differ by: two standard errors, or .5 points.

    Args:
        value: The metric, taken for a mean over images of values in [0, 1].
        images: Number of images.
    """
    share = min(max(value, 0.0), 1.0)
    return max(0.005, 2 * math.sqrt(share * (1 - share) / max(images, 1)))
