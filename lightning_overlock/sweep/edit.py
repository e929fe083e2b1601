"""Taking trials out of a study: to train one again, or to remove a row.

Nothing of a study is ever overwritten: what no longer counts is named by an entry of its own.
"""

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.sweep.storage import find_study, queue_lock
from lightning_overlock.sweep.trials import by_folder


def retry(name: str, trial: str, runs: Path, url: str | None) -> None:
    """Put a trial aside, so that it is trained again from the start.

    Args:
        name: The study's name.
        trial: The name of its run folder, or its number.
        runs: The folder of the sweeps' folders.
        url: The database's; None for the folder's own.

    Raises:
        InputError: If there is no such study or trial, or the trial is running.
    """
    storage, study, _ = find_study(name, runs, url)
    with queue_lock(storage, study.study_name):
        groups = by_folder(study.get_trials(deepcopy=False))
        numbers = {str(t.number): folder for folder, same in groups.items() for t in same}
        folder = numbers.get(trial, trial)
        if folder not in groups:
            raise InputError(
                f"{trial}: no trial of {study.study_name} has this name or number."
                f"{did_you_mean(trial, groups)}\nExpected one of {_listed(list(groups))}."
            )
        _set_aside(study, groups[folder], f"{folder} is trained again")
        last = groups[folder][-1]
        if "row" not in last.user_attrs:  # a point of a search would be drawn no second time
            kept = {key: last.user_attrs[key] for key in ("folder", "seed", "options")}
            study.enqueue_trial(last.params, kept)
    command = study.user_attrs.get("commands", ["lightning sweep run"])[-1]
    print(
        f"{folder}: its result so far ({_states(groups[folder])}) no longer counts; the folder is "
        f"moved aside when it is trained again, by\n{command}"
    )


def remove_row(name: str, row: str, runs: Path, url: str | None, ask: bool) -> None:
    """Remove a row from a study, and its run folders.

    Args:
        name: The study's name.
        row: The row's name.
        runs: The folder of the sweeps' folders.
        url: The database's; None for the folder's own.
        ask: Ask before.

    Raises:
        InputError: If there is no such study or row, the row is the baseline, one of its trials is
            running, or nobody is there to be asked.
    """
    storage, study, folder = find_study(name, runs, url)
    _check_row(study, row)
    groups = _of_row(study, row)
    folders = [path for path in map(folder.joinpath, groups) if path.is_dir()]
    size = sum(f.stat().st_size for path in folders for f in path.rglob("*") if f.is_file())
    what = f"{len(groups)} trials, {len(folders)} run folders, {size / 1e6:,.0f} MB"
    if ask and not _agreed(f"Remove the row '{row}' from {study.study_name} ({what})? [y/N] "):
        print("Nothing was removed.")
        return
    with queue_lock(storage, study.study_name):
        groups = _of_row(study, row)
        trials = [trial for same in groups.values() for trial in same]
        _set_aside(study, trials, f"row {row} was removed")
        content = study.user_attrs["sweep"]
        chains = [[other for other in chain if other != row] for chain in content["comparisons"]]
        content["comparisons"] = [chain for chain in chains if len(chain) > 1]
        del content["rows"][row]
        study.set_user_attr("sweep", content)
    for path in map(folder.joinpath, groups):
        shutil.rmtree(path, ignore_errors=True)
        path.with_name(f"{path.name}.log").unlink(missing_ok=True)
    print(
        f"{row}: removed ({what}). As long as the sweep file has this row, the next "
        "`lightning sweep run` trains it anew."
    )


def _check_row(study: optuna.Study, row: str) -> None:
    stored = study.user_attrs.get("sweep", {})
    rows = stored.get("rows", {})
    if row not in rows:
        known = f"Expected one of {', '.join(rows)}." if rows else "A search has no rows."
        raise InputError(f"{row}: no row of {study.study_name}.{did_you_mean(row, rows)}\n{known}")
    if row == stored["baseline"]:
        raise InputError(
            f"{row}: this row is the baseline of {study.study_name}, which the others are compared "
            "with.\nExpected another one; a new study has another --name."
        )


def _of_row(study: optuna.Study, row: str) -> dict[str, list[FrozenTrial]]:
    groups = by_folder(study.get_trials(deepcopy=False))
    return {f: same for f, same in groups.items() if same[-1].user_attrs.get("row") == row}


def _set_aside(study: optuna.Study, trials: list[FrozenTrial], why: str) -> None:
    """Enter into the study which trials do not count any more.

    Raises:
        InputError: One of them is running.
    """
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            raise InputError(
                f"{trial.user_attrs['folder']}: this trial is running.\n"
                "Stop its runner, or wait for its end."
            )
    if not trials:
        return
    marks = {
        "set_aside": [trial.number for trial in trials],
        "label": why,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=marks))


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise InputError("sweep rm: nobody is there to be asked.\nAdd --yes to remove it.")
    return input(question).strip().lower() in {"y", "yes"}


def _states(trials: list[FrozenTrial]) -> str:
    return ", ".join(trial.state.name.lower() for trial in trials)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12]) or "none"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
