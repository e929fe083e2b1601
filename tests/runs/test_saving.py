"""Checkpoints; what they are worth after interruptions is tested in `test_cli_runs`."""

import builtins
import signal

from lightning_overlock.runs.saving import STOPPING, BestAndLast


def test_a_signal_in_the_middle_of_a_line_is_answered(tmp_path, monkeypatch, capfd):
    callback = BestAndLast(tmp_path, "val/top1", "max")

    def interrupted(*args, **kwargs):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    monkeypatch.setattr(builtins, "print", interrupted)
    callback._on_signal(signal.SIGINT, None)
    assert capfd.readouterr().out == f"{STOPPING}\n"
