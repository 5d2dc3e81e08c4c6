"""The command line itself: Lightning's, with this project's defaults, earlier checks, and `plan` and `chat`."""

import errno
import os
import sys
import traceback
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils import logging as transformers_logging

import datamodules  # noqa: F401  (its classes by their short names: --data ArithmeticPrompts)
import rewards  # noqa: F401
from cli import chat
from cli.default_callbacks import with_defaults
from cli.parser import make_parser
from cli.plan_report import describe
from cli.resume import find_checkpoint, refuse_unreadable
from support.errors import ConfigError
from tracking.run_names import method_and_paper, run_name
from tracking.runs import continue_from

TRACKING_URI = "sqlite:///mlflow.db"
#: Trainer arguments that differ from Lightning's defaults. One batch is one rollout, so every rollout is logged;
#: validation counts rollouts over the whole run, not within an epoch.
TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "log_every_n_steps": 1,
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "enable_checkpointing": True,
    "use_distributed_sampler": False,  # the data modules divide their rows among the processes themselves
}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
if not sys.stderr.isatty():  # progress bars that last a second leave fragments in a log
    transformers_logging.disable_progress_bar()


class Trainer(L.Trainer):
    """Lightning's Trainer, which can also print the plan of a run, and talk to a policy."""

    def plan(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Print batch sizes, memory by phase, and settings that do nothing, without loading the model's weights.

        Args:
            ckpt_path: ignored; accepted because a run's saved configuration has it. weights_only: ignored, likewise.
        """
        print(describe(self, model, datamodule))

    def chat(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        prompt: str | None = None,
        against: Literal["start"] | None = None,
        show_thinking: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> None:
        """Talk to a policy in the terminal, or answer one prompt.

        Args:
            model: the module whose policy answers.
            datamodule: ignored; accepted because a run's saved configuration has it.
            ckpt_path: its checkpoint, `last` for the newest run's, or an exported folder; the untrained policy if None.
            weights_only: ignored; a checkpoint is read as plain data.
            prompt: one prompt, whose answer is printed alone, in place of a conversation.
            against: `start` lets the policy before training answer too.
            show_thinking: print the thinking before the answer.
            max_new_tokens: longest answer in tokens, the run's validation's if None.
            temperature: of the samples, the run's validation's if None; 0 is greedy.
        """
        chat.load(model, ckpt_path, self.strategy)
        present = chat.speakers(model, against, {"max_new_tokens": max_new_tokens, "temperature": temperature})
        if prompt is not None:
            chat.once(present, prompt, show_thinking)
        else:
            chat.converse(present, show_thinking)


class CLI(LightningCLI):
    """Lightning's command line with the commands fit, validate, test, predict, plan and chat."""

    method: str | None = None  # the run's method by name, and its papers
    paper: str | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, `plan` and `chat`, each with the arguments that the CLI passes itself."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("plan", "chat")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser that explains mistakes."""
        return make_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set the defaults of the trainer."""
        logger = {
            "class_path": "tracking.PatientMLFlowLogger",
            "init_args": {
                "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI", TRACKING_URI),
                "experiment_name": "lightning-posttrain",
            },
        }
        parser.set_defaults(
            {f"trainer.{name}": value for name, value in (TRAINER_DEFAULTS | {"logger": logger}).items()}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, and keep its words."""
        self.words = [str(word) for word in args] if isinstance(args, list) else sys.argv[1:]
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning lets a checkpoint's hyper-parameters override the command line silently."""

    def before_instantiate_classes(self) -> None:
        """Check the configuration, find the checkpoint, and name the run."""
        config = self.config[self.subcommand]
        if self.subcommand == "plan":
            _detach_from_machine(config)
            return
        if self.subcommand == "chat":
            for name, value in {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False}.items():
                config.trainer[name] = value
        # A checkpoint is data, from wherever it came. A configuration may come with it, so it cannot say otherwise.
        if config.get("weights_only") is None or not self._unsafe_on_command_line():
            config.weights_only = True
        # What chat prints on standard output is the answer.
        with redirect_stdout(sys.stderr) if self.subcommand == "chat" else nullcontext():
            find_checkpoint(config, str(self.subcommand))
        refuse_unreadable(config)
        self.method, self.paper = method_and_paper(config.get("config") or [], config.model.class_path)
        self._name_run(config)

    def _unsafe_on_command_line(self) -> bool:
        return any(word.partition("=")[0] == "--weights_only" for word in self.words)

    def _name_run(self, config: Namespace) -> None:
        """Name the MLflow run by method, model, data and seed, unless the configuration names it."""
        logger = config.trainer.logger
        is_mlflow = isinstance(logger, Namespace) and logger.get("class_path", "").endswith("MLFlowLogger")
        if not is_mlflow:
            return
        if given_name := logger.init_args.get("run_name"):
            saved = [path for path in config.get("config") or [] if Path(str(path)).name == "config_fit.yaml"]
            if saved and self.subcommand != "fit" and not given_name.startswith(f"{self.subcommand} "):
                # The name is that of the training run whose configuration this is.
                logger.init_args.run_name = f"{self.subcommand} {given_name}"
            return
        # MLflow draws its names from the generator that seeding has just fixed: all runs of a seed would have one name.
        data = config.get("data")
        model = config.model.init_args.get("policy.model")
        name = run_name(self.method or "", model, data and data.class_path, config.seed_everything)
        logger.init_args.run_name = name if self.subcommand == "fit" else f"{self.subcommand} {name}"

    def instantiate_classes(self) -> None:
        """Build data module, module and trainer.

        Raises:
            ConfigError: if a constructor refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
            if (explained := config_error_behind(error)) is not None:
                raise explained from None
            raise self._construction_error(error) from error

    def _construction_error(self, error: Exception) -> ConfigError:
        """The error of a constructor, as an error of the configuration."""
        if "backend found" in str(error):
            accelerator = self.config[self.subcommand].trainer.accelerator
            return ConfigError(
                f"trainer.accelerator is {accelerator!r}, but PyTorch finds no such device on this machine. Leave it "
                "out to use the best device there is, or set --trainer.accelerator cpu."
            )
        place = traceback.extract_tb(error.__traceback__)[-1]
        return ConfigError(
            f"the configuration was refused by {place.filename}, line {place.lineno}: {type(error).__name__}: {error}. "
            "Correct the setting that this names; list every setting by adding --print_config to the command."
        )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with the default callbacks."""
        trainer = self._get(self.config_init, "trainer")
        trainer["callbacks"] = with_defaults(trainer, self.method, self.paper)
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand != "chat":
            continue_from(trainer, self.config_init[self.subcommand].get("ckpt_path"))
        return trainer


def _detach_from_machine(config: Namespace) -> None:
    """Let a plan, perhaps for another machine, ask for no accelerator and record nothing."""
    devices = config.trainer.devices if str(config.trainer.devices).isdecimal() else "auto"
    for name, value in {
        "accelerator": "cpu",
        "devices": devices,
        "strategy": "auto",
        "precision": None,
        "logger": False,
    }.items():
        config.trainer[name] = value
    config.ckpt_path = None


#: functions in which Lightning gives states of a checkpoint back, and the errors of states of another form
_RESTORES = {"_restore_modules_and_callbacks", "restore_training_state"}
_WRONG_DATA = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def _is_part(value: Any) -> bool:
    """Whether an object is a part of the training whose state a checkpoint holds."""
    return isinstance(value, (L.Callback, L.LightningModule, L.LightningDataModule))


def config_error_behind(error: BaseException) -> ConfigError | None:
    """The ConfigError that led to another error: the parser tries every type of a value, and wraps what each raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    return cause


def lightning_refusal(error: BaseException) -> ConfigError | None:
    """Lightning's own refusal of a setting, such as a callback that watches an unknown metric, as one paragraph."""
    if isinstance(error, MisconfigurationException) or "conditioned on metric" in str(error):
        return ConfigError(f"Lightning refuses a setting of trainer: {' '.join(str(error).split())}")
    return None


def foreign_state(error: BaseException) -> ConfigError | None:
    """One paragraph about a checkpoint whose states are not those that this version writes; None for other errors."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    restoring = (number for number, frame in enumerate(frames) if frame.f_code.co_name in _RESTORES)
    if not isinstance(error, _WRONG_DATA) or (first := next(restoring, None)) is None:
        return None
    owners = [frame.f_locals["self"] for frame in frames[first:] if "self" in frame.f_locals]
    part = next((type(one).__name__ for one in owners if _is_part(one)), "the training")
    return ConfigError(
        f"the checkpoint holds a state of {part} that this version does not write ({type(error).__name__}: {error}), "
        "so it comes from another version or was changed. Continue from another checkpoint (--ckpt_path), or start "
        "anew from the weights of an exported policy."
    )


def disk_error(error: BaseException) -> ConfigError | None:
    """One paragraph about a full disk, or a file that must not be written; None for other errors."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in DISK_ERRORS:
        return None
    return ConfigError(
        f"{error.filename} cannot be written: {error.strerror}. Free disk space, make the place writable, or choose "
        "another one with --trainer.default_root_dir; then continue with --ckpt_path last."
    )
