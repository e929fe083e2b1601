"""The words of `lightning sweep`: its actions, their options and their help."""

import argparse
from pathlib import Path

from lightning_overlock.arguments import CommandParser
from lightning_overlock.sweep.read import shipped

# Action -> what it does, and a command that somebody would type.
ACTIONS = {
    "run": (
        "train all rows and seeds that have no result yet, then write the table",
        "run overlock_components --workers 2 --only full,no_gate --seeds 6,7",
    ),
    "worker": (
        "help another machine's `run`: take from its queue until that is empty",
        "worker ./mine.yaml --storage postgresql://me@dbhost/sweeps",
    ),
    "submit": (
        "send a SLURM array job whose tasks are workers",
        "submit overlock_components --slurm '--gres=gpu:1 --time=8:00:00' --array 8",
    ),
    "plan": (
        "before anything runs: trials, hours, seeds needed; freezes the file",
        "plan overlock_components --difference 1",
    ),
    "status": (
        "print the state of every row and seed",
        "status overlock_components",
    ),
    "table": (
        "write tables (Markdown, CSV, LaTeX) and figures (PNG, PDF, SVG) of what there is",
        "table overlock_components --set 'rows=[full, static]'",
    ),
    "report": (
        "write all of a study into one HTML file that opens offline",
        "report overlock_components-mini --output report",
    ),
    "best": (
        "print a study's best trial, its command and its checkpoint",
        "best learning_rate-mini",
    ),
    "compare": (
        "print two studies side by side: rows matched by name, and what differs",
        "compare overlock_components-mini overlock_components-longer",
    ),
    "retry": (
        "put a trial aside, so that `run` trains it again from the start",
        "retry overlock_components-mini full-seed3",
    ),
    "rm": (
        "remove a row with its run folders from a study; asks first",
        "rm overlock_components-mini no_gate",
    ),
    "dashboard": (
        "open a study in optuna-dashboard, on this machine alone",
        "dashboard overlock_components-mini --port 8080",
    ),
    "list": (
        "list the shipped sweeps and the studies that were run",
        "list",
    ),
}
EXAMPLES = ("run", "report", "compare")
# Actions on a sweep file; the others read a study, as it was run.
OF_FILES = ("run", "worker", "submit", "plan", "status", "table")


def parse(words: list[str]) -> argparse.Namespace:
    """Return what was typed after `lightning sweep`.

    Raises:
        InputError: If an action or an option is not known, or a value is missing.
    """
    return _parser().parse_args(_with_slurm_joined(words))


def _with_slurm_joined(arguments: list[str]) -> list[str]:
    """Join --slurm and its value, which argparse would take for an option of its own."""
    words = list(arguments)
    if "--slurm" in words[:-1]:
        at = words.index("--slurm")
        words[at : at + 2] = [f"--slurm={words[at + 1]}"]
    return words


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    sweeps = f"shipped sweeps:\n  {_wrapped(list(shipped()))}"
    examples = "\n".join(f"  lightning sweep {ACTIONS[name][1]}" for name in EXAMPLES)
    found = CommandParser(
        prog="lightning sweep",
        formatter_class=style,
        description="Train the rows of a sweep file with each of its seeds, or search.",
        epilog=f"examples:\n{examples}\n\n{sweeps}\n\n`lightning sweep run --help` and so on has "
        "the options of an action.",
    )
    # The parsers of the actions are of the class of `found`.
    actions = found.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (text, example) in ACTIONS.items():
        below = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=style,
            epilog=f"example:\n  lightning sweep {example}"
            + (f"\n\n{sweeps}" if name in OF_FILES else ""),
        )
        (_of_file if name in OF_FILES else _of_study)(below, name)
    return found


def _of_file(parser: argparse.ArgumentParser, action: str) -> None:
    add = parser.add_argument
    # What only those that train have.
    parser.set_defaults(only=None, workers=None, retries=0)
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
    add("--seeds", metavar="6,7", help="seeds to add to the file's")
    _place(parser)
    if action == "plan":
        add("--difference", type=float, metavar="D", help="to be found, in the table's unit")
    if action == "submit":
        add("--slurm", metavar="OPTIONS", default="", help="options for sbatch, in quotes")
        add("--array", type=int, metavar="N", default=1, help="how many tasks (default: 1)")
        add("--dry-run", action="store_true", help="print the job's script, do nothing")
    if action not in {"run", "worker", "submit"}:
        return
    # What `submit` tells its workers.
    add("--failures-before", type=int, default=0, help=argparse.SUPPRESS)
    add("--only", metavar="ROW,…", help="train these rows only")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per device, or 1)")
    add("--devices", metavar="0,1,…", help="GPUs, shared out among the workers")
    add("--retries", type=int, default=1, metavar="N", help="of a failed trial (default: 1)")
    add("--fresh", action="store_true", help="a new interpreter for each trial, as beside GPUs")
    add("--retry-failed", action="store_true", help="also what would fail in the same way again")


def _of_study(parser: argparse.ArgumentParser, action: str) -> None:
    add = parser.add_argument
    parser.set_defaults(output=None)
    if action == "compare":
        add("studies", metavar="STUDY", nargs=2, help="their names; the first is the one before")
    elif action != "list":
        add("study", metavar="STUDY", help="its name; FILE alone where it has one profile")
    if action == "rm":
        add("row", metavar="ROW", help="the row's name")
        add("--yes", action="store_true", help="do not ask")
    if action == "retry":
        add("trial", metavar="TRIAL", help="its run folder's name, or its number")
    if action in {"report", "compare"}:
        add("--output", type=Path, metavar="DIR", help="where the files go")
    if action == "dashboard":
        add("--port", type=int, default=8080, metavar="N", help="of 127.0.0.1 (default: 8080)")
    _place(parser)


def _place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--storage", metavar="URL", help="database (default: study.db in the sweep's folder)")
    add("--runs", type=Path, metavar="DIR", help="where the sweep's folder is (default: runs)")


def _wrapped(names: list[str]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > 76:
            lines.append("")
        lines[-1] += f"{name}, "
    return "\n  ".join(line.rstrip() for line in lines).rstrip(",")
