"""The parts of a sweep file, as they are written in it."""

import itertools
import re
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from lightning_overlock.errors import did_you_mean
from lightning_overlock.robustness.options import BENCHMARKS

Column = Literal["params", "gmacs", "images_per_second", "seconds", "metric", "difference", "paper"]
COLUMNS: tuple[Column, ...] = (
    "params",
    "gmacs",
    "images_per_second",
    "seconds",
    "metric",
    "difference",
    "paper",
)
# The runner sets these itself, for each trial.
RESERVED = ("seed_everything", "name", "config", "ckpt_path", "print_config", "help")

# Bytes of a name: those of a folder's name that "-seed4294967295" and the like leave.
LONGEST = 200

Scalar = str | int | float | bool | None


def _check_name(name: Any) -> str:
    """Row and profile names become names of folders, files and words of a command."""
    if not isinstance(name, str):
        raise ValueError(f"YAML reads this name as {name!r}; put it in quotes.")
    if not name.strip() or name != name.strip() or len(name) > 80:
        raise ValueError("a name has 1 to 80 characters, none of them a space at an end.")
    if len(name.encode()) > LONGEST:
        raise ValueError(
            f"found {len(name.encode())} bytes in a name that becomes a folder's.\n"
            f"Expected at most {LONGEST}, which are {LONGEST // 4} characters of four bytes each."
        )
    if bad := [c for c in name if c in '/\\:*?"<>|' or not c.isprintable()] or name[0] in ".-":
        found = bad[0] if isinstance(bad, list) else name[0]
        raise ValueError(
            f"found {found!r} in a name that becomes a folder's.\n"
            'Expected a name without / \\ : * ? " < > | or a . or - at its start; `label` may '
            "have any."
        )
    return name


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for option in options:
        if option.startswith("-"):
            raise ValueError(f".{option}: options are named without '-'.")
        if option in RESERVED:
            raise ValueError(
                f".{option}: the sweep sets this one itself.\n"
                "Give seeds with `seeds`, configurations with `configs`."
            )
    return options


def _check_seeds(found: Any) -> Any:
    if isinstance(found, int) and not isinstance(found, bool):
        raise ValueError(
            f"found the number {found}.\nExpected a list: [{found}] for the one seed {found}, "
            "[1, 2, 3] for three seeds."
        )
    good = isinstance(found, list) and found
    if not good or not all(type(s) is int and 0 <= s < 2**32 for s in found):
        raise ValueError(f"found {found!r}.\nExpected a list of different whole numbers from 0.")
    if len(set(found)) < len(found):
        raise ValueError(f"found {found!r}, a seed twice.\nExpected different whole numbers.")
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


Name = Annotated[str, BeforeValidator(_check_name)]
Text = Annotated[str, AfterValidator(_one_line), Field(max_length=300)]
Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
Seeds = Annotated[list[int], BeforeValidator(_check_seeds)]


class Part(BaseModel):
    """A part of a sweep file: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Paper(Part):
    """Published figures of a row."""

    params_m: float | None = None
    gmacs: float | None = None
    top1: float | None = None
    source: Annotated[str, Field(min_length=1)]


class Row(Part):
    """A row of the table.

    Attributes:
        label: How the table calls it; its name if empty.
        options: What it sets, named as on the command line without `--`.
        paper: The paper's figures and their source.
        missing: Why it cannot be run and is kept for its published figure only; empty if it can.
        levels: This row's level of each of the sweep's `factors`, which sets options too.
    """

    label: Text = ""
    options: Options = {}
    paper: Paper | None = None
    missing: Text = ""
    levels: dict[str, str] = {}

    def published(self, figure: str) -> float | None:
        """Return the paper's figure of this name; None if there is none."""
        return getattr(self.paper, figure, None)


def _check_space(space: dict[str, Any]) -> dict[str, Any]:
    if not space:
        raise ValueError("found no options to search.")
    for option, value in space.items():
        try:
            distribution(value)
        except (TypeError, ValueError) as error:
            message = " ".join(str(error).split())[:200]
            raise ValueError(
                f".{option}: found {value!r}.\n{message[0].upper()}{message[1:].rstrip('.')}."
            ) from None
    return space


class Search(Part):
    """A search space.

    Attributes:
        space: Options and what they are drawn from, as in the file.
        sampler: Optuna's sampler.
        pruner: Optuna's pruner.
        trials: How many are run.
        cost: What is kept low beside the metric: parameters, multiply-adds or seconds of training.
    """

    space: Annotated[Options, AfterValidator(_check_space)]
    sampler: Literal["tpe", "random", "qmc", "gp", "cmaes", "nsga2"] = "tpe"
    pruner: Literal["median", "halving", "hyperband", "none"] = "none"
    trials: Annotated[int, Field(ge=1)] = 20
    cost: Literal["params", "gmacs", "seconds"] | None = None

    @model_validator(mode="after")
    def _check_two_objectives(self) -> "Search":
        if self.sampler == "nsga2" and self.cost is None:
            raise ValueError(
                ".sampler: nsga2 weighs the metric against a cost.\n"
                "Expected `cost` as well: params, gmacs or seconds."
            )
        if self.cost is not None and self.sampler == "cmaes":
            raise ValueError(
                ".sampler: cmaes has no second objective.\n"
                "Expected nsga2, tpe, gp, random or qmc beside `cost`."
            )
        if self.cost is not None and self.pruner != "none":
            raise ValueError(
                f".pruner: found {self.pruner}, but Optuna prunes by one objective.\n"
                "Expected none beside `cost`."
            )
        return self

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The space as Optuna's distributions."""
        return {option: distribution(value) for option, value in self.space.items()}


def distribution(value: Any) -> BaseDistribution:
    """Return what an option is drawn from.

    Args:
        value: `{float: [low, high]}` or `{int: [low, high]}`, both with `log` and `step` if
            wanted, or `{categorical: [...]}`.

    Raises:
        ValueError: It is none of these.
        TypeError: A bound is no number.
    """
    kinds = ("float", "int", "categorical")
    expected = "Expected {float: [low, high]}, {int: [low, high]} (log, step) or categorical: [...]"
    known = (*kinds, "log", "step")
    for key in value if isinstance(value, dict) else ():
        if key not in known:
            raise ValueError(f"unknown key '{key}'.{did_you_mean(str(key), known)} {expected}")
    found = [kind for kind in kinds if isinstance(value, dict) and kind in value]
    if len(found) != 1 or not isinstance(value[found[0]], list):
        raise ValueError(expected)
    (kind,), rest = found, {k: v for k, v in value.items() if k not in kinds}
    bounds = value[kind]
    if kind == "categorical":
        if rest or len(set(map(repr, bounds))) < len(bounds):
            raise ValueError("choices are different from each other, without log and step")
        if not all(isinstance(choice, Scalar) for choice in bounds):
            raise ValueError("choices are words, numbers, true, false or null")
        return CategoricalDistribution(bounds)
    if len(bounds) != 2:
        raise ValueError("two bounds are needed")
    if kind == "int":
        if any(type(bound) is not int for bound in bounds):
            raise ValueError("bounds are whole numbers")
        return IntDistribution(*bounds, **rest)
    low, high = map(float, bounds)  # YAML takes 1e-3 for a word
    return FloatDistribution(low, high, **rest)


def _check_grid(options: dict[str, list[Any]]) -> dict[str, list[Any]]:
    for option, values in options.items():
        different = len(set(map(repr, values))) == len(values) > 0
        if not different or not all(isinstance(value, Scalar) for value in values):
            raise ValueError(
                f".{option}: found {values!r}.\nExpected a list of different words or numbers."
            )
    if not options:
        raise ValueError("found no option to tune.\nExpected model.lr: [0.001, 0.002] or the like.")
    return {option: [_number(value) for value in values] for option, values in options.items()}


def _number(value: Any) -> Any:
    """Return `1e-3`, which YAML takes for a word, as the number that it is."""
    try:
        return float(value) if isinstance(value, str) and re.match(r"[-+.]?\d", value) else value
    except ValueError:
        return value


class Tune(Part):
    """A small grid of options that is tried for each row before its reported seeds are trained.

    Attributes:
        options: Options and the values tried; several options make a product.
        seeds: Each point is trained with each of these; none of them is a reported seed.
    """

    options: Annotated[
        dict[str, list[Any]], AfterValidator(_check_options), AfterValidator(_check_grid)
    ]
    seeds: Seeds

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points of the grid."""
        values = itertools.product(*self.options.values())
        return [dict(zip(self.options, point, strict=True)) for point in values]


def _check_benchmarks(folders: dict[str, str]) -> dict[str, str]:
    for name in folders:
        if name not in BENCHMARKS:
            raise ValueError(
                f".{name}: no set of images has this name.{did_you_mean(name, BENCHMARKS)}\n"
                f"Expected some of {', '.join(BENCHMARKS)}, with a folder each."
            )
    return folders


class Settings(Part):
    """What a file says of all its profiles, and a profile of itself."""

    data: Text = ""
    configs: list[str] | str = []
    options: Options = {}
    metric: str = ""
    direction: Literal["maximize", "minimize"] = "maximize"
    seeds: Seeds = [42]
    baseline: str = ""
    columns: list[Column] = list(COLUMNS)
    select: Literal["best", "last"] = "best"
    report: Literal["val", "test"] = "val"
    unit: Literal["percent", "plain"] | None = None
    margin: Annotated[float, Field(gt=0)] | None = None
    comparisons: list[Annotated[list[str], Field(min_length=2)]] = []
    factors: dict[Name, dict[Name, Options]] = {}
    tune: Tune | None = None
    keep: Literal["best", "last", "all"] = "all"
    robustness: Annotated[dict[str, str], AfterValidator(_check_benchmarks)] = {}


class Profile(Settings):
    """A profile: settings of its own, and the rows it has or changes."""

    rows: list[str] | dict[Name, Row] = {}
    search: dict[str, Any] = {}


class File(Settings):
    """A sweep file."""

    title: Text = ""
    profile: str = ""
    rows: dict[Name, Row] = {}
    search: dict[str, Any] = {}
    profiles: dict[Name, Profile]
