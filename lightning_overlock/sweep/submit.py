"""`lightning sweep submit`: a SLURM array job whose tasks are workers of one sweep."""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy

from lightning_overlock.errors import InputError

# Seconds between the signal that the time is nearly over and its end: a step, and a checkpoint.
NOTICE = 300


def job_script(args: argparse.Namespace, name: str, folder: Path, failures_before: int) -> str:
    """Return the job's script.

    Args:
        args: What was typed.
        name: The study's name.
        folder: The sweep's folder.
        failures_before: Failures of trials before this number do not count.

    Raises:
        InputError: If `--slurm` or `--array` is no such thing, or a password is in the URL.
    """
    folder = folder.absolute()
    options = {
        "job-name": name,
        "array": f"0-{_tasks(args.array) - 1}",
        "chdir": str(Path.cwd()),
        # % begins a placeholder of SLURM's.
        "output": f"{folder}/slurm-%A_%a.log".replace(str(folder), str(folder).replace("%", "%%")),
        "open-mode": "append",
        # To the worker alone, which takes the shell's place: it saves its trials, hands them back
        # and puts its task into the queue again.
        "signal": f"B:USR1@{NOTICE}",
    }
    lines = [f"#SBATCH {shlex.quote(f'--{key}={value}')}" for key, value in options.items()]
    lines.append("#SBATCH --requeue")
    if words := _slurm_words(args.slurm):
        lines.append(f"#SBATCH {shlex.join(words)}")
    command = shlex.join([sys.executable, "-m", "lightning_overlock", "sweep", "worker"])
    rest = shlex.join(_worker_words(args, name, folder.parent, failures_before))
    return "\n".join(["#!/bin/bash", *lines, f"exec {command} {rest}", ""])


def _tasks(typed: int) -> int:
    if typed < 1:
        raise InputError(f"--array {typed}: expected the number of workers, 1 or more.")
    return typed


def _slurm_words(typed: str) -> list[str]:
    """Return sbatch's options as words."""
    try:
        words = shlex.split(typed)
    except ValueError as error:
        raise InputError(f"--slurm {typed}: {error}.\nExpected sbatch's options.") from None
    if "\n" in typed or (words and not words[0].startswith("-")):
        raise InputError(
            f"--slurm {typed.splitlines()[0]}: these are no options of sbatch.\n"
            'Expected them on one line, as in --slurm "--gres=gpu:1 --time=8:00:00".'
        )
    return words


def _worker_words(
    args: argparse.Namespace, name: str, runs: Path, failures_before: int
) -> list[str]:
    """Return what is typed after `lightning sweep worker`."""
    words = [args.file, "--name", name, "--runs", str(runs)]
    for change in args.set:
        words += ["--set", change]
    given = {
        "profile": args.profile,
        "storage": _without_password(args.storage),
        "seeds": args.seeds,
        "only": args.only,
        "workers": args.workers,
        "devices": args.devices,
        "retries": args.retries,
        "failures-before": failures_before,
    }
    for option, value in given.items():
        if value is not None:
            words += [f"--{option}", str(value)]
    flags = {"--retry-failed": args.retry_failed, "--fresh": args.fresh}
    return words + [flag for flag, typed in flags.items() if typed]


def _without_password(url: str | None) -> str | None:
    if url is not None and sqlalchemy.make_url(url).password is not None:
        raise InputError(
            "--storage: the password would be written into the job's script.\n"
            "Leave it out of the URL; the driver reads PGPASSWORD and ~/.pgpass."
        )
    return url


def submit(script: str, folder: Path) -> None:
    """Write a job's script into the sweep's folder and hand it to sbatch, which must be there.

    Raises:
        InputError: If sbatch refuses.
    """
    path = folder / "submit.sh"
    path.write_text(script, encoding="utf-8")
    answer = subprocess.run(
        ["sbatch", str(path.absolute())], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
        raise InputError(f"{path}: sbatch refuses this job: {reason[:300]}")
    print(answer.stdout.strip())


def require_sbatch() -> None:
    """See that there is an sbatch.

    Raises:
        InputError: If there is none.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "sweep submit: found no sbatch on the PATH.\n"
            "Expected a machine of a SLURM cluster; --dry-run prints the job's script anywhere."
        )
