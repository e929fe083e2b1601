"""Freed memory stays with a training's process, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from lightning_overlock.cli import training
from lightning_overlock.cli.request import read_request
from lightning_overlock.runs.malloc import VARIABLES

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

# Prints whether it was set, and how many pages four rounds of 160 MB fetched after three others.
CODE = """
import resource, sys, torch
from lightning_overlock.runs.malloc import keep_freed_memory
def round():
    pieces = [torch.ones(10_000_000) for _ in range(4)]
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(3):
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(word, **variables):
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", CODE, word],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    answer, count = done.stdout.split()
    return answer, int(count)


def test_memory_is_not_fetched_from_the_system_again():
    answer, kept = pages("keep")
    assert answer == "True"
    _, fetched = pages("leave")
    assert fetched > 1000
    assert kept < fetched / 10


def test_the_environment_has_the_last_word():
    answer, _ = pages("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert answer == "False"


def test_it_is_set_before_anything_is_built(monkeypatch, tmp_path):
    class Called(Exception):
        pass

    def called():
        raise Called

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "keep_freed_memory", called)
    with pytest.raises(Called):
        training.run(read_request("fit", ["--config", "quickstart"]))
