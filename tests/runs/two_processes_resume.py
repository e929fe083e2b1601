"""What test_resume.py runs in two processes on CPU: runs that are stopped, and continued."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from runs.stops import Plan, Stop, differences, result, train
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

TWO = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
PLANS = {
    Plan(epochs=2, batches=6): [
        [Stop("steps", 4)],
        [Stop("signal", 3), Stop("time", 8)],
    ],
    Plan(epochs=2, batches=6, accumulate=2, interval=2): [
        [Stop("time", 3)],
        [Stop("signal", 2), Stop("epochs", 1), Stop("steps", 5)],
        [Stop("limit", 4)],
    ],
}


def run(folder, plan, stops):
    for stop in (*stops, Stop("none", 0)):
        # A signal ends both processes.
        ended = (ProcessRaisedException, ProcessExitedException) if stop.kind == "signal" else ()
        with contextlib.suppress(*ended):
            train(folder, plan, stop, data={"processes": 2}, **TWO)
    return result(folder)


def main(folder):
    os.environ["PL_GLOBAL_SEED"] = "1"
    warnings.simplefilter("ignore")
    number = 0
    for count, (plan, all_stops) in enumerate(PLANS.items()):
        expected = run(folder / f"whole{count}", plan, [])
        for stops in all_stops:
            wrong = list(differences(run(folder / str(number), plan, stops), expected))
            print(f"RESULT {number} {wrong[:3] or 'ok'}", flush=True)
            number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
