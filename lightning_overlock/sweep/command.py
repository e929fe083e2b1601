"""`lightning sweep`: run a sweep file, look at it, and print its table."""

import argparse
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from lightning_overlock.errors import InputError, Interrupted, did_you_mean
from lightning_overlock.runs.layout import run_folder, runs_root
from lightning_overlock.runs.slurm import requeue_job
from lightning_overlock.sweep.arguments import OF_FILES, parse
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.show import print_list, print_status, show_study
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage, own_url
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_overlock.sweep.validate import Build


def main(arguments: list[str], build: "Build") -> int:
    """Run `lightning sweep`.

    Args:
        arguments: What was typed after `sweep`.
        build: Makes the task and the data of a `fit` command line.

    Returns:
        The exit code: 1 if a row has no result at the end.

    Raises:
        InputError: A mistake in what was typed, or in the sweep file.
    """
    args = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs = args.runs.expanduser() if args.runs else runs_root()
    if args.action == "list":
        print_list(runs)
        return 0
    if args.action not in OF_FILES:
        return _of_study(args, runs)
    return _of_file(args, runs, build)


def _of_study(args: argparse.Namespace, runs: Path) -> int:
    """Do what needs a study alone."""
    if args.action == "compare":
        from lightning_overlock.sweep.side_by_side import print_comparison

        print_comparison(args.studies, runs, args.storage, args.output)
        return 0
    name = Path(args.study).stem if Path(args.study).suffix == ".yaml" else args.study
    if args.action in {"rm", "retry"}:
        from lightning_overlock.sweep import edit

        if args.action == "rm":
            edit.remove_row(name, args.row, runs, args.storage, ask=not args.yes)
        else:
            edit.retry(name, args.trial, runs, args.storage)
    elif args.action == "dashboard":
        from lightning_overlock.sweep.dashboard import serve

        serve(name, runs, args.storage, args.port)
    else:
        show_study(args.action, name, runs, args.storage, args.output)
    return 0


def _of_file(args: argparse.Namespace, runs: Path, build: "Build") -> int:
    """Do what is about a sweep file."""
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: expected 1 or more.")
    if args.retries < 0:
        raise InputError(f"--retries {args.retries}: expected 0 or more.")
    sweep = read(args.file, args.profile, args.set)
    sweep = _with_seeds(sweep, args.seeds)
    only = _only(sweep, args.only)
    name = args.name or f"{sweep.name}-{sweep.profile}"
    run_folder(name)  # refuses what cannot be a folder's name
    folder = runs / name
    if args.action in {"run", "plan", "submit"}:
        from lightning_overlock.sweep.validate import validate

        validate(sweep, build)
    if args.action == "plan":
        from lightning_overlock.sweep import planning

        planning.plan(sweep, name, folder, args.storage, args.difference, build)
        return 0
    if args.action == "submit":
        return _submit(args, sweep, name, folder)
    url = args.storage or _own_database(folder, create=args.action == "run")
    study = Study(sweep, open_storage(url), name, create=args.action == "run")
    if args.action == "status":
        print_status(study, folder)
        return 0
    if args.action == "table":
        _write(study, folder)
        return 0
    return _train(args, study, folder, only, build)


def _submit(args: argparse.Namespace, sweep: Sweep, name: str, folder: Path) -> int:
    """Begin the study and submit its workers, or print the script alone."""
    from lightning_overlock.sweep.submit import job_script, require_sbatch, submit

    script = job_script(args, name, folder, 0)
    if args.dry_run:
        print(script, end="")
        return 0
    require_sbatch()
    url = args.storage or _own_database(folder, create=True)
    study = Study(sweep, open_storage(url), name, create=True)
    study.reconcile()
    folder.mkdir(parents=True, exist_ok=True)
    submit(job_script(args, name, folder, len(study.trials())), folder)
    if args.storage is None and args.array > 1:
        print(
            f"The study is {folder / 'study.db'}, a file: tasks on several machines need a file "
            "system with working locks, or better PostgreSQL (--storage)."
        )
    print("When all have ended, the same with `run` in the place of `submit` writes the table.")
    return 0


def _train(
    args: argparse.Namespace, study: Study, folder: Path, only: list[str] | None, build: "Build"
) -> int:
    """Run what is due, then measure costs and write the table."""
    study.reconcile()
    folder.mkdir(parents=True, exist_ok=True)
    from lightning_overlock.sweep.runner import Runner
    from lightning_overlock.sweep.warm import is_possible

    devices = _devices(args.devices, args.workers)
    runner = Runner(
        study.sweep,
        study.storage,
        study.name,
        folder,
        workers=args.workers or len(devices) or 1,
        devices=devices,
        request=Request(
            args.retries,
            # A person who starts it again wants failed rows tried again.
            ignore_failures_before=len(study.trials())
            if args.action == "run"
            else args.failures_before,
            retry_failed=args.retry_failed,
            only=only,
        ),
        wait_for_others=args.action == "run",
        # W&B and MLflow begin threads and processes that a fork would share.
        warm=not args.fresh and is_possible() and not _has_loggers(study.sweep),
        cost=_cost(study.sweep, build),
    )
    try:
        runner.run()
    except Interrupted as stop:
        # The end of a SLURM job's time; whoever stops it otherwise does not want it again.
        if stop.signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
            requeue_job()
        raise
    if args.action == "run":
        _finish(study, build, folder)
        return 0 if study.is_complete(only) else 1
    # Others may still be training.
    failed = [t for t in study.states().values() if t and t.state == optuna.trial.TrialState.FAIL]
    return 1 if failed else 0


def _cost(sweep: Sweep, build: "Build") -> "Callable[[dict[str, Any]], dict[str, float]] | None":
    """Return what counts a network's parameters and multiply-adds; None where none are weighed."""
    if sweep.cost in {None, "seconds"}:
        return None
    from lightning_overlock.sweep.cost import size_of

    return partial(size_of, sweep, build)


def _has_loggers(sweep: Sweep) -> bool:
    """Tell whether trials are asked to log elsewhere."""
    rows = [row.options for row in sweep.rows.values()]
    return any("logger" in options for options in (sweep.options, *rows))


def _with_seeds(sweep: Sweep, typed: str | None) -> Sweep:
    """Return the sweep with the seeds that were typed as well."""
    if typed is None:
        return sweep
    words = [word.strip() for word in typed.split(",")]
    tuning = sweep.tune.seeds if sweep.tune else []
    for word in words:
        if not word.isdecimal() or int(word) in tuning or words.count(word) > 1:
            used = f" Seeds {tuning} tune." if tuning else ""
            raise InputError(
                f"--seeds {typed}: '{word}' is no seed to add.\n"
                f"Expected different whole numbers, as in --seeds 6,7.{used}"
            )
    seeds = list(dict.fromkeys([*sweep.seeds, *map(int, words)]))
    return sweep.model_copy(
        update={"seeds": seeds, "overrides": [*sweep.overrides, f"seeds={seeds}"]}
    )


def _only(sweep: Sweep, typed: str | None) -> list[str] | None:
    """Return the rows that were typed after --only."""
    if typed is None:
        return None
    rows = [typed] if typed in sweep.rows else [word.strip() for word in typed.split(",")]
    for row in rows:
        if row not in sweep.runnable:
            raise InputError(
                f"--only {typed}: '{row}' is no row to run.{did_you_mean(row, sweep.runnable)}\n"
                f"Expected some of {', '.join(sweep.runnable) or 'the rows, but it is a search'}."
            )
    return rows


def _own_database(folder: Path, create: bool) -> str:
    """Return the URL of the database in a sweep's folder.

    Raises:
        InputError: If it is not there and is not to be made, or cannot be made.
    """
    if not create and not (folder / "study.db").is_file():
        known = [path.parent.name for path in folder.parent.glob("*/study.db")]
        raise InputError(
            f"{folder}: no sweep has been run here.{did_you_mean(folder.name, known)}\n"
            "Start it with `lightning sweep run`, or give its --storage, --runs or --name."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: this folder cannot be made: {error.strerror}.\n"
            "Expected a place to write to; --runs DIR chooses another one."
        ) from None
    return own_url(folder)


def _write(study: Study, folder: Path) -> None:
    from lightning_overlock.sweep.results import results
    from lightning_overlock.sweep.write import write

    write(results(study.optuna, study.sweep, folder), folder)


def _finish(study: Study, build: "Build", folder: Path) -> None:
    """Measure what the rows cost, now that nothing else runs, and write the table."""
    from lightning_overlock.sweep import cost

    known = study.optuna.user_attrs.get("cost", {})
    measured = {name for name, found in known.items() if "error" not in found}
    try:
        if study.sweep.search is None and not set(study.sweep.runnable) <= measured:
            study.optuna.set_user_attr("cost", known | cost.measure(study.sweep, build))
    finally:  # whatever happens to the costs, the results are shown
        _write(study, folder)
    if (logger := study.sweep.options.get("logger")) is not None:
        from lightning_overlock.sweep.results import results
        from lightning_overlock.sweep.write import track

        track(results(study.optuna, study.sweep, folder), folder, logger)


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
