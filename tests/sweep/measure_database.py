"""Measures how many workers one PostgreSQL server bears: `python tests/sweep/measure_database.py`.

Stand-in workers take trials, report an epoch a second, give signs of life and finish, as the
runner's do, but train nothing. They are threads of eight processes on the server's own machine, so
that what they wait for is the queue's lock and the database, and their own processor time.
"""

import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState
from postgres_server import postgres

from lightning_overlock.sweep import study as study_module
from lightning_overlock.sweep.parts import Row
from lightning_overlock.sweep.spec import Sweep
from lightning_overlock.sweep.storage import open_storage
from lightning_overlock.sweep.study import Study
from lightning_overlock.sweep.trials import Request

PROCESSES = 8
EPOCHS = 15
STEPS = ("take a trial", "report an epoch", "sign of life", "finish a trial")


def sweep_of(trials):
    return Sweep(
        name="s", title="s", profile="p", configs=["quickstart"], metric="val/top1", baseline="a",
        seeds=list(range(trials)), rows={"a": Row()}, path=Path("s.yaml"),
    )  # fmt: skip


def work(url, trials, threads):
    """Be some workers, and print what each step took."""
    sweep, lock = sweep_of(trials), threading.Lock()

    def timed(step, call, *arguments):
        begin = time.perf_counter()
        found = call(*arguments)
        with lock:
            print(f"{STEPS.index(step)} {time.perf_counter() - begin:.4f}", flush=True)
        return found

    def worker():
        study = Study(sweep, open_storage(url), "s-p")
        while (claim := timed(STEPS[0], study.take, Request())) is not None:
            for epoch in range(EPOCHS):
                time.sleep(1)
                timed(STEPS[1], claim.trial.report, 0.5, epoch)
                if epoch % study_module.HEARTBEAT == study_module.HEARTBEAT - 1:
                    timed(STEPS[2], study.beat, claim)
            timed(STEPS[3], study.finish, claim, TrialState.COMPLETE, {"seconds": 1.0}, 0.5)

    workers = [threading.Thread(target=worker) for _ in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()


def main():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("seconds, median and worst")
    print(f"{'workers':>8}  " + "  ".join(f"{step:>16}" for step in STEPS))
    for workers in (1, 8, 16, 32, 64):
        with postgres(fsync=True, connections=400) as url:
            trials = 3 * workers
            Study(sweep_of(trials), open_storage(url), "s-p", create=True).reconcile()
            words = [str(trials), str(max(1, workers // PROCESSES))]
            started = [
                subprocess.Popen(
                    [sys.executable, __file__, url, *words], stdout=subprocess.PIPE, text=True
                )
                for _ in range(min(workers, PROCESSES))
            ]
            lines = [line.split() for one in started for line in one.communicate()[0].splitlines()]
        cells = []
        for number in range(len(STEPS)):
            took = [float(seconds) for step, seconds in lines if int(step) == number]
            cells.append(f"{statistics.median(took):.3f}, {max(took):.2f}")
        print(f"{workers:>8}  " + "  ".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
