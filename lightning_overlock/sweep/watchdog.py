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
from collections.abc import Callable


def main(command: list[str]) -> int:
    """Run a command and return its exit code, 128 + n if signal n ended it."""
    # Ignored signals stay so in the command. SLURM's notice is the runner's to answer.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait_for_asker() -> None:
        while os.read(0, 1):
            pass

    return watch(child.pid, wait_for_asker)


def watch(child: int, wait_for_asker: Callable[[], object]) -> int:
    """Wait for a child of this process and return its exit code, 128 + n if signal n ended it.

    Args:
        child: Its process number; it belongs to the process group that this process leads.
        wait_for_asker: Returns when whoever has asked for it has died; all are killed then.
    """
    # To the command alone: it tells its own children.
    signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGINT))
    # A cluster tells all processes of a job, and so the command itself.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def end_with_asker() -> None:
        wait_for_asker()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_asker, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
