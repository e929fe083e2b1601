"""Where each file of a run is, and how runs are named."""

import os
from pathlib import Path

from lightning_overlock.errors import InputError, did_you_mean, printable

# File systems take 255 bytes; an earlier run of the name is moved to NAME.1.
LONGEST_NAME = 240

# Below the run folder. Training writes:
CONFIG = "config.yaml"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
BEST = f"{CHECKPOINTS}/best.ckpt"
LAST = f"{CHECKPOINTS}/last.ckpt"
# The best before a validation that only counts if the run does not go on.
PREVIOUS_BEST = f"{CHECKPOINTS}/previous_best.ckpt"
LOCK = ".lock"
METRICS_LOCK = ".metrics.lock"
# Under which ids trackers such as MLflow know the run.
TRACKER_IDS = "trackers.json"
# Evaluation and prediction write:
PREDICTIONS = "predictions.csv"
DETECTIONS = "detections.json"
DETECTED_IMAGES = "images.json"
DRAWN = "drawn"
SEGMENTATION = "segmentation"


def per_class(stage: str) -> str:
    """Return the file of the metrics per class of an evaluation: "val" or "test"."""
    return f"per_class_{stage}.csv"


def confusion_matrix(stage: str) -> str:
    """Return the file of a classifier's confusion matrix: of "val" or "test"."""
    return f"confusion_{stage}.csv"


def run_folder(name: str) -> Path:
    """Return the folder of the run `name`; the environment's OVERLOCK_RUNS moves `runs`.

    Raises:
        InputError: If the name is no plain folder name.
    """
    if not name or name in {".", ".."} or "/" in name or os.sep in name:
        raise InputError(f"--name {name!r}: expected a plain folder name, without slashes.")
    if printable(name) != name or name != name.strip() or name.startswith("-"):
        raise InputError(
            f"--name '{printable(name)}': expected a name on one line, without blanks around it "
            "and no hyphen in front."
        )
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"--name {name[:20]}…: found {len(name.encode())} bytes, expected at most "
            f"{LONGEST_NAME}."
        )
    return runs_root() / name


def runs_root() -> Path:
    """Return the folder of all runs: `runs`, or what the environment's OVERLOCK_RUNS says."""
    return Path(os.environ.get("OVERLOCK_RUNS") or "runs").expanduser()


def folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint file lies in, wherever it is; None elsewhere."""
    folder = checkpoint.parent
    return folder.parent if folder.name == CHECKPOINTS else None


def run_of(checkpoint: Path) -> str | None:
    """Return the name of the run that a checkpoint file lies in, None if it lies elsewhere."""
    folder = checkpoint.resolve().parent.parent
    try:
        here = run_folder(folder.name)
    except InputError:  # no name of a run
        return None
    return folder.name if here.resolve() == folder else None


def last_checkpoint(name: str) -> Path:
    """Return the checkpoint that `--ckpt_path last` means for the run `name`.

    Raises:
        InputError: If the run has none.
    """
    folder = run_folder(name)
    path = folder / LAST
    if path.is_file():
        return path
    runs = [file.relative_to(folder.parent).parts[0] for file in folder.parent.glob(f"*/{LAST}")]
    known = f"Runs that can be continued: {', '.join(sorted(runs))}." if runs else ""
    raise InputError(
        f"--ckpt_path last: the run '{name}' has no {path}.{did_you_mean(name, runs)}\n"
        f"Start it without --ckpt_path, or name another run with --name. {known}".rstrip()
    )
