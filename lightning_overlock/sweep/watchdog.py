"""Runs a command that must not outlive whoever asked for it.

The asker starts this file as a process with a session of its own and keeps the writing end of its
standard input open. When that pipe closes, because the asker has died in whatever way, the command
and all processes it has started are killed. Nothing but the standard library is imported: this
process lives beside every trial.
"""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType


def main(command: list[str]) -> int:
    """Run a command and return its exit code, 128 + n if signal n ended it."""
    child: subprocess.Popen[bytes] | None = None

    def forward(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        # To the command alone: it tells its own children.
        if child is not None:
            child.send_signal(signum)

    signal.signal(signal.SIGINT, forward)
    # A cluster tells all processes of a job, and so the command itself.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
