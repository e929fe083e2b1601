"""How far a run has come, as its folder tells it."""

from pathlib import Path

from lightning_overlock.runs.checkpoint import is_whole, read_progress
from lightning_overlock.runs.config import total_epochs
from lightning_overlock.runs.layout import CONFIG, LAST
from lightning_overlock.runs.metrics_file import read_curve


def can_continue(folder: Path) -> bool:
    """Tell whether the run has a last checkpoint that was written to its end."""
    return is_whole(folder / LAST)


def is_finished(folder: Path) -> bool:
    """Tell whether all epochs of the run are trained and saved."""
    curve, saved = read_curve(folder), read_progress(folder / LAST)
    if not curve or not saved:
        return False
    epoch = int(curve[-1]["epoch"])
    # An epoch that was cut short has a row as well.
    ended = saved.get("position", {"ended": True})["ended"]
    return ended and saved["epoch"] == epoch and epoch + 1 == total_epochs(folder)


def seconds_trained(folder: Path) -> float:
    """Return how long the run's latest process has trained up to its last checkpoint."""
    try:
        # The configuration is written when training starts.
        started = (folder / CONFIG).stat().st_mtime
        return max(0.0, (folder / LAST).stat().st_mtime - started)
    except OSError:
        return 0.0
