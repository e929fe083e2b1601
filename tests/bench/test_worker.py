import multiprocessing
import os
import signal

import pytest
import torch
import worker_steps as steps

from lightning_overlock.bench.worker import Worker


@pytest.fixture(scope="module")
def process():
    with Worker("a model", steps.make, "whole") as process:
        yield process


def test_steps_are_called_in_a_process_of_their_own(process):
    assert process.ask("word", steps.run, "first", "next") == ("whole", "first", "next")
    (number,) = process.ask("process", steps.run)
    assert number != os.getpid()
    assert process.ask("process", steps.run) == (number,)  # the same for all of them
    assert process.ask("threads", steps.run) == (torch.get_num_threads(),)


def test_what_a_step_raises_is_raised_and_the_process_goes_on(process):
    with pytest.raises(IndexError, match="list index out of range"):
        process.ask("fail", steps.run)
    assert process.ask("word", steps.run) == ("whole",)


def test_ctrl_c_is_left_to_the_process_that_asks(process):
    os.kill(process.ask("process", steps.run)[0], signal.SIGINT)
    assert process.ask("word", steps.run) == ("whole",)


def test_what_making_the_steps_raises_is_raised_and_leaving_the_block_ends_the_process():
    others = multiprocessing.active_children()
    with Worker("a model", steps.make, "nothing") as process:
        with pytest.raises(ValueError, match="there are no steps"):
            process.ask("word", steps.run)
        assert len(multiprocessing.active_children()) == len(others) + 1
    assert multiprocessing.active_children() == others


def test_a_process_that_ends_is_named():
    with (
        Worker("a model", steps.make, "whole") as process,
        pytest.raises(RuntimeError, match="process of 'a model' ended, for want of memory"),
    ):
        process.ask("end", steps.run)
