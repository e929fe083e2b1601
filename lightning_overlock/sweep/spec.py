"""Sweep files: rows of options, or a search space, and how to train them."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import QMCSampler, RandomSampler, TPESampler
from torchmetrics import MetricCollection

from lightning_overlock.configs import find_file
from lightning_overlock.errors import InputError, did_you_mean

# Makes the task and the data of a `fit` command line, without training: `cli.build`.
Build = Callable[[list[str]], tuple[LightningModule, LightningDataModule]]

SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": TPESampler,
    "random": RandomSampler,
    "qmc": QMCSampler,
}
PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "median": MedianPruner,
    "halving": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
    "none": NopPruner,
}
COLUMNS = ("params", "gmacs", "images_per_second", "seconds", "metric", "difference", "paper")
PAPER = ("params_m", "gmacs", "top1", "source")

# What a profile and --set may say as well as the file itself.
SETTINGS = ("data", "configs", "options", "metric", "direction", "seeds", "baseline", "columns")
KEYS = ("title", "profile", *SETTINGS, "rows", "search", "profiles")
# The runner's own, per trial.
RESERVED = ("seed_everything", "name", "config", "ckpt_path", "print_config", "help")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: How the file calls it.
        label: How the table calls it.
        options: What it sets, named as on the command line without `--`.
        paper: The paper's figures (`top1`, `gmacs`, `params_m`) and their `source`.
        missing: Why it cannot be run and is kept for its published figure only; empty if it can.
    """

    name: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Search:
    """A search space.

    Attributes:
        space: Options and what they are drawn from.
        sampler: One of `SAMPLERS`.
        pruner: One of `PRUNERS`.
        trials: How many are run.
    """

    space: dict[str, BaseDistribution]
    sampler: str
    pruner: str
    trials: int


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read for one of its profiles.

    Attributes:
        name: The file's name without suffix.
        title: The table's.
        profile: The profile's name.
        data: The data in words, for the table.
        configs: What goes after `--config`, in this order.
        options: Options of all rows.
        metric: What counts, as it is logged.
        direction: Which end of it is good.
        seeds: Each row is trained once with each; a search with the first.
        rows: In the table's order; empty in a search.
        baseline: Name of the row that the others are compared with; "" in a search.
        columns: Of the table, among `COLUMNS`.
        search: The search space instead of rows.
        path: The file.
        overrides: What was typed after --set.
    """

    name: str
    title: str
    profile: str
    data: str
    configs: list[str]
    options: dict[str, Any]
    metric: str
    direction: Literal["maximize", "minimize"]
    seeds: list[int]
    rows: dict[str, Row]
    baseline: str
    columns: list[str]
    search: Search | None
    path: Path
    overrides: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """What a person types to run it."""
        name = self.name if self.path in shipped().values() else str(self.path)
        words = ["lightning", "sweep", "run", name, "--profile", self.profile]
        return shlex.join([*words, *(w for change in self.overrides for w in ("--set", change))])

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

    def content(self) -> dict[str, Any]:
        """Return the sweep as it was resolved, for JSON."""
        rows = {row.name: vars(row) for row in self.rows.values()}
        content = vars(self) | {"rows": rows, "path": str(self.path)}
        if self.search is not None:
            space = {
                option: json.loads(optuna.distributions.distribution_to_json(distribution))
                for option, distribution in self.search.space.items()
            }
            content["search"] = vars(self.search) | {"space": space}
        return content


def as_word(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


# Reading ------------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """Return the shipped sweeps as name -> file, sorted by name."""
    package = Path(__file__).parents[1]
    # In the wheel they lie inside the package, in a checkout beside it.
    inside = package / "sweeps"
    folder = inside if inside.is_dir() else package.parent / "sweeps"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Return the file of a sweep: a bare word is a shipped one, anything else a path.

    Raises:
        InputError: If there is no such sweep or file.
    """
    return find_file(name, shipped(), "sweep", typed=name)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would take the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read(
    path_or_name: str | Path, profile: str | None = None, overrides: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file for one profile.

    Args:
        path_or_name: A file, or the bare name of a shipped sweep.
        profile: One of the file's; its own default if None.
        overrides: `KEY=VALUE`, where KEY is an option of all rows or one of the file's settings
            (`seeds`, `metric`, `rows`, ...; `trials`, `sampler`, `pruner` of a search).

    Raises:
        InputError: For what is wrong in the file or the overrides, naming file and key.
    """
    path = path_or_name if isinstance(path_or_name, Path) else find(path_or_name)
    content = _load(path)
    reader = _Reader(path)
    reader.keys(content, KEYS, "")
    profiles = reader.mapping(content, "profiles", "")
    if profile is None:
        profile = str(content.get("profile") or next(iter(profiles), ""))
    if profile not in profiles:
        raise InputError(
            f"{path}: no profile is named '{profile}'.{did_you_mean(profile, profiles)}\n"
            f"Expected one of {', '.join(profiles) or 'those under the key profiles'}."
        )
    found = reader.sweep(content, profile, _read_overrides(overrides))
    return replace(found, overrides=list(overrides))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), _Loader)
    except UnicodeDecodeError:
        raise InputError(f"{path}: found a binary file, expected a YAML sweep file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(error, 'problem', error)}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {str(content)[:60]!r}, expected YAML `key: value`.")
    return content


def _read_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        if not (key and equals):
            raise InputError(f"--set {override}: expected KEY=VALUE, as in model.lr=0.001.")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[key] = text
    return found


class _Reader:
    """Reads the parts of one file, and names file and key of what is wrong.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, problem: str, expected: str = "") -> InputError:
        """Return the error of a key."""
        return InputError(f"{self.path}, {key}: {problem}" + (f"\n{expected}" if expected else ""))

    def keys(self, found: dict[str, Any], known: Sequence[str], where: str) -> None:
        """Raise for a key that is none of the known ones."""
        for key in found:
            if key not in known:
                raise self.error(
                    f"{where}.{key}" if where else str(key),
                    f"unknown key.{did_you_mean(str(key), known)}",
                    f"Expected one of {', '.join(known)}.",
                )

    def mapping(self, content: dict[str, Any], key: str, where: str) -> dict[str, Any]:
        """Return a key's mapping, empty if it is not there."""
        value = content.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.error(
                f"{where}.{key}" if where else key,
                f"found {str(value)[:60]!r}",
                "Expected `name: value` for each, with names that are words.",
            )
        return value

    def sweep(self, content: dict[str, Any], profile: str, overrides: dict[str, Any]) -> Sweep:
        """Return the sweep of a profile that is one of the file's."""
        at = f"profiles.{profile}"
        chosen = self.mapping(self.mapping(content, "profiles", ""), profile, "profiles")
        self.keys(chosen, (*SETTINGS, "rows", "search"), at)
        search_keys = ("trials", "sampler", "pruner")
        direct = {k: v for k, v in overrides.items() if k in (*SETTINGS, "rows")}
        direct.pop("options", None)
        searched = {k: v for k, v in overrides.items() if k in search_keys}
        typed = {k: v for k, v in overrides.items() if k not in direct and k not in searched}
        for option in typed:
            if "." not in option:
                known = [*SETTINGS, "rows", *search_keys]
                raise InputError(
                    f"--set {option}: neither an option nor a setting of a sweep."
                    f"{did_you_mean(option, known)}\nExpected an option, as in model.lr=0.001, or "
                    f"one of {', '.join(k for k in known if k != 'options')}."
                )
        options = (
            self.options(content, "") | self.options(chosen, at) | self._reserved(typed, "--set")
        )
        settings = {k: v for k, v in content.items() if k in SETTINGS}
        settings |= {k: v for k, v in chosen.items() if k in SETTINGS} | direct
        rows = self.rows(content, chosen, at, direct.get("rows"))
        search = self.search(content, chosen, at, searched)
        if bool(rows) == (search is not None):
            raise InputError(f"{self.path}: expected either `rows` or `search`.")
        baseline = "" if search else str(settings.get("baseline", ""))
        if rows and baseline not in rows:
            raise self.error(
                "baseline",
                f"'{baseline}' is no row.{did_you_mean(baseline, rows)}",
                f"Expected one of {', '.join(rows)}.",
            )
        if rows and rows[baseline].missing:
            raise self.error("baseline", f"'{baseline}' is a row that cannot be run.")
        direction = settings.get("direction", "maximize")
        if direction not in ("maximize", "minimize"):
            raise self.error("direction", f"found '{direction}'.", "Expected maximize or minimize.")
        metric = settings.get("metric")
        if not isinstance(metric, str) or "/" not in metric:
            raise self.error("metric", f"found {metric!r}.", "Expected one as in val/top1.")
        return Sweep(
            name=self.path.stem,
            title=str(content.get("title", self.path.stem)),
            profile=profile,
            data=str(settings.get("data", "")),
            configs=self.configs(settings),
            options=options,
            metric=metric,
            direction=direction,
            seeds=self.seeds(settings),
            rows=rows,
            baseline=baseline,
            columns=self.columns(settings),
            search=search,
            path=self.path,
        )

    def options(self, content: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the options among a part's keys."""
        found = self.mapping(content, "options", where)
        return self._reserved(found, f"{where}.options" if where else "options")

    def _reserved(self, options: dict[str, Any], where: str) -> dict[str, Any]:
        for option in options:
            if option.startswith("-"):
                raise self.error(where, f"'{option}': options are named without '-'.")
            if option in RESERVED:
                hint = "Give seeds with `seeds`, configurations with `configs`."
                raise self.error(f"{where}.{option}", "the sweep sets this one itself.", hint)
        return options

    def configs(self, settings: dict[str, Any]) -> list[str]:
        """Return the configurations; paths are relative to the sweep file."""
        found = settings.get("configs") or []
        found = [found] if isinstance(found, str) else found
        if not (isinstance(found, list) and found and all(isinstance(c, str) for c in found)):
            raise self.error("configs", f"found {found!r}.", "Expected a list of names or files.")
        is_path = ["/" in config or bool(Path(config).suffix) for config in found]
        return [
            str(self.path.parent / config) if path else config
            for config, path in zip(found, is_path, strict=True)
        ]

    def seeds(self, settings: dict[str, Any]) -> list[int]:
        """Return the seeds."""
        found = settings.get("seeds", [42])
        found = [found] if isinstance(found, int) else found
        good = isinstance(found, list) and found and all(type(s) is int and s >= 0 for s in found)
        if not good or len(set(found)) < len(found):
            raise self.error(
                "seeds", f"found {found!r}.", "Expected a list of different whole numbers from 0."
            )
        return list(found)

    def columns(self, settings: dict[str, Any]) -> list[str]:
        """Return the columns."""
        found = settings.get("columns", list(COLUMNS))
        for column in found if isinstance(found, list) else [found]:
            if column not in COLUMNS:
                raise self.error(
                    "columns",
                    f"unknown column '{column}'.{did_you_mean(str(column), COLUMNS)}",
                    f"Expected some of {', '.join(COLUMNS)}.",
                )
        return list(found)

    def rows(
        self, content: dict[str, Any], chosen: dict[str, Any], at: str, subset: Any
    ) -> dict[str, Row]:
        """Return the rows of a profile, with its changes, or those of a list of names."""
        found = self.mapping(content, "rows", "")
        changes: dict[str, Any] = {}
        if isinstance(chosen.get("rows"), list):
            subset = chosen["rows"] if subset is None else subset
        else:
            changes = self.mapping(chosen, "rows", at)
        subset = list(found) if subset is None else subset
        subset = [subset] if isinstance(subset, str) else subset
        for name in [*changes, *subset]:
            if name not in found:
                raise self.error(
                    f"{at}.rows",
                    f"'{name}' is no row.{did_you_mean(str(name), found)}",
                    f"Expected some of {', '.join(found)}.",
                )
        return {
            name: self.row(name, self.mapping(found, name, "rows"), changes.get(name) or {}, at)
            for name in found
            if name in subset
        }

    def row(self, name: str, content: dict[str, Any], changed: dict[str, Any], at: str) -> Row:
        """Return a row with what the profile changes in it."""
        where = f"rows.{name}"
        self.keys(content, ("label", "options", "paper", "missing"), where)
        self.keys(changed, ("label", "options", "missing"), f"{at}.{where}")
        paper = self.mapping(content, "paper", where)
        self.keys(paper, PAPER, f"{where}.paper")
        if paper and not paper.get("source"):
            raise self.error(f"{where}.paper", "its figures need a `source`.")
        both = content | changed
        return Row(
            name,
            str(both.get("label", name)),
            self.options(content, where) | self.options(changed, f"{at}.{where}"),
            paper,
            str(both.get("missing") or ""),
        )

    def search(
        self, content: dict[str, Any], chosen: dict[str, Any], at: str, typed: dict[str, Any]
    ) -> Search | None:
        """Return the search space, if there is one."""
        own = self.mapping(content, "search", "")
        known = ("sampler", "pruner", "trials", "space")
        self.keys(own, known, "search")
        changed = self.mapping(chosen, "search", at)
        self.keys(changed, known, f"{at}.search")
        if not own and not changed:
            if typed:
                raise InputError(f"--set {next(iter(typed))}: {self.path} is no search.")
            return None
        found: dict[str, Any] = {"sampler": "tpe", "pruner": "none", "trials": 20}
        found |= own | changed | typed
        for key, names in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            if found[key] not in names:
                raise self.error(
                    f"search.{key}",
                    f"found '{found[key]}'.{did_you_mean(str(found[key]), names)}",
                    f"Expected one of {', '.join(names)}.",
                )
        if type(found["trials"]) is not int or found["trials"] < 1:
            raise self.error("search.trials", f"found {found['trials']!r}.", "Expected 1 or more.")
        space = self._reserved(self.mapping(found, "space", "search"), "search.space")
        if not space:
            raise self.error("search.space", "found no options to search.")
        distributions = {o: self.distribution(o, value) for o, value in space.items()}
        return Search(distributions, found["sampler"], found["pruner"], found["trials"])

    def distribution(self, option: str, value: Any) -> BaseDistribution:
        """Return what an option is drawn from."""
        where = f"search.space.{option}"
        expected = (
            "Expected {float: [low, high]}, {int: [low, high]} (log, step) or {categorical: [...]}."
        )
        if not isinstance(value, dict):
            raise self.error(where, f"found {value!r}.", expected)
        self.keys(value, ("float", "int", "categorical", "log", "step"), where)
        kinds = [kind for kind in ("float", "int", "categorical") if kind in value]
        if len(kinds) != 1 or not isinstance(value[kinds[0]], list):
            raise self.error(where, f"found {value!r}.", expected)
        (kind,), rest = kinds, {k: v for k, v in value.items() if k not in kinds}
        bounds = value[kind]
        try:
            if kind == "categorical":
                if rest or len(set(map(repr, bounds))) < len(bounds):
                    raise ValueError("choices are different from each other, without log and step")
                if not all(isinstance(b, str | int | float | bool | None) for b in bounds):
                    raise ValueError("choices are words, numbers, true, false or null")
                return CategoricalDistribution(bounds)
            if len(bounds) != 2:
                raise ValueError("two bounds are needed")
            if kind == "int":
                if any(type(bound) is not int for bound in bounds):
                    raise ValueError("bounds are whole numbers")
                return IntDistribution(*bounds, **rest)
            # YAML takes 1e-3 for a word.
            low, high = map(float, bounds)
            return FloatDistribution(low, high, **rest)
        except (TypeError, ValueError) as error:
            message = " ".join(str(error).split())[:160]
            raise self.error(where, f"found {value!r}.", f"{message}.") from None


# Validating ---------------------------------------------------------------------------------------


def validate(sweep: Sweep, build: Build) -> None:
    """Build every row's task and data, so that a mistake is told before anything runs.

    Of a search every choice is built once, and both ends of every range.

    Args:
        sweep: The sweep.
        build: Makes task and data of a `fit` command line.

    Raises:
        InputError: For a row or point that `lightning fit` would refuse, two rows that are the
            same, or a metric that the task does not log.
    """
    points = _points(sweep)
    seen: dict[str, str] = {}
    for key, options in points.items():
        same = json.dumps(sweep.options | options, sort_keys=True)
        if same in seen and sweep.search is None:
            raise InputError(f"{sweep.path}, {key}: has the same options as {seen[same]}.")
        seen[same] = key
    for key, options in points.items():
        try:
            task, _ = build(sweep.arguments(options, sweep.seeds[0], "row"))
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


def _points(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Return what is to be built as key in the file -> options."""
    if sweep.search is None:
        return {f"rows.{row.name}": row.options for row in sweep.rows.values() if not row.missing}
    values = {
        option: list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]
        for option, d in sweep.search.space.items()
        if isinstance(d, CategoricalDistribution | IntDistribution | FloatDistribution)
    }
    first = {option: choices[0] for option, choices in values.items()}
    points = {"search.space": first}
    for option, choices in values.items():
        for value in choices[1:]:
            points[f"search.space.{option} {as_word(value)}"] = first | {option: value}
    return points


def _builds(sweep: Sweep, build: Build) -> bool:
    try:
        build(sweep.arguments({}, sweep.seeds[0], "row"))
    except InputError:
        return False
    return True


def _logged(task: LightningModule) -> list[str]:
    """Return the metrics that a task is known to log in validation; none if it does not tell."""
    collections = [m for m in task.modules() if isinstance(m, MetricCollection)]
    names = [str(name) for c in collections for name in c if str(name).startswith("val/")]
    return ["val/loss", "train/loss", *names] if names else []
