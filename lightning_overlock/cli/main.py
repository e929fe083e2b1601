"""The `lightning` command: which part of the package answers, and how it ends.

Nothing heavy is imported before it is needed: help and most wrong inputs are answered at once.
"""

import signal
import sys
from importlib import import_module
from typing import Any

from lightning_overlock import __version__, configs
from lightning_overlock.cli.request import read_request
from lightning_overlock.errors import ConfigError, InputError, Interrupted, did_you_mean
from lightning_overlock.runs.disk import DISK_ERRORS, explain
from lightning_overlock.runs.lock import is_rank_zero

HELP = """\
usage: lightning COMMAND [options]

commands:
  fit       train:      lightning fit --config quickstart
            own values: lightning fit --config quickstart --model.backbone resnet18
            continue:   lightning fit --config quickstart --ckpt_path last
  validate  evaluate on the validation images:  lightning validate --ckpt_path FILE
  test      evaluate on the test images:        lightning test --ckpt_path FILE
  predict   write predictions of a folder:      lightning predict --ckpt_path FILE
  configs   list the shipped configurations, one line each
  bench     compare models: parameters, multiply-adds, time, memory
  export    write a trained network for timm, ONNX or torch:
            lightning export --ckpt_path FILE --format timm|onnx|torch
  robustness  accuracy and calibration on ImageNet-V2, -A, -R, -Sketch and -C, or folders like them:
            lightning robustness --ckpt_path FILE --data.imagenet_r FOLDER
  data      convert VOC, YOLO, labelme, Cityscapes, Oxford Pets to COCO files or label maps:
            lightning data convert voc --to coco --root FOLDER --output FOLDER
            write a folder of images as LitData's chunks:
            lightning data optimize FOLDER --output FOLDER|s3://…|gs://…
  sweep     train the rows of a sweep file, print the table:
            lightning sweep run|status|table|report|… FILE   (lightning sweep --help)

options of fit, validate, test and predict:
  -c, --config NAME|FILE  a shipped configuration, or a YAML file (with a suffix or a slash);
                          several combine, later ones override, single options override all
  --name NAME             the run folder is runs/NAME (default: the configurations' names);
                          the environment's OVERLOCK_RUNS moves `runs`
  --ckpt_path FILE|last   the checkpoint to use, with the configuration inside it
  --model.…, --data.…, --trainer.…   everything else; listed by
                          lightning fit --help, lightning fit --model.help ClassificationTask
  --print_config          print the whole configuration and stop

lightning --version prints the version.
"""

COMMANDS = ("fit", "validate", "test", "predict")
# Commands with options of their own, and the room that reads and runs each.
ROOMS = {"bench": "bench", "export": "export", "robustness": "robustness", "data": "convert"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for a known input error, 130 for Ctrl-C."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except Interrupted as interrupt:
        # A process that Lightning started must not look like a crash to the one that started it.
        return 128 + interrupt.signum if is_rank_zero() else 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as leave:  # --help, --print_config; Lightning after Ctrl-C
        if isinstance(leave.__context__, KeyboardInterrupt):
            print("Stopped.", file=sys.stderr)
            return 128 + signal.SIGINT
        if leave.code not in {None, 0}:
            raise
        # Lightning's exception for SIGTERM has no code and is no end like any other.
        return 0 if type(leave) is SystemExit else 128 + signal.SIGTERM
    except (InputError, ConfigError) as error:
        if is_rank_zero():
            print("\n".join(f"lightning: {error}".splitlines()[:3]), file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, or no permission, wherever it was met
        if error.errno not in DISK_ERRORS:
            raise
        if is_rank_zero():
            print(f"lightning: {explain(error, error.filename or 'a file')}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0
    command, *rest = arguments
    if command == "--version":
        print(f"lightning-overlock {__version__}")
    elif command == "configs":
        if rest:
            raise InputError(f"configs takes no arguments, found {' '.join(rest)}.")
        print(configs.listing())
    elif command in ROOMS:
        room = f"lightning_overlock.{ROOMS[command]}"
        options = import_module(f"{room}.options").read_options(rest)  # without torch
        code: int = import_module(f"{room}.command").run(options)
        return code
    elif command == "sweep":
        from lightning_overlock.sweep.command import main as sweep

        return sweep(rest, _build)
    elif command in COMMANDS:
        request = read_request(command, rest)
        from lightning_overlock.cli import training

        training.run(request)
    else:
        known = [*COMMANDS, "configs", *ROOMS, "sweep", "--version", "--help"]
        raise InputError(
            f"{command}: no command of this name.{did_you_mean(command, known)}\n"
            f"Expected one of {', '.join(known)}."
        )
    return 0


def _build(arguments: list[str], *device: str) -> Any:
    # A sweep's state is shown without Lightning, which the network of a row needs.
    from lightning_overlock.cli.build import build

    return build(arguments, *device)
