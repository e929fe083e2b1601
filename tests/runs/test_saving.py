"""Checkpoints; what they are worth after interruptions is tested in `test_cli_runs`."""

import builtins
import signal

import pytest

from lightning_overlock.runs.saving import STOPPING, BestAndLast


def test_a_signal_in_the_middle_of_a_line_is_answered(tmp_path, monkeypatch, capfd):
    callback = BestAndLast(tmp_path, "val/top1", "max")

    def interrupted(*args, **kwargs):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr(builtins, "print", interrupted)
    callback._on_signal(signal.SIGINT, None)
    assert capfd.readouterr().out == f"{STOPPING}\n"


def test_sigterm_beside_sigint_still_saves_and_two_interrupts_do_not(tmp_path):
    """A SLURM job's SIGTERM reaches a sweep's trial twice: by itself, and through its runner."""
    callback = BestAndLast(tmp_path, "val/top1", "max")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        callback._on_signal(number, None)
    assert callback._signum == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        callback._on_signal(signal.SIGINT, None)
