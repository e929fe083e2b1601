"""Stands in for `python -m lightning_overlock`: trains nothing, but leaves the same files behind.

Run by the tests of the runner, which start many trials. The metric of an epoch is a function of
(x, seed, epoch), so that a run can be foretold. Options `--fake.…` make it misbehave.
"""

import csv
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def value(x, seed, epoch):
    """The metric after an epoch, in (0, 1)."""
    digest = hashlib.sha256(f"{x} {seed} {epoch}".encode()).digest()
    return round(int.from_bytes(digest[:4]) / 2**32, 4)


def options(words):
    found, rest = {}, iter(words)
    for word in rest:
        name, equals, text = word.lstrip("-").partition("=")
        found[name] = text if equals else next(rest)
    return found


def test(typed):
    """Stands in for `lightning test`: the metric of the test split is known from the epoch."""
    checkpoint = Path(typed["ckpt_path"])
    folder = checkpoint.parents[1]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["val/top1"]))
    row = best if checkpoint.stem == "best" else rows[-1]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "test/top1"])
        writer.writeheader()
        found = round(float(row["val/top1"]) / 2, 4)
        tested = {"stage": "test", "epoch": row["epoch"], "step": row["step"], "test/top1": found}
        writer.writerows([*rows, tested])
    return 0


def robustness(typed):
    """Stands in for `lightning robustness`: an accuracy that is known from the epoch's."""
    checkpoint = Path(typed["ckpt_path"])
    with (checkpoint.parents[1] / "metrics.csv").open() as file:
        values = [float(row["val/top1"]) for row in csv.DictReader(file)]
    top1 = max(values) if checkpoint.stem == "best" else values[-1]
    row = {"model": "s", "R: top-1 (%)": 25 * top1, "R: ECE (%)": 3.0, "R: NLL": 0.5}
    row |= {"C: CE fog (%)": 70.0, "from": "measured"}
    with Path(typed["output"], "robustness.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return 0 if Path(typed["data.imagenet_r"]).is_dir() else 2


OTHERS = {"test": test, "robustness": robustness}


def main(words):
    typed = options(words[1:])
    if words[0] in OTHERS:
        return OTHERS[words[0]](typed)
    runs = Path(os.environ["OVERLOCK_RUNS"])
    folder = runs / typed["name"]
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    last = folder / "checkpoints/last.ckpt"
    if "ckpt_path" not in typed and list(folder.iterdir()) != [folder / ".lock"]:
        folder.rename(folder.with_name(f"{folder.name}.{time.monotonic_ns()}"))
        folder.mkdir()
    last.parent.mkdir(exist_ok=True)
    with (runs / "starts.txt").open("a") as file:
        file.write(f"{typed['name']} {'last' if 'ckpt_path' in typed else 'new'}\n")
    epochs = int(typed.get("trainer.max_epochs", 3))
    (folder / "config.yaml").write_text(f"trainer:\n  max_epochs: {epochs}\n")
    rows = []
    if "ckpt_path" in typed:
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    x, seed = float(typed.get("model.x", 0)), int(typed["seed_everything"])
    print("fake training", flush=True)
    if "fake.refuse" in typed:
        print("lightning: the fake refuses this", file=sys.stderr)
        return 2
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    once = runs / f"{typed['name']}.once"
    for epoch in range(len(rows), epochs):
        time.sleep(float(typed.get("fake.seconds", os.environ.get("FAKE_SECONDS", 0))))
        if stopped:
            return 130
        if typed.get("fake.crash") == str(epoch) and not once.exists():
            once.touch()
            sys.exit("the fake has crashed")
        if typed.get("fake.always_crash") == str(epoch):
            sys.exit("the fake crashes always")
        if typed.get("fake.kill") == str(epoch) and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        found = "nan" if typed.get("fake.nan") == str(epoch) else value(x, seed, epoch)
        if x > float(typed.get("fake.bad_above", "inf")):
            found = 0.0
        rows.append({"stage": "fit", "epoch": epoch, "step": epoch + 1, "val/top1": found})
        with (folder / "metrics.new").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (folder / "metrics.new").rename(folder / "metrics.csv")
        # A real checkpoint needs torch, which takes seconds to import.
        shutil.copy(Path(os.environ["FAKE_CHECKPOINTS"]) / f"{epoch}.ckpt", folder / "new.ckpt")
        os.utime(folder / "new.ckpt")
        best = max(rows, key=lambda row: float(row["val/top1"]))
        if best is rows[-1]:
            shutil.copy(folder / "new.ckpt", folder / "checkpoints/best.ckpt")
        (folder / "new.ckpt").rename(last)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
