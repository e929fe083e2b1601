"""Reading a sweep file: YAML to a `Sweep`, every mistake named with file and key."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lightning_overlock.configs import find_file
from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.files import read_text
from lightning_overlock.sweep.parts import File, Profile, Row, Search, Settings
from lightning_overlock.sweep.run_names import check_run_names
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.yaml_files import parse_yaml

# What --set may say of a search.
SEARCH_KEYS = ("trials", "sampler", "pruner", "cost")


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


def read(
    path_or_name: str | Path, profile: str | None = None, overrides: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file for one profile.

    Args:
        path_or_name: A file, or the bare name of a shipped sweep.
        profile: One of the file's; its own default if None.
        overrides: `KEY=VALUE`, where KEY is an option of all rows or one of the file's settings
            (`seeds`, `metric`, `rows`, ...; `trials`, `sampler`, `pruner`, `cost` of a search).

    Raises:
        InputError: Something is wrong in the file or the overrides; it names file and key.
    """
    path = path_or_name if isinstance(path_or_name, Path) else find(path_or_name)
    file = _validated(File, parse_yaml(read_text(path, str(path)), str(path)), str(path))
    if profile is None:
        profile = file.profile or next(iter(file.profiles), "")
    if profile not in file.profiles:
        raise InputError(
            f"{path}: no profile is named '{profile}'.{did_you_mean(profile, file.profiles)}\n"
            f"Expected one of {', '.join(file.profiles) or 'those under the key profiles'}."
        )
    return _Reader(path, file, profile, list(overrides)).sweep()


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


# Mistakes -----------------------------------------------------------------------------------------


def _validated(kind: Any, content: Any, where: str) -> Any:
    """Return a part of the file as its type.

    Raises:
        InputError: The first mistake, with `where`, its key and what was expected.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}, {_explain(kind, error)}") from None


def _explain(kind: Any, error: ValidationError) -> str:
    """Return a mistake as `key: what is wrong`, and below it what was expected."""
    # An unknown key is the cause of what else is wrong there.
    found = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    # Where a value may have several types, pydantic appends the one that was tried.
    key = [str(part) for part in found["loc"] if not str(part).startswith(("function-", "dict["))]
    key = [part for part in key if part not in {"[key]", "Row", "str"} and "[" not in part]
    name, value = ".".join(key), found["input"]
    if found["type"] == "extra_forbidden":
        known = _keys(kind, key[:-1])
        expected = f"\nExpected one of {', '.join(known)}." if known else ""
        return f"{name}: unknown key.{did_you_mean(key[-1], known)}{expected}"
    if found["type"] == "value_error":
        message = str(found["ctx"]["error"])
        # A part that refuses one of its own keys says so itself.
        return f"{name}{message}" if message.startswith(".") else f"{name}: {message}"
    if found["type"] == "missing":
        return f"{name}: this key is missing."
    message = found["msg"].replace("Input should be ", "").replace("valid ", "")
    message = re.sub(r"a dictionary.*", "`key: value` for each", message)
    names = found.get("ctx", {}).get("expected", "")
    near = did_you_mean(str(value), [n.strip("'") for n in names.replace(" or ", ", ").split(", ")])
    hint = " Put it in quotes." if found["type"] == "string_type" else ""
    return f"{name}: found {repr(value)[:60]}.{near}\nExpected {message}.{hint}"


def _keys(kind: Any, loc: list[str]) -> list[str]:
    """Return the known keys of the part at a place in the file."""
    fields: dict[str, Any] = {"rows": Row, "profiles": Profile, "paper": None}
    for part in loc:
        if part in {"rows", "profiles"}:
            kind = fields[part]
        elif part in getattr(kind, "model_fields", {}):
            annotation = kind.model_fields[part].annotation
            options = [annotation, *getattr(annotation, "__args__", ())]
            kind = next((o for o in options if hasattr(o, "model_fields")), None)
    return list(getattr(kind, "model_fields", {}))


# The parts put together ---------------------------------------------------------------------------


class _Reader:
    """Puts a file, one of its profiles and what was typed together.

    Args:
        path: The file.
        file: Its content.
        profile: The profile's name.
        overrides: What was typed after --set.
    """

    def __init__(self, path: Path, file: File, profile: str, overrides: list[str]) -> None:
        self.path = path
        self.file = file
        self.profile = profile
        self.chosen = file.profiles[profile]
        self.overrides = overrides
        typed = _read_overrides(overrides)
        settings = [name for name in Settings.model_fields if name != "options"]
        self.rows_typed = typed.pop("rows", None)
        self.search_typed = {k: typed.pop(k) for k in SEARCH_KEYS if k in typed}
        direct = {k: typed.pop(k) for k in settings if k in typed}
        for option in typed:
            if "." not in option and option != "logger":
                known = [*settings, "rows", *SEARCH_KEYS]
                raise InputError(
                    f"--set {option}: neither an option nor a setting of a sweep."
                    f"{did_you_mean(option, known)}\nExpected an option, as in model.lr=0.001, or "
                    f"one of {', '.join(known)}."
                )
        self.typed = _validated(Settings, direct | {"options": typed}, f"{path}, --set")

    def error(self, key: str, problem: str, expected: str = "") -> InputError:
        """Return the error of a key."""
        return InputError(f"{self.path}, {key}: {problem}" + (f"\n{expected}" if expected else ""))

    def known(self, key: str, names: Iterable[str], rows: dict[str, Row]) -> None:
        """Raise for a name that is no row's."""
        for name in names:
            if name not in rows:
                raise self.error(
                    key,
                    f"'{name}' is no row.{did_you_mean(str(name), rows)}",
                    f"Expected some of {', '.join(rows)}.",
                )

    def sweep(self) -> Sweep:
        """Return the sweep."""
        parts = (self.typed, self.chosen, self.file)
        found = {
            name: next(
                (getattr(p, name) for p in parts if name in p.model_fields_set),
                getattr(self.file, name),
            )
            for name in Settings.model_fields
        }
        found["options"] = self.file.options | self.chosen.options | self.typed.options
        found["configs"] = self.configs(found["configs"])
        rows, search = self.rows(found["factors"]), self.search()
        if bool(rows) == (search is not None):
            raise InputError(f"{self.path}: expected either `rows` or `search`.")
        if not isinstance(found["metric"], str) or "/" not in found["metric"]:
            raise self.error(
                "metric", f"found {found['metric']!r}.", "Expected one as in val/top1."
            )
        if rows:
            self.check_rows(rows, found)
        sweep = Sweep(
            **(found | {"baseline": found["baseline"] if rows else ""}),
            name=self.path.stem,
            title=self.file.title or self.path.stem,
            profile=self.profile,
            rows=rows,
            search=search,
            path=self.path,
            shipped=self.path in shipped().values(),
            overrides=self.overrides,
        )
        check_run_names(sweep)
        return sweep

    def check_rows(self, rows: dict[str, Row], found: dict[str, Any]) -> None:
        """Raise for what does not fit together in a sweep with rows."""
        baseline = found["baseline"]
        self.known("baseline", [baseline], rows)
        if rows[baseline].missing:
            raise self.error("baseline", f"'{baseline}' is a row that cannot be run.")
        for names in found["comparisons"]:
            # A profile or --set may leave rows out.
            self.known("comparisons", names, rows if not self.subset else self.file.rows | rows)
        found["comparisons"] = [
            kept
            for names in found["comparisons"]
            if len(kept := [name for name in names if name in rows]) > 1
        ]
        seen: dict[str, str] = {}
        for name, row in rows.items():
            if row.missing:
                continue
            same = json.dumps(found["options"] | row.options, sort_keys=True, default=str)
            if same in seen:
                raise self.error(
                    f"rows.{name}",
                    f"has the same options as rows.{seen[same]}.",
                    "Two rows of one configuration cannot differ; leave one out.",
                )
            seen[same] = name
        if found["tune"] is not None and set(found["tune"].seeds) & set(found["seeds"]):
            raise self.error(
                "tune.seeds",
                f"found {found['tune'].seeds}, which the reported seeds share.",
                "Expected seeds of its own, so that what was chosen is not what is reported.",
            )

    def configs(self, found: list[str] | str) -> list[str]:
        """Return the configurations; paths are relative to the sweep file."""
        found = [found] if isinstance(found, str) else found
        if not found:
            raise self.error("configs", f"found {found!r}.", "Expected a list of names or files.")
        is_path = ["/" in config or bool(Path(config).suffix) for config in found]
        return [
            str(self.path.parent / config) if path else config
            for config, path in zip(found, is_path, strict=True)
        ]

    @property
    def subset(self) -> list[str] | None:
        """The rows that the profile or --set chooses; None for all."""
        chosen = self.chosen.rows if isinstance(self.chosen.rows, list) else None
        typed = self.rows_typed
        return chosen if typed is None else [typed] if isinstance(typed, str) else typed

    def rows(self, factors: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Row]:
        """Return the rows of the profile, with its changes."""
        own = self.file.rows
        if factors and not own:
            own = _product(factors)
        changes = self.chosen.rows if isinstance(self.chosen.rows, dict) else {}
        subset = list(own) if self.subset is None else self.subset
        where = f"profiles.{self.profile}.rows" if self.rows_typed is None else "--set rows"
        if not isinstance(subset, list):
            raise self.error(where, f"found {subset!r}.", "Expected a list of rows.")
        self.known(where, [*changes, *subset], own)
        rows = {name: _changed(own[name], changes.get(name)) for name in own if name in subset}
        return {name: self.with_levels(name, row, factors) for name, row in rows.items()}

    def with_levels(self, name: str, row: Row, factors: dict[str, Any]) -> Row:
        """Return a row with the options of its levels below its own."""
        if not factors and not row.levels:
            return row
        options: dict[str, Any] = {}
        for factor, level in row.levels.items():
            key = f"rows.{name}.levels.{factor}"
            if factor not in factors:
                known = f"Expected one of {', '.join(factors) or 'those of the key factors'}."
                raise self.error(key, f"no factor.{did_you_mean(factor, factors)}", known)
            if level not in factors[factor]:
                known = f"Expected one of {', '.join(factors[factor])}."
                raise self.error(key, f"found '{level}'.", known)
            options |= factors[factor][level]
        return row.model_copy(update={"options": options | row.options})

    def search(self) -> Search | None:
        """Return the search space, if there is one."""
        content = self.file.search | self.chosen.search
        if not content:
            if self.search_typed:
                key = next(iter(self.search_typed))
                raise InputError(f"--set {key}: {self.path} is no search.")
            return None
        content = {"search": content | self.search_typed}
        found: Search = _validated(_SearchFile, content, str(self.path)).search
        return found


class _SearchFile(Settings):
    """A search as it stands in a file, so that mistakes are named `search.…`."""

    search: Search


def _changed(row: Row, changed: Row | None) -> Row:
    """Return a row with what the profile changes in it."""
    if changed is None:
        return row
    update = {key: getattr(changed, key) for key in changed.model_fields_set}
    return row.model_copy(update=update | {"options": row.options | changed.options})


def _product(factors: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Row]:
    """Return a row for every combination of levels."""
    rows = {}
    for combination in itertools.product(*factors.values()):
        levels = dict(zip(factors, combination, strict=True))
        name = "-".join(f"{factor}_{level}" for factor, level in levels.items())
        label = ", ".join(f"{factor} {level}" for factor, level in levels.items())
        rows[name] = Row(label=label, levels=levels)
    return rows
