"""The `lightning` command: what was typed becomes a task, its data and a trainer."""

import importlib
import logging
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_overlock import __version__, configs
from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.callbacks.epoch_lines import EpochLines, format_metrics
from lightning_overlock.callbacks.prediction_images import PredictionImages
from lightning_overlock.cli.parser import ArgumentSplitter, Parser, parse, read_config, read_yaml
from lightning_overlock.errors import InputError, Interrupted, did_you_mean
from lightning_overlock.runs.checkpoint import read_checkpoint
from lightning_overlock.runs.config import checkpoint_config
from lightning_overlock.runs.layout import LAST, last_checkpoint, run_folder, run_of
from lightning_overlock.runs.lock import claim_run_folder, is_rank_zero
from lightning_overlock.runs.recording import MetricsFile, RunConfig
from lightning_overlock.runs.saving import BestAndLast

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
  sweep     train the rows of a sweep file, print the table:
            lightning sweep run|status|table|worker FILE   (lightning sweep --help)

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
        return 0
    except Exception as error:
        known = isinstance(error, (InputError, MisconfigurationException))
        if not (known or _raised_by_network(error)):
            raise
        if is_rank_zero():
            print("\n".join(f"lightning: {error}".splitlines()[:3]), file=sys.stderr)
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
    elif command == "bench":
        from lightning_overlock.bench.command import main as bench

        return bench(rest)
    elif command == "sweep":
        from lightning_overlock.sweep.command import main as sweep

        return sweep(rest, build)
    elif command in COMMANDS:
        # Their classes are known by name once imported; the other commands do without them.
        from lightning_overlock import data, tasks  # noqa: F401

        TrainingCLI(read_request(command, rest))
    else:
        known = [*COMMANDS, "configs", "bench", "sweep", "--version", "--help"]
        raise InputError(
            f"{command}: no command of this name.{did_you_mean(command, known)}\n"
            f"Expected one of {', '.join(known)}."
        )
    return 0


def _raised_by_network(error: BaseException) -> bool:
    """Tell whether a ValueError is from the network's own files, which raise it for bad input."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    rooms = tuple(f"{__package__}.{room}." for room in ("ops", "layers", "models"))
    return isinstance(error, ValueError) and module.startswith(rooms)


def _keep_quiet() -> None:
    """Silence what Lightning says that nobody at the command line can act on."""
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_has_substance)
    # Lightning 2.6 asks torch in a way that torch 2.10 has deprecated.
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.", FutureWarning)
    warnings.filterwarnings("ignore", "Precision .* is not supported by the model summary")
    # The tasks log values that are reduced over all processes already.
    warnings.filterwarnings("ignore", "It is recommended to use `self.log.*sync_dist", UserWarning)


def _has_substance(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(("💡 Tip", "`weights_only` was not set", "TPU available: False"))


@dataclass
class Request:
    """What was typed after a command, as far as it must be known before the options are parsed.

    Attributes:
        command: The command.
        name: The run's name.
        configs: The configurations as (source, YAML text), a checkpoint's own first.
        words: The other arguments.
        ckpt_path: The checkpoint, if one is given.
        checkpoint: Its content.
    """

    command: str
    name: str
    configs: list[tuple[str, str]]
    words: list[str]
    ckpt_path: Path | None = None
    checkpoint: dict[str, Any] | None = None


def read_request(command: str, arguments: list[str]) -> Request:
    """Find the configurations, the run's name and the checkpoint among the arguments.

    Raises:
        InputError: If one of them does not exist or cannot be read.
    """
    splitter = ArgumentSplitter()
    splitter.add_argument("-c", "--config", action="append", default=[])
    splitter.add_argument("--name")
    splitter.add_argument("--ckpt_path")
    found, words = splitter.parse_known_args(arguments)
    files = [configs.find(name) for name in found.config]
    texts = [
        (f"--config {name}", read_config(file))
        for name, file in zip(found.config, files, strict=True)
    ]
    given: dict[str, Any] = {}
    for source, text in texts:
        content = read_yaml(text, source)
        given |= {key: content[key] for key in ("name", "ckpt_path") if content.get(key)}
    stems = "-".join(file.stem for file in files)
    name: str | None = found.name or given.get("name") or stems or None
    path: str | None = found.ckpt_path or given.get("ckpt_path")
    requeued = command == "fit" and int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if path is None and requeued and name is not None:
        path = "last" if (run_folder(name) / LAST).is_file() else None
    request = Request(command, name or "run", texts, words)
    if path is None:
        return request
    if path == "last":
        if name is None:
            raise InputError(
                "--ckpt_path last: found neither --name nor --config, so no run to continue."
            )
        request.ckpt_path = last_checkpoint(name)
    else:
        request.ckpt_path = Path(path)
    request.checkpoint = read_checkpoint(request.ckpt_path)
    if "config" in request.checkpoint:
        own = checkpoint_config(request.checkpoint)
        request.configs.insert(
            0, (f"the configuration in {request.ckpt_path}", yaml.safe_dump(own))
        )
        request.name = name or run_of(request.ckpt_path) or own.get("name") or request.name
    elif not texts:
        raise InputError(
            f"{request.ckpt_path}: found no configuration inside this checkpoint.\n"
            "Expected a checkpoint written by `lightning fit`; else give --config as well."
        )
    return request


def _free_options(class_path: str) -> frozenset[str]:
    """Return the options of a task that may differ from a checkpoint's."""
    module, _, name = class_path.rpartition(".")
    task = getattr(importlib.import_module(module), name)
    return getattr(task, "free_options", frozenset())


class TrainingCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`: LightningCLI with run folders and own checkpoints.

    Args:
        request: What was typed.
    """

    def __init__(self, request: Request) -> None:
        _keep_quiet()
        self.request = request
        self.folder = run_folder(request.name)
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,  # RunConfig
            trainer_defaults={"use_distributed_sampler": False},  # the data modules shard
            seed_everything_default=42,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the task builds its own
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one command that was typed, as building each parser takes a while."""
        every = LightningCLI.subcommands()
        return {self.request.command: every[self.request.command] | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what the package adds to Lightning's options."""
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_argument("--name", type=str, default=self.request.name, help="Name of the run.")
        if "config" not in (self.request.checkpoint or {}):  # else the checkpoint says them
            parser.link_arguments(
                "data.class_names", "model.init_args.class_names", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ARG002
        """Parse what was typed, and hold it against the checkpoint."""
        request, command = self.request, self.request.command
        # Ahead of what was typed: jsonargparse takes all that follows --model.help for its own.
        words = [f"--name={request.name}", *request.words]
        if request.ckpt_path is not None:
            words.insert(0, f"--ckpt_path={request.ckpt_path}")
        options = self._subcommand_parsers[command]
        self.config = parse(parser, command, options, request.configs, words)
        if request.checkpoint is not None and "config" in request.checkpoint:
            own = parse(parser, command, options, request.configs[:1], [])
            self._refuse_contradictions(self._plain(own), self._plain(self.config))

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint's hyperparameters alone: its configuration was read already."""

    def _plain(self, config: Namespace) -> dict[str, Any]:
        """Return the configuration as it is stored: without what belongs to one command only."""
        command = self.request.command
        text = self._subcommand_parsers[command].dump(config[command], skip_none=False)
        plain: dict[str, Any] = yaml.safe_load(text)
        for key in self._subcommand_method_arguments[command]:
            plain.pop(key, None)
        return plain

    def _refuse_contradictions(self, own: dict[str, Any], typed: dict[str, Any]) -> None:
        path = self.request.ckpt_path
        old, new = own["model"], typed["model"]
        differing = {"model": (old["class_path"], new["class_path"])}
        free = _free_options(old["class_path"])
        for key in sorted(old.get("init_args", {}).keys() - free):
            differing[f"model.{key}"] = (old["init_args"][key], new["init_args"].get(key))
        for name, (expected, found) in differing.items():
            if found != expected:
                raise InputError(
                    f"--{name}: found {found}, but the checkpoint {path} was trained with "
                    f"{expected}.\nLeave the option out to use the checkpoint's, or start a new "
                    f"run from its weights with --model.init_from {path}."
                )

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; hold the data's classes against the checkpoint's."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if error.__cause__ is None:
                raise
            # jsonargparse wraps whatever a constructor raises.
            raise error.__cause__ from None
        checkpoint = self.request.checkpoint or {}
        trained = checkpoint.get("hyper_parameters", {}).get("class_names")
        if trained is None or self.request.command == "predict":
            return
        found = getattr(self.datamodule, "class_names", trained)
        if list(found) != list(trained):
            raise InputError(
                f"The data have other classes than the checkpoint {self.request.ckpt_path}.\n"
                f"Found {len(found)}: {_first(found)}\nExpected {len(trained)}: {_first(trained)}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer of this run folder."""
        given = self.config_init[self.request.command].trainer
        if given.default_root_dir is not None:
            raise InputError(
                "--trainer.default_root_dir: the run folder is runs/NAME.\n"
                "Expected --name for NAME, or the environment's OVERLOCK_RUNS for runs."
            )
        if given.sync_batchnorm and (given.accelerator == "cpu" or not torch.cuda.is_available()):
            kwargs["sync_batchnorm"] = False
            self._say("sync_batchnorm is off: torch synchronises batch norms on GPUs only")
        kwargs["default_root_dir"] = str(self.folder)
        if given.logger in (None, True):
            board = TensorBoardLogger(self.folder, name="", version="")
            kwargs["logger"] = board if self.request.command == "fit" else False
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False  # EpochLines
        kwargs["enable_model_summary"] = False  # among the callbacks
        if given.enable_checkpointing is False:
            # There is no BestAndLast then; Lightning takes MetricsFile for a checkpoint callback.
            kwargs["enable_checkpointing"] = True
        self.trainer_defaults["callbacks"] = self._callbacks(given)
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, trainer: Namespace) -> list[Callback]:
        """Return the callbacks that every run has, whatever callbacks its configuration lists."""
        text = yaml.safe_dump(self._stored_config(), sort_keys=False)
        found: list[Callback] = []
        if trainer.fast_dev_run:  # leaves nothing behind
            found.append(RunConfig(text, None))
        else:
            found.append(RunConfig(text, self.folder))
            # Before the checkpoints: a kill in between loses no epoch of a continued run.
            checkpoint = self.request.checkpoint or {}
            epoch, step = checkpoint.get("epoch"), checkpoint.get("global_step")
            found.append(MetricsFile(self.folder, epoch, step))
            found.append(PredictionImages())
            if trainer.enable_checkpointing is not False:
                monitor = getattr(self.model, "monitor", "val/loss")
                mode = getattr(self.model, "monitor_mode", "min")
                found.append(BestAndLast(self.folder, monitor, mode))
        interactive = sys.stdout.isatty()
        if trainer.enable_progress_bar is not False:
            found.append(RichProgressBar() if interactive else EpochLines())
        if trainer.enable_model_summary is not False:
            found.append(RichModelSummary() if interactive else ModelSummary())
        return found

    def _stored_config(self) -> dict[str, Any]:
        plain = self._plain(self.config)
        plain["model"].get("init_args", {}).pop("class_names", None)  # the data say them
        return plain

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, holding the run folder."""
        path = self.request.ckpt_path
        continued = path is not None and run_of(path) == self.request.name
        requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.fit(model, **kwargs, weights_only=True)
            return
        with claim_run_folder(self.folder, continued or requeued):
            try:
                self.trainer.fit(model, **kwargs, weights_only=True)
            except Interrupted:
                self._say(
                    f"Saved {self.folder / LAST}. Continue with\n"
                    f"  lightning fit --name {self.request.name} --ckpt_path last"
                )
                raise
        self._say(format_metrics(self.trainer))
        for best in self.trainer.checkpoint_callbacks:
            if isinstance(best, BestAndLast) and best.best_model_path:
                self._say(
                    f"best {best.monitor} {best.best_model_score:.4g}: {best.best_model_path}"
                )
        self._say(f"logs: {self.folder}")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs if subcommand == "fit" else {**kwargs, "weights_only": True}

    @staticmethod
    @rank_zero_only
    def _say(text: str) -> None:
        print(text)


class _Builder(TrainingCLI):
    """Parses as `fit` does and builds task and data, without trainer, seed and run folder."""

    def _set_seed(self) -> None:
        """Leave the random state alone."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build none."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def build(
    arguments: list[str], device: str = "meta"
) -> tuple[LightningModule, LightningDataModule]:
    """Build the task and the data of a `fit` command line; nothing is trained or written.

    Args:
        arguments: What a person would type after `lightning`: "fit" and its options.
        device: Where the task's weights are made; "meta" makes none and takes no time.

    Raises:
        InputError: For what `lightning fit` would refuse as well.
    """
    from lightning_overlock import data, tasks  # noqa: F401 - known by name once imported

    with torch.device(device):
        cli = _Builder(read_request(arguments[0], arguments[1:]))
    return cli.model, cli.datamodule


def _first(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
