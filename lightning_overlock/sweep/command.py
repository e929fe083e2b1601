"""`lightning sweep`: run a sweep file, look at it, and print its table."""

import argparse
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from lightning_overlock.errors import InputError, Interrupted, did_you_mean
from lightning_overlock.runs.slurm import requeue_job
from lightning_overlock.sweep.read import read
from lightning_overlock.sweep.show import print_list, print_status, show_study
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

if TYPE_CHECKING:
    from lightning_overlock.sweep.validate import Build

ACTIONS = {
    "run": "run all rows and seeds that have no result yet, then print the table",
    "worker": "help another machine's `run`: take from its queue until that is empty",
    "submit": "send a SLURM array job whose tasks are workers",
    "status": "print the state of every row and seed",
    "table": "write the table and figures of what there is so far",
    "plan": "before anything runs: trials, hours, seeds needed; freezes the file",
    "report": "write all of a study into one HTML file that opens offline",
    "best": "print a study's best trial, its command and its checkpoint",
    "list": "list the shipped sweeps and the studies that were run",
}
EXAMPLES = """
examples:
  lightning sweep run overlock_components --workers 2
  lightning sweep run ./mine.yaml --set 'seeds=[1,2,3]' --only full,no_gate
  lightning sweep report overlock_components-digits --output report"""


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
        epilog="\n".join(f"{name:8}{text}" for name, text in ACTIONS.items()) + "\n" + EXAMPLES,
    )
    add = parser.add_argument
    add("action", choices=ACTIONS, help="see below")
    add(
        "file",
        metavar="FILE",
        nargs="?",
        help="a shipped sweep's name, or a YAML file; of report and best a study's name",
    )
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
    add("--retry-failed", action="store_true", help="also what would fail in the same way again")
    add("--only", metavar="ROW,…", help="train these rows only")
    add("--seeds", metavar="6,7", help="seeds to add to the file's")
    add("--difference", type=float, metavar="D", help="of plan: what is to be found (table's unit)")
    add("--slurm", metavar="OPTIONS", default="", help="of submit: options for sbatch, in quotes")
    add("--array", type=int, metavar="N", default=1, help="of submit: how many tasks (default: 1)")
    add("--dry-run", action="store_true", help="of submit: print the job's script, do nothing")
    # What `submit` tells its workers.
    add("--failures-before", type=int, default=0, help=argparse.SUPPRESS)
    add("--output", type=Path, metavar="DIR", help="of report: where it goes (the sweep's folder)")
    return parser


def _with_slurm_joined(arguments: list[str]) -> list[str]:
    """Join --slurm and its value, which argparse would take for an option of its own."""
    words = list(arguments)
    if "--slurm" in words[:-1]:
        at = words.index("--slurm")
        words[at : at + 2] = [f"--slurm={words[at + 1]}"]
    return words


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
    args = _parser().parse_args(_with_slurm_joined(arguments))
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: expected 1 or more.")
    if args.retries < 0:
        raise InputError(f"--retries {args.retries}: expected 0 or more.")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs = args.runs or Path(os.environ.get("OVERLOCK_RUNS", "runs"))
    if args.action == "list":
        print_list(runs)
        return 0
    if args.file is None:
        raise InputError(f"sweep {args.action}: FILE is missing.\nExpected a sweep or a study.")
    if args.action in {"report", "best"}:
        return show_study(args, runs)
    sweep = read(args.file, args.profile, args.set)
    sweep = _with_seeds(sweep, args.seeds)
    only = _only(sweep, args.only)
    name = args.name or f"{sweep.name}-{sweep.profile}"
    if "/" in name or name in {".", ".."}:
        raise InputError(f"--name {name!r}: expected a plain name, without slashes.")
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
    return f"sqlite:///{folder / 'study.db'}"


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
