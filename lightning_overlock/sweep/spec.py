"""What a sweep is: rows of options or a search space, and how they are trained and compared."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Column = Literal[
    "params", "gmacs", "images_per_second", "seconds", "metric", "difference", "paper"
]
COLUMNS: tuple[Column, ...] = (
    "params",
    "gmacs",
    "images_per_second",
    "seconds",
    "metric",
    "difference",
    "paper",
)
# Metrics that are shares of 1: accuracies, average precision and recall, overlaps.
SHARES = re.compile(r"top\d+|\w*accuracy|\w*(map|mar|iou|f1|dice|boundary)(_\w*)?", re.I)
# The runner sets these itself, for each trial.
RESERVED = ("seed_everything", "name", "config", "ckpt_path", "print_config", "help")

Scalar = str | int | float | bool | None


def _check_name(name: Any) -> str:
    """Row and profile names become names of folders, files and words of a command."""
    if not isinstance(name, str):
        raise ValueError(f"YAML reads this name as {name!r}; put it in quotes.")
    if not name.strip() or name != name.strip() or len(name) > 80:
        raise ValueError("a name has 1 to 80 characters, none of them a space at an end.")
    if bad := [c for c in name if c in '/\\:*?"<>|' or not c.isprintable()] or name[0] in ".-":
        found = bad[0] if isinstance(bad, list) else name[0]
        raise ValueError(
            f"found {found!r} in a name that becomes a folder's.\n"
            "Expected a name without / \\ : * ? \" < > | or a . or - at its start; `label` may "
            "have any."
        )
    return name


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for option in options:
        if option.startswith("-"):
            raise ValueError(f"'{option}': options are named without '-'.")
        if option in RESERVED:
            raise ValueError(
                f"'{option}': the sweep sets this one itself.\n"
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
        levels: Of a sweep with `factors`: this row's level of each, which sets options too.
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
            message = " ".join(str(error).split())[:160]
            raise ValueError(f"{option}: found {value!r}.\n{message.rstrip('.')}.") from None
    return space


class Search(Part):
    """A search space.

    Attributes:
        space: Options and what they are drawn from, as in the file.
        sampler: Optuna's sampler.
        pruner: Optuna's pruner.
        trials: How many are run.
    """

    space: Annotated[Options, AfterValidator(_check_space)]
    sampler: Literal["tpe", "random", "qmc", "gp", "cmaes"] = "tpe"
    pruner: Literal["median", "halving", "hyperband", "none"] = "none"
    trials: Annotated[int, Field(ge=1)] = 20

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
    expected = "expected {float: [low, high]}, {int: [low, high]} (log, step) or categorical: [...]"
    found = [kind for kind in kinds if isinstance(value, dict) and kind in value]
    if len(found) != 1 or not isinstance(value[found[0]], list):
        raise ValueError(expected)
    (kind,), rest = found, {k: v for k, v in value.items() if k not in kinds}
    if unknown := rest.keys() - {"log", "step"}:
        raise ValueError(f"unknown key '{min(unknown)}', {expected}")
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
                f"{option}: found {values!r}.\nExpected a list of different words or numbers."
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


@dataclass(frozen=True)
class Job:
    """What one trial is to train: a row with a seed, a point of its tuning, or one of a search.

    Attributes:
        folder: The run folder's name, which no two jobs of a sweep share.
        options: The options that are its own.
        seed: The seed.
        row: The row's name; "" in a search.
        point: The point of the grid, of a trial that tunes; None of any other.
    """

    folder: str
    options: dict[str, Any]
    seed: int
    row: str = ""
    point: dict[str, Any] | None = None


class Sweep(Part):
    """A sweep file, read for one of its profiles.

    Attributes:
        name: The file's name without suffix.
        title: The table's title.
        profile: The profile's name.
        data: The data in words, for the table.
        configs: What goes after `--config`, in this order.
        options: Options of all rows.
        metric: What counts, as it is logged.
        direction: Which end of it is good.
        seeds: Each row is trained once with each; a search with the first.
        rows: In the table's order; empty in a search.
        baseline: Name of the row that the others are compared with; "" in a search.
        columns: The columns of the table.
        search: The search space instead of rows.
        select: Which epoch's metric counts: the best one's or the last one's.
        report: Which split is reported; "test" is evaluated at the selected epoch.
        unit: "percent" for a share of 1; None to tell by the metric's name.
        margin: Differences below this are none that matters, in the table's unit.
        comparisons: Lists of rows; in each list every row is compared with the one before it.
        factors: Factor -> level -> options, of rows that are a product.
        tune: What is tuned for each row before its reported seeds.
        keep: Which checkpoints a finished trial keeps.
        path: The file.
        shipped: Whether the file is a shipped one, known by its name.
        overrides: What was typed after --set.
    """

    name: str
    title: str
    profile: str
    data: str = ""
    configs: list[str]
    options: dict[str, Any] = {}
    metric: str
    direction: Literal["maximize", "minimize"] = "maximize"
    seeds: list[int]
    rows: dict[str, Row] = {}
    baseline: str = ""
    columns: list[Column] = list(COLUMNS)
    search: Search | None = None
    select: Literal["best", "last"] = "best"
    report: Literal["val", "test"] = "val"
    unit: Literal["percent", "plain"] | None = None
    margin: float | None = None
    comparisons: list[list[str]] = []
    factors: dict[str, dict[str, dict[str, Any]]] = {}
    tune: Tune | None = None
    keep: Literal["best", "last", "all"] = "all"
    path: Path
    shipped: bool = False
    overrides: list[str] = []

    @property
    def command(self) -> str:
        """What a person types to run it."""
        words = ["lightning", "sweep", "run", self.name if self.shipped else str(self.path)]
        words += ["--profile", self.profile]
        return shlex.join([*words, *(w for change in self.overrides for w in ("--set", change))])

    @property
    def runnable(self) -> list[str]:
        """Names of the rows that can be run."""
        return [name for name, row in self.rows.items() if not row.missing]

    def label(self, name: str) -> str:
        """Return how the table calls a row."""
        return self.rows[name].label or name

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, which tables print in percent as papers do."""
        if self.unit is not None:
            return self.unit == "percent"
        return SHARES.fullmatch(self.metric.split("/")[-1]) is not None

    def tuning_jobs(self, row: str) -> Iterator[Job]:
        """Return the trials that tune a row; none without `tune`."""
        if self.tune is None:
            return
        for point in self.tune.points:
            words = [f"{option.split('.')[-1]}={as_word(v)}" for option, v in point.items()]
            name = re.sub(r"[^\w.=+-]", "_", "-".join([row, *words]))
            for seed in self.tune.seeds:
                options = self.rows[row].options | point
                yield Job(f"{name}-seed{seed}", options, seed, row, point)

    def reported_job(self, row: str, seed: int, chosen: dict[str, Any]) -> Job:
        """Return the trial of a row and a reported seed.

        Args:
            row: The row.
            seed: The seed.
            chosen: The options that tuning chose for it.
        """
        return Job(f"{row}-seed{seed}", self.rows[row].options | chosen, seed, row)

    def arguments(self, options: dict[str, Any], seed: int, name: str) -> list[str]:
        """Return what a person would type after `lightning` to train once.

        Args:
            options: Those of a row or of a trial of the search; they override the sweep's.
            seed: The seed.
            name: The run's name.
        """
        words = ["fit"]
        for config in self.configs:
            words += ["--config", config]
        words += ["--name", name, "--seed_everything", str(seed)]
        # One key of a dictionary (model.backbone_args.gate) is merged by the command's parser with
        # what the configurations and earlier words set.
        merged = self.options | options
        return words + [f"--{option}={as_word(value)}" for option, value in merged.items()]


def as_word(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
