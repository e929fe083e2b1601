"""`fit`, `validate`, `test` and `predict`: a request becomes a task, its data and a trainer."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lightning_overlock import configs

# Their classes are known by name once imported.
from lightning_overlock import data as data
from lightning_overlock import tasks as tasks
from lightning_overlock.callbacks.ema import EMA
from lightning_overlock.callbacks.epoch_lines import EpochLines, format_metrics
from lightning_overlock.callbacks.prediction_images import PredictionImages
from lightning_overlock.callbacks.terminated import StopPrediction
from lightning_overlock.callbacks.trackers import (
    TrackedRun,
    Tracking,
    close,
    loggers_of,
    tracker_names,
)
from lightning_overlock.cli.help import requested_help
from lightning_overlock.cli.messages import FirstBatch, ParameterCount, held_messages, keep_quiet
from lightning_overlock.cli.parser import Parser, parse
from lightning_overlock.cli.request import Request
from lightning_overlock.cli.unused import (
    options_of_class,
    refuse_unused,
    refuse_unused_data_options,
)
from lightning_overlock.errors import ConfigError, InputError, Interrupted
from lightning_overlock.files import require_writable
from lightning_overlock.runs.config import hash_of, refuse_inexact
from lightning_overlock.runs.layout import LAST, run_folder, run_of
from lightning_overlock.runs.lock import claim_run_folder
from lightning_overlock.runs.recording import MetricsFile, RunConfig
from lightning_overlock.runs.resume import ExactResume
from lightning_overlock.runs.saving import BestAndLast
from lightning_overlock.yaml_files import dump_yaml

# By command and by whether the class names come from the data.
_PARSERS: dict[tuple[str, bool], tuple[Any, Any, Any]] = {}

# Exceptions that mean a mistake in what was typed, configured or read.
WRONG_INPUT = (InputError, ConfigError, MisconfigurationException)


def run(request: Request) -> None:
    """Do what was typed.

    Raises:
        InputError: There is a known mistake, those that Lightning finds included.
        Interrupted: A signal stopped the training.
    """
    if (text := requested_help(request)) is not None:
        print(text)
        return
    request.words = ["--help" if word == "--help-all" else word for word in request.words]
    keep_quiet()
    try:
        with held_messages(WRONG_INPUT) as first_batch:
            TrainingCLI(request, first_batch)
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except Exception as error:
        # wandb is imported by its logger alone. It says so before anything is trained.
        if (type(error).__module__, type(error).__name__) == ("wandb.errors.errors", "UsageError"):
            raise InputError(
                f"WandbLogger: {str(error).splitlines()[0]}\n"
                "`--logger wandb` in its place writes into the run folder and sends nothing."
            ) from error
        raise


class TrainingCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`: LightningCLI with run folders and own checkpoints.

    Args:
        request: What was typed.
        first_batch: Lets Lightning's messages out when the first batch has gone through.
    """

    def __init__(self, request: Request, first_batch: FirstBatch | None = None) -> None:
        self.request = request
        self.first_batch = first_batch
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
        # Metrics are printed as `fit` prints them; predictions go to files.
        ours = {"weights_only", "verbose", "return_predictions"}
        return {self.request.command: every[self.request.command] | ours}

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Build the parser, or take that of an earlier command: a sweep builds many rows."""
        linked = self._class_names_from_data()
        key = (self.request.command, linked)
        if key not in _PARSERS:
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            _PARSERS[key] = (
                self.parser,
                self._subcommand_parsers,
                self._subcommand_method_arguments,
            )
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = _PARSERS[key]

    def _class_names_from_data(self) -> bool:
        """Tell whether the data say the classes; a checkpoint says its own."""
        return "config" not in (self.request.checkpoint or {})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what the package adds to Lightning's options."""
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_argument("--name", type=str, help="Name of the run.")
        parser.add_argument(
            "--logger",
            type=str | list[str],
            default="tensorboard",
            help="Where the training's figures go: tensorboard, csv, wandb, mlflow, several with "
            "commas, or none.",
        )
        parser.add_argument(
            "--group", type=str, default="", help="What the trackers group the run under."
        )
        if self.request.command == "fit":
            parser.add_argument(
                "--allow_changes",
                type=bool,
                default=False,
                help="Continue a run with another batch size, seed or the like: not exactly.",
            )
        if self._class_names_from_data():
            parser.link_arguments(
                "data.class_names", "model.init_args.class_names", apply_on="instantiate"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ARG002
        """Parse what was typed, and hold it against the checkpoint."""
        request, command = self.request, self.request.command
        # Ahead of what was typed: jsonargparse takes all that follows --model.help for its own.
        words = [f"--name={request.name}", *_loggers_joined(request.words)]
        if request.ckpt_path is not None:
            words.insert(0, f"--ckpt_path={request.ckpt_path}")
        options = self._subcommand_parsers[command]
        refuse_unused(request)
        self.config = parse(parser, command, options, request.configs, words)
        refuse_unused_data_options(request, self.config[command].data.class_path)
        self._refuse_untrained()
        tracker_names(self.config[command].logger)
        if request.checkpoint is not None and "config" in request.checkpoint:
            own = parse(parser, command, options, request.configs[:1], [])
            before, now = self._plain(own), self._plain(self.config)
            self._refuse_contradictions(before, now)
            if command == "fit" and not self.config[command].allow_changes:
                assert request.ckpt_path is not None
                refuse_inexact(before, now, request.ckpt_path)

    def _refuse_untrained(self) -> None:
        """Refuse to fine-tune or to evaluate a network that has no weights but random ones."""
        command, found = self.request.command, self.config[self.request.command]
        arguments = found.model.get("init_args") or {}
        given = arguments.get("init_from")
        if given is not None and not Path(given).is_file():
            raise InputError(f"--model.init_from {given}: this file does not exist.")
        if self.request.ckpt_path is not None or given or arguments.get("pretrained"):
            return
        recipes = {source.removeprefix("--config ") for source, _ in self.request.configs}
        if command != "fit":
            raise InputError(
                f"{command}: found no trained weights.\nExpected --ckpt_path FILE, or "
                "--model.init_from FILE or --model.pretrained true with a configuration."
            )
        if recipes & configs.FROM_WEIGHTS:
            raise InputError(
                "--config finetune: found no trained weights to start from.\n"
                "Expected --model.init_from FILE, or --model.pretrained true for timm's."
            )

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint's hyperparameters alone: its configuration was read already."""

    def _plain(self, config: Namespace) -> dict[str, Any]:
        """Return the configuration as it is stored: without what belongs to one command only."""
        command = self.request.command
        text = self._subcommand_parsers[command].dump(config[command], skip_none=False)
        plain: dict[str, Any] = yaml.safe_load(text)
        for key in [*self._subcommand_method_arguments[command], "allow_changes"]:
            plain.pop(key, None)
        return plain

    def _refuse_contradictions(self, own: dict[str, Any], typed: dict[str, Any]) -> None:
        path = self.request.ckpt_path
        old, new = own["model"], typed["model"]
        differing = {"model": (old["class_path"], new["class_path"])}
        free = options_of_class(old["class_path"], "overridable_options")
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
        trainer = self.config[self.request.command].trainer
        if not trainer.fast_dev_run:
            require_writable(self.folder, "Expected a place to write to; OVERLOCK_RUNS moves runs.")
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            # jsonargparse wraps whatever a constructor raises, more than once within the trainer's.
            cause: BaseException = error
            while isinstance(cause, ValueError) and cause.__cause__ is not None:
                cause = cause.__cause__
            missing = isinstance(cause, ModuleNotFoundError) or "Requirement " in str(cause)
            if missing:  # a logger, say, whose library is not installed
                raise InputError(str(cause).splitlines()[-1].strip()) from error
            if cause is error:
                raise
            raise cause from None
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
        if given.barebones:
            raise InputError(
                "--trainer.barebones: it logs and saves nothing, and a run does both.\n"
                "Expected no such option; `lightning bench` measures."
            )
        if given.sync_batchnorm and (given.accelerator == "cpu" or not torch.cuda.is_available()):
            kwargs["sync_batchnorm"] = False
            self._print_rank_zero(
                "sync_batchnorm is off: torch synchronises batch norms on GPUs only"
            )
        kwargs["default_root_dir"] = str(self.folder)
        kwargs |= self._logger(given)
        if not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False  # EpochLines
        kwargs["enable_model_summary"] = False  # among the callbacks
        if given.enable_checkpointing is False:
            # There is no BestAndLast then; Lightning takes MetricsFile for a checkpoint callback.
            kwargs["enable_checkpointing"] = True
        self.trainer_defaults["callbacks"] = self._callbacks(given)
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError) as error:  # its arguments are what was typed
            raise InputError(str(error)) from error

    def _logger(self, trainer: Namespace) -> dict[str, Any]:
        """Return the trainer's argument `logger`, unless its configuration has one."""
        config = self.config[self.request.command]
        names = tracker_names(config.logger)
        if trainer.logger not in (None, True):
            if names != ["tensorboard"]:
                raise InputError(
                    f"--logger {','.join(names) or 'none'}: --trainer.logger is given as well.\n"
                    "Expected one of the two."
                )
            return {}
        if self.request.command != "fit":
            return {"logger": False}
        return {"logger": loggers_of(names, self._tracked()) or False}

    def _tracked(self) -> TrackedRun:
        """Return what trackers are told of the run."""
        stored = self._stored_config()
        tags = {"seed": str(stored["seed_everything"]), "hash": hash_of(stored)}
        return TrackedRun(
            self.request.name, self.folder, stored["group"], tags, self._is_continued()
        )

    def _is_continued(self) -> bool:
        """Tell whether training goes on with what is in the run folder."""
        path = self.request.ckpt_path
        requeued = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        return (path is not None and run_of(path) == self.request.name) or requeued

    def _callbacks(self, trainer: Namespace) -> list[Callback]:
        """Return the callbacks that every run has, whatever callbacks its configuration lists."""
        text = dump_yaml(self._stored_config())
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
            if self.request.command == "predict":
                found.append(StopPrediction())
            if self.request.command == "fit":
                found.append(ExactResume(self.config.fit.allow_changes))
                if trainer.logger in (None, True):  # those of --logger
                    found.append(Tracking(self._tracked(), self._stored_config()))
            if trainer.enable_checkpointing is not False:
                monitor = getattr(self.model, "monitor", "val/loss")
                mode = getattr(self.model, "monitor_mode", "min")
                found.append(BestAndLast(self.folder, monitor, mode))
        interactive = sys.stdout.isatty()
        if trainer.enable_progress_bar is not False:
            found.append(RichProgressBar() if interactive else EpochLines())
        if trainer.enable_model_summary is not False:
            found.append(ParameterCount())
        return found + ([] if self.first_batch is None else [self.first_batch])

    def _stored_config(self) -> dict[str, Any]:
        plain = self._plain(self.config)
        plain["model"].get("init_args", {}).pop("class_names", None)  # the data say them
        return plain

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train, holding the run folder."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.fit(model, **kwargs, weights_only=True)
            return
        say = self._print_rank_zero if self.first_batch is None else self.first_batch.say
        with claim_run_folder(self.folder, self._is_continued(), say):
            failed = True
            try:
                self.trainer.fit(model, **kwargs, weights_only=True)
                failed = False
            except Interrupted:
                self._print_rank_zero(
                    f"Saved {self.folder / LAST}. Continue with\n"
                    f"  lightning fit --name {shlex.quote(self.request.name)} --ckpt_path last"
                )
                raise
            finally:
                for logger in self.trainer.loggers:
                    close(logger, failed)
        self._print_rank_zero(format_metrics(self.trainer))
        for best in self.trainer.checkpoint_callbacks:
            if isinstance(best, BestAndLast) and best.best_model_path:
                self._print_rank_zero(
                    f"best {best.monitor} {best.best_model_score:.4g}: {best.best_model_path}"
                )
        self._print_rank_zero(f"logs: {self.folder}")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in {"validate", "test"}:
            kwargs["verbose"] = False  # after_validate, after_test
        return kwargs if subcommand == "fit" else {**kwargs, "weights_only": True}

    def after_validate(self) -> None:
        """Print the metrics as `fit` does."""
        self._print_rank_zero(format_metrics(self.trainer))

    after_test = after_validate

    @staticmethod
    @rank_zero_only
    def _print_rank_zero(text: str) -> None:
        print(text)


def _loggers_joined(words: list[str]) -> list[str]:
    """Return the arguments with several --logger NAME as one; words are --name=value here."""
    given = [word.partition("=")[2] for word in words if word.startswith("--logger=")]
    if len(given) < 2:
        return words
    rest = [word for word in words if not word.startswith("--logger=")]
    return [f"--logger={','.join(given)}", *rest]


def _first(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
