"""Building every row of a sweep before anything runs, so that mistakes are told at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.robustness.folders import find
from lightning_overlock.robustness.options import MAX_LEFT_OUT, require_folders
from lightning_overlock.sweep.spec import Sweep, as_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import LightningDataModule, LightningModule

    # Makes the task and the data of a `fit` command line, without training: `cli.build`.
    Build = Callable[..., tuple[LightningModule, LightningDataModule]]


def validate(sweep: Sweep, build: "Build") -> None:
    """Build every row's task and data, so that a mistake is told before anything runs.

    In a search or a grid every choice is built once, and both ends of every range.

    Args:
        sweep: The sweep.
        build: Makes task and data of a `fit` command line.

    Raises:
        InputError: `lightning fit` would refuse a row or point, two rows build the same network, or
            the task does not log the metric, or the images of `robustness` are none of its classes.
    """
    prefix = f"{sweep.path}, robustness."
    folders = {name: Path(folder).expanduser() for name, folder in sweep.robustness.items()}
    require_folders(folders, prefix)
    seen: list[tuple[str, Any]] = []
    classes: set[tuple[str, ...]] = set()
    for key, options in _points(sweep).items():
        try:
            task, data = build(sweep.arguments(options, sweep.seeds[0], "row"))
        except InputError as error:
            # Blame what all rows share where it is wrong by itself.
            where = key if _builds(sweep, build) else f"profiles.{sweep.profile}"
            lines = f"{sweep.path}, {where}: {error}".splitlines()
            raise InputError("\n".join(lines[:3])) from error
        known = _logged(task)
        if known and sweep.metric not in known:
            raise InputError(
                f"{sweep.path}, metric: {type(task).__name__} logs no '{sweep.metric}'."
                f"{did_you_mean(sweep.metric, known)}\nExpected one of {', '.join(known)}."
            )
        _refuse_cost(sweep, task)
        if sweep.robustness:
            classes.add(_classes(sweep, task))
        if sweep.search is None and key.startswith("rows."):
            seen.append((key, _built(sweep, options, task, data)))
            _refuse_twins(sweep, seen)
    for names in classes:  # of most sweeps one list, and the folders may be large
        find(folders, names, MAX_LEFT_OUT, prefix)


def _classes(sweep: Sweep, task: Any) -> tuple[str, ...]:
    """Return the classes of a row, which the folders of `robustness` are held against."""
    if "val/top1" not in _logged(task):
        raise InputError(
            f"{sweep.path}, robustness: measured of classifiers alone, found a "
            f"{type(task).__name__}.\nLeave this key out."
        )
    return tuple(task.class_names)


def _refuse_cost(sweep: Sweep, task: "LightningModule") -> None:
    cost = sweep.cost
    # By name: whoever reads a sweep file needs no task.
    if cost in {"params", "gmacs"} and "val/top1" not in _logged(task):
        raise InputError(
            f"{sweep.path}, search.cost: {cost} is counted of classifiers alone, found a "
            f"{type(task).__name__}.\nExpected seconds."
        )


def _built(sweep: Sweep, options: dict[str, Any], task: Any, data: Any) -> Any:
    """Return all that decides what is trained, as built: defaults count like typed values."""
    rest = {
        option: value
        for option, value in (sweep.options | options).items()
        if not option.startswith(("model.", "data."))
    }
    return (type(task), dict(task.hparams), type(data), dict(data.hparams), rest)


def _refuse_twins(sweep: Sweep, seen: list[tuple[str, Any]]) -> None:
    key, built = seen[-1]
    for other, its in seen[:-1]:
        if its == built:
            raise InputError(
                f"{sweep.path}, {key}: builds the same configuration as {other}.\n"
                "Two rows of one configuration cannot differ; leave one out."
            )


def _points(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Return what is to be built as key in the file -> options."""
    if sweep.search is None:
        points = {f"rows.{name}": sweep.rows[name].options for name in sweep.runnable}
        for point in sweep.tune.points if sweep.tune is not None else []:
            words = " ".join(f"{option} {as_word(value)}" for option, value in point.items())
            points[f"tune.options.{words}"] = sweep.rows[sweep.baseline].options | point
        return points
    values = {
        option: list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]
        for option, d in sweep.search.distributions.items()
        if isinstance(d, CategoricalDistribution | IntDistribution | FloatDistribution)
    }
    first = {option: choices[0] for option, choices in values.items()}
    points = {"search.space": first}
    for option, choices in values.items():
        for value in choices[1:]:
            points[f"search.space.{option} {as_word(value)}"] = first | {option: value}
    return points


def _builds(sweep: Sweep, build: "Build") -> bool:
    try:
        build(sweep.arguments({}, sweep.seeds[0], "row"))
    except InputError:
        return False
    return True


def _logged(task: "LightningModule") -> list[str]:
    """Return the metrics that a task is known to log in validation; none if it does not tell."""
    metrics: Any = getattr(task, "metrics", {})
    names = [f"val/{name}" for name in metrics["val"]] if "val" in metrics else []
    return ["val/loss", "train/loss", *names] if names else []
