"""What Lightning says is held back or silenced, and nothing else with it."""

import shutil
import warnings

import pytest
from runs.stops import Plan, Stop, train

from lightning_overlock.cli.messages import keep_quiet

MISSING = (
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need to be "
    "provided during `Trainer` instantiation. Please add the following callbacks: {}."
)


def told_while(action):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in told if "Be aware" in str(warning.message)]


def test_a_limit_of_time_that_a_continued_run_has_no_more_is_no_mistake(tmp_path):
    plan, run = Plan(epochs=2), tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(run, plan, Stop("steps", 3), max_time="00:01:00:00")
    shutil.copytree(run, tmp_path / "again")

    def quietly():
        keep_quiet()
        train(run, plan)

    assert told_while(quietly) == []
    # Lightning does say it, in the words that are silenced.
    assert told_while(lambda: train(tmp_path / "again", plan)) == [MISSING.format(["Timer"])]


@pytest.mark.parametrize("names", [["Mine"], ["EMA"], ["Timer", "Mine"], ["Mine", "Timer"]])
def test_other_callbacks_that_a_continued_run_lacks_are_told(names):
    def warn():
        keep_quiet()
        warnings.warn(MISSING.format(names), UserWarning, stacklevel=1)

    assert told_while(warn) == [MISSING.format(names)]
