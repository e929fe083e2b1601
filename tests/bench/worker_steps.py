"""Steps that the tests of `Worker` hold in a process; imported there by name."""

import os

import torch


def make(word):
    """Return steps, or raise for the word "nothing"."""
    if word == "nothing":
        raise ValueError("there are no steps")
    kept = []

    def grow():
        first = torch.ones(2**24)  # 64 MiB
        second = first + 1
        del first, second
        kept.append(torch.ones(2**23))

    return {
        "grow": grow,
        "shrink": kept.clear,
        "word": lambda: word,
        "process": os.getpid,
        "threads": torch.get_num_threads,
        "end": lambda: os._exit(3),
        "fail": lambda: [][0],
    }


def run(step, *words):
    """What the process is asked for: the step's result and some words."""
    return step(), *words


class SameProcess:
    """A worker without a process of its own, which takes seconds to start."""

    def __init__(self, title, make, *arguments):
        self.steps = make(*arguments)

    def ask(self, kind, function, *arguments):
        return function(self.steps[kind], *arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
