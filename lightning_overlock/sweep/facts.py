"""What must be known beside a table's figures, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_overlock.sweep.parts import Row
from lightning_overlock.sweep.spec import Sweep


def state_of(
    row: Row, trials: dict[int, FrozenTrial], values: dict[int, float], seeds: list[int]
) -> str:
    """Return in words what is missing of a row."""
    if row.missing:
        return f"cannot be run: {row.missing}"
    problems = []
    for seed in seeds:
        trial = trials.get(seed)
        if seed in values:
            continue
        if trial is None or trial.state == TrialState.WAITING:
            problems.append(f"seed {seed} was not run")
        elif trial.state == TrialState.RUNNING:
            problems.append(f"seed {seed} is not finished")
        else:
            lines = str(trial.user_attrs.get("error", "")).strip().splitlines()
            problems.append(f"seed {seed} failed" + (f" ({lines[0][:120]})" if lines else ""))
    return "not run" if len(trials) == 0 else ", ".join(problems)


def identical_rows(sweep: Sweep, values: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return a warning for rows whose results are the same to the last digit."""
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, found in values.items():
        if len(found) > 1:
            groups.setdefault(tuple(sorted(found.items())), []).append(sweep.label(name))
    return [
        f"Warning: {' and '.join(same)} have identical results in every seed. Either what they "
        "differ in has no effect here, or nothing was learned."
        for same in groups.values()
        if len(same) > 1
    ]


def mixed_rows(sweep: Sweep, trials: Mapping[str, Sequence[FrozenTrial]]) -> list[str]:
    """Return a warning for rows whose seeds were not trained with one and the same configuration.

    Shipped configurations and defaults may change from one version of the package to the next.
    """
    hashes = {
        name: {t.user_attrs.get("config_hash") for t in found} - {None}
        for name, found in trials.items()
    }
    return [
        f"Warning: the seeds of {sweep.label(name)} were trained with {len(found)} different "
        "configurations (the trials' config.yaml differ)."
        for name, found in hashes.items()
        if len(found) > 1
    ]


def what_is_left_out(sweep: Sweep, stored: dict[str, Any]) -> list[str]:
    """Return what the study has beside what is shown."""
    rows = [name for name in stored["rows"] if name not in sweep.rows]
    seeds = [seed for seed in stored["seeds"] if seed not in sweep.seeds]
    found = []
    if rows:
        found.append(f"Not shown: the study's rows {', '.join(rows)}.")
    if seeds:
        found.append(f"Not shown: the study's seeds {', '.join(map(str, seeds))}.")
    return found


def facts_of(study: optuna.Study, sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[str]:
    """Return data, epochs, seeds, date, versions, hardware and command in words."""
    done = [trial.user_attrs for trial in trials if trial.state == TrialState.COMPLETE]
    epochs = sorted({found["epochs"] for found in done if "epochs" in found})
    dates = sorted({str(found["date"])[:10] for found in done if "date" in found})
    seeds = sweep.seeds[:1] if sweep.search else sweep.seeds
    facts = [
        f"Data: {sweep.data or 'not named'}. Epochs: {_range(epochs)}. "
        f"Seeds: {', '.join(map(str, seeds))}."
    ]
    machines = {
        ", ".join(f"{key} {value}" for key, value in found["machine"].items())
        for found in done
        if "machine" in found
    }
    facts += [f"Trained {_range(dates)} with {machine}." for machine in sorted(machines)]
    commits = {
        git["commit"][:12] + (" with changes" if git["changed"] else "")
        for found in done
        if (git := found.get("git"))
    }
    facts += [f"Code: commit {commit}." for commit in sorted(commits)]
    commands = study.user_attrs.get("commands", [sweep.command])
    return [*facts, f"Command: {'; '.join(commands)}"]


def _range(values: Sequence[Any]) -> str:
    if not values:
        return "none yet"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
