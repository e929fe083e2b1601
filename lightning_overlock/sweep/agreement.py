"""Whether a sweep file says what its study was run with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.errors import InputError
from lightning_overlock.sweep.spec import Sweep

# What decides the results of all trials. The rest of a sweep file may change at any time.
DECISIVE = ("configs", "options", "metric", "direction", "select", "report", "tune", "search")


def content_of(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep for the study, with what its own configuration files say."""
    content: dict[str, Any] = sweep.model_dump(mode="json", exclude={"overrides"})
    files = {
        Path(config).name: yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        for config in sweep.configs
        if Path(config).suffix
    }
    plain = {config: None for config in sweep.configs if not Path(config).suffix}
    return content | {"configs": files | plain, "path": sweep.path.name}


def stored_sweep(stored: dict[str, Any], folder: Path) -> Sweep:
    """Return the sweep that a study was run with, without its file.

    Args:
        stored: What `content_of` returned.
        folder: Where the file is thought to lie; it is not read.
    """
    content = stored | {"configs": list(stored["configs"]), "path": folder / stored["path"]}
    return Sweep.model_validate(content, strict=False)


def compare(sweep: Sweep, stored: dict[str, Any], name: str, trials: Sequence[FrozenTrial]) -> None:
    """Hold a sweep file, all of it, against what a study was run with.

    Raises:
        InputError: If results so far were made with other settings or other options of a row.
    """
    compare_settings(sweep, stored, name)
    for row, (key, old, new) in changed_rows(sweep, stored, trials).items():
        raise InputError(
            f"{sweep.path}, {key}: found {new}, but the study {name} was run with {old}.\n"
            f"Give the changed row a name of its own (such as {row}_2), or change it back, or "
            "start a study of another name with --name NAME."
        )


def compare_settings(sweep: Sweep, stored: dict[str, Any], name: str) -> None:
    """Hold what all rows share against what a study was run with.

    Raises:
        InputError: If results so far were made with other settings, or of other rows.
    """
    content = content_of(sweep)
    pairs = {key: (stored.get(key), content.get(key)) for key in DECISIVE}
    if sweep.search is not None and stored["search"] is not None:
        pairs["seeds"] = (stored["seeds"][:1], content["seeds"][:1])
        # More trials continue a search.
        # Older studies know no cost.
        before = {"cost": None} | stored["search"] | {"trials": 0}
        pairs["search"] = (before, content["search"] | {"trials": 0})
    for key, pair in pairs.items():
        if different := difference(*pair, key):
            where, old, new = different
            raise InputError(
                f"{sweep.path}, {where}: found {new}, but the study {name} was run with {old}.\n"
                "Change it back, or start a study of another name with --name NAME."
            )
    if stored["rows"] and not stored["rows"].keys() & sweep.rows.keys():
        raise InputError(
            f"{sweep.path}: none of its rows is among those of the study {name}: "
            f"{', '.join(stored['rows'])}.\nGive the name of this file's own study with --name."
        )


def changed_rows(
    sweep: Sweep, stored: dict[str, Any], trials: Sequence[FrozenTrial]
) -> dict[str, tuple[str, Any, Any]]:
    """Return the rows that were trained with other options than the file now gives them.

    Returns:
        Row -> key, the value that it was trained with, the value now.
    """
    started = {t.user_attrs.get("row") for t in trials if t.state != TrialState.WAITING}
    found = {}
    for name in started & sweep.rows.keys() & stored["rows"].keys():
        old, new = stored["rows"][name]["options"], sweep.rows[name].options
        if different := difference(old, new, f"rows.{name}.options"):
            found[str(name)] = different
    return found


def difference(before: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return the first key that differs, and both values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (key, before, now)
    for name in [*before, *(name for name in now if name not in before)]:
        missing = "nothing"
        below = f"{key}.{name}"
        if found := difference(before.get(name, missing), now.get(name, missing), below):
            return found
    return None
