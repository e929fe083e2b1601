"""Measures what a sweep adds to the CPU time of a trial: `python tests/sweep/measure_overhead.py`.

Small trainings are run by themselves (`lightning fit`), by a sweep with an interpreter for each
(`--fresh`), by a sweep that forks them, and once in a process that has trained before, which is the
training alone. CPU time of all processes, not the clock's, so that a busy machine may measure too.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

TRIALS = 4
OPTIONS = {
    "model.backbone": "test_overlock",
    "data.batch_size": 8,
    "data.image_size": 32,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.max_epochs": 1,
    "trainer.enable_model_summary": False,
}
WORDS = ["fit", "--config", "quickstart", *(f"--{k}={json.dumps(v)}" for k, v in OPTIONS.items())]
WORDS = [word.replace('"', "") for word in WORDS]


def sweep(mode, trials):
    from lightning_overlock.sweep.parts import Row
    from lightning_overlock.sweep.runner import Runner
    from lightning_overlock.sweep.spec import Sweep
    from lightning_overlock.sweep.storage import open_storage
    from lightning_overlock.sweep.study import Study

    found = Sweep(
        name="s", title="s", profile="p", configs=["quickstart"], metric="val/top1", baseline="a",
        options=OPTIONS, seeds=list(range(trials)), rows={"a": Row()}, path=Path("s.yaml"),
    )  # fmt: skip
    study = Study(found, open_storage("sqlite:///study.db"), "s", create=True)
    study.reconcile()
    Runner(found, study.storage, "s", Path("runs").absolute(), warm=mode == "warm").run()
    assert study.is_complete()


def alone():
    import time

    from lightning_overlock.cli.main import main

    main([*WORDS, "--name=first"])
    before = time.process_time()
    main([*WORDS, "--name=second"])
    Path("alone").write_text(str(time.process_time() - before))


def cpu_of(*words):
    """Run this file in an empty folder; return the CPU time of all processes, and the folder."""
    folder = Path(tempfile.mkdtemp())
    (folder / "runs").mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    while True:  # what the command has left, such as the warm process, is this one's by now
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, folder


def main():
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    me = [sys.executable, __file__]
    _, folder = cpu_of(*me, "alone")
    training = float((folder / "alone").read_text())
    cpu_of(sys.executable, "-m", "lightning_overlock", *WORDS)  # fills the caches
    bare = cpu_of(sys.executable, "-m", "lightning_overlock", *WORDS)[0]
    print(f"training alone {training:.2f} s; bare fit {bare:.2f} s, {bare - training:.2f} s more")
    for mode in ("fresh", "warm"):
        few, many = (cpu_of(*me, mode, str(n))[0] for n in (1, 1 + TRIALS))
        each = (many - few) / TRIALS
        print(f"{mode} trial {each:.2f} s, {each - training:.2f} s more; the first {few:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        alone()
    elif sys.argv[1:]:
        sweep(sys.argv[1], int(sys.argv[2]))
    else:
        main()
