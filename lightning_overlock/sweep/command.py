"""`lightning sweep`: run a sweep file, look at it, and print its table."""

import argparse
import os
import re
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table

from lightning_overlock.errors import InputError, did_you_mean
from lightning_overlock.sweep import spec
from lightning_overlock.sweep.live import clock
from lightning_overlock.sweep.runner import Runner
from lightning_overlock.sweep.spec import Build
from lightning_overlock.sweep.study import Study, open_storage

ACTIONS = {
    "run": "run all rows and seeds that have no result yet, then print the table",
    "worker": "help another machine's `run`: take from its queue until that is empty",
    "status": "print the state of every row and seed",
    "table": "write the table and figures of what there is so far",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (\S+)|invalid choice: '([^']*)'", message)
        near = ""
        if wrong and wrong[1]:
            near = did_you_mean(wrong[1].partition("=")[0], known)
        elif wrong:
            near = did_you_mean(wrong[2], ACTIONS)
        raise InputError(f"sweep: {message}.{near}\n`lightning sweep --help` lists all options.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightning sweep",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the rows of a sweep file with each of its seeds, or search.",
        epilog="\n".join(f"{name:8}{text}" for name, text in ACTIONS.items()),
    )
    add = parser.add_argument
    add("action", choices=ACTIONS, help="see below")
    add("file", metavar="FILE", help="a shipped sweep's name, or a YAML file")
    add("--profile", help="the file's profile (default: the one it names)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of all rows, or one of the sweep's own keys, such as seeds=[1,2]",
    )
    add("--name", help="of the study and its folder (default: FILE-PROFILE)")
    add("--storage", metavar="URL", help="database (default: study.db in the sweep's folder)")
    add("--runs", type=Path, metavar="DIR", help="where the sweep's folder is (default: runs)")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per device, or 1)")
    add("--devices", metavar="0,1,…", help="GPUs, shared out among the workers")
    add("--retries", type=int, default=1, metavar="N", help="of a failed trial (default: 1)")
    return parser


def main(arguments: list[str], build: Build) -> int:
    """Run `lightning sweep`.

    Args:
        arguments: What was typed after `sweep`.
        build: Makes the task and the data of a `fit` command line.

    Returns:
        The exit code: 1 if a row has no result at the end.

    Raises:
        InputError: A mistake in what was typed, or in the sweep file.
    """
    args = _parser().parse_args(arguments)
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: expected 1 or more.")
    if args.retries < 0:
        raise InputError(f"--retries {args.retries}: expected 0 or more.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = spec.read(args.file, args.profile, args.set)
    name = args.name or f"{sweep.name}-{sweep.profile}"
    if "/" in name or name in {".", ".."}:
        raise InputError(f"--name {name!r}: expected a plain name, without slashes.")
    runs = args.runs or Path(os.environ.get("OVERLOCK_RUNS", "runs"))
    folder = runs / name
    url = args.storage or f"sqlite:///{folder / 'study.db'}"
    if args.action == "run":
        spec.validate(sweep, build)
    if args.storage is None:
        if args.action != "run" and not (folder / "study.db").is_file():
            known = [path.parent.name for path in runs.glob("*/study.db")]
            raise InputError(
                f"{folder}: no sweep has been run here.{did_you_mean(name, known)}\n"
                "Start it with `lightning sweep run`, or give its --storage, --runs or --name."
            )
        folder.mkdir(parents=True, exist_ok=True)
    study = Study(sweep, open_storage(url), name, create=args.action == "run")
    if args.action == "status":
        _print_status(study)
        return 0
    if args.action == "table":
        from lightning_overlock.sweep import table

        table.write(study.optuna, sweep, folder)
        return 0
    with study.alone():
        study.settle()
    folder.mkdir(parents=True, exist_ok=True)
    devices = _devices(args.devices, args.workers)
    runner = Runner(
        sweep,
        study.storage,
        name,
        folder,
        workers=args.workers or len(devices) or 1,
        devices=devices,
        retries=args.retries,
        # A person who starts it again wants failed rows tried again.
        since=len(study.trials()) if args.action == "run" else 0,
        patient=args.action == "run",
    )
    runner.run()
    if args.action == "run":
        _finish(study, build, folder)
    return 0 if study.is_complete() else 1


def _finish(study: Study, build: Build, folder: Path) -> None:
    """Measure what the rows cost, now that nothing else runs, and write the table."""
    from lightning_overlock.sweep import cost, table

    known = study.optuna.user_attrs.get("cost", {})
    try:
        if study.sweep.search is None and not set(study.rows()) <= known.keys():
            study.optuna.set_user_attr("cost", known | cost.measure(study.sweep, build))
    finally:  # whatever happens to the costs, the results are shown
        table.write(study.optuna, study.sweep, folder)


def _devices(typed: str | None, workers: int | None) -> list[str]:
    """Return the GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none to leave them alone.

    Raises:
        InputError: If there is no such GPU.
    """
    if typed is None and (workers is None or workers == 1):
        return []
    import torch

    # A cluster's job sees only some GPUs, and counts these from 0.
    count = torch.cuda.device_count()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = allowed.split(",") if allowed else [str(index) for index in range(count)]
    if typed is None:
        return names[:count]
    found = [word.strip() for word in typed.split(",")]
    for word in found:
        if not word.isdigit() or int(word) >= count or found.count(word) > 1:
            raise InputError(
                f"--devices {typed}: '{word}' is no GPU to use.\n"
                f"Expected different numbers below {count}, the number of GPUs here."
            )
    return [names[int(word)] for word in found]


def _print_status(study: Study) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "state", "epochs", study.sweep.metric, "time", "tries", ""):
        table.add_column(column, justify="left" if column in {"trial", "state", ""} else "right")
    for folder, trial in study.states().items():
        attributes = trial.user_attrs if trial is not None else {}
        best = attributes.get("best")
        error = attributes.get("error", "").splitlines()
        reported = trial.intermediate_values if trial is not None else {}
        table.add_row(
            folder,
            "missing" if trial is None else trial.state.name.lower(),
            str(attributes.get("epochs") or (max(reported) + 1 if reported else "")),
            "" if best is None else f"{best:.4g}",
            clock(attributes.get("seconds")),
            str(attributes.get("attempts", "")),
            error[-1][:80] if error else "",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(study.summary())
