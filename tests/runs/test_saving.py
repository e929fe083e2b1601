"""Checkpoints; what they are worth after interruptions is tested in `test_cli_runs`."""

import builtins
import os
import signal
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lightning_overlock.errors import Interrupted
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


@pytest.mark.parametrize(
    ("sent", "array", "requeued"),
    [
        ([signal.SIGUSR1], None, ["requeue 7"]),
        ([signal.SIGUSR1], "5", ["requeue 5_2"]),
        ([signal.SIGINT], None, []),  # a person wants it to stop
        ([signal.SIGTERM], None, []),  # cancelled, or preempted: SLURM requeues by itself
        ([signal.SIGTERM, signal.SIGUSR1], None, ["requeue 7"]),
        ([signal.SIGUSR1, signal.SIGTERM], None, ["requeue 7"]),
        ([signal.SIGUSR1, signal.SIGINT], None, []),
    ],
)
def test_a_slurm_job_whose_time_ends_goes_back_into_the_queue(
    sent, array, requeued, tmp_path, monkeypatch
):
    """With a stand-in for `scontrol`, and a trainer that knows its cluster only."""
    tool, asked = tmp_path / "scontrol", tmp_path / "asked"
    tool.write_text(f'#!/bin/sh\necho "$*" >> {asked}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    cluster = SimpleNamespace(cluster_environment=SLURMEnvironment(auto_requeue=True))
    trainer = SimpleNamespace(
        is_global_zero=True, world_size=1, _accelerator_connector=cluster, callbacks=[]
    )
    callback = BestAndLast(tmp_path, "val/top1", "max")
    monkeypatch.setattr(callback, "_reconcile", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    callback.on_train_start(trainer, None)
    try:
        for number in sent:
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            callback.on_train_epoch_start(trainer, None)
    finally:
        callback.teardown(trainer, None, "fit")
    assert signal.getsignal(signal.SIGTERM) == before
    assert (asked.read_text().splitlines() if asked.exists() else []) == requeued
