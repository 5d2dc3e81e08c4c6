"""The only entry point.

    python main.py fit --config configs/grpo.yaml [--config configs/models/smollm2.yaml] [--model.batch.group_size 16] [--seed_everything 1]
    python main.py fit --config configs/grpo.yaml --ckpt_path last      # go on where the method's newest run was killed
    python main.py validate | test | predict --config ... [--ckpt_path ...]
    python main.py predict --ckpt_path runs/RUN/checkpoints/FILE.ckpt   # without --config: with that of the checkpoint's run
    python main.py plan --config ...                                    # batch arithmetic, memory, settings that do nothing; loads no weights

Ends with status 2 after a mistake that the user can mend, and with 143 after SIGTERM, 130 after Ctrl+C, when the state has been saved.

Later --config files override earlier ones key by key, lists are replaced; the command line overrides both.
"""

import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
)  # what cannot be sent waits in tracking/outbox.py, not in the training
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*`skip_none` is deprecated.*")
warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the frozen reference
warnings.filterwarnings(
    "ignore", message=".*special characters in metric name.*"
)  # MLflow writes val/pass@1 as val/pass1
warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks for it by its old name
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "litlogger" not in record.getMessage()
)
logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
    lambda record: "was not set" not in record.getMessage()
)
for chatty in (
    "mlflow.store.db.utils",
    "mlflow.system_metrics.system_metrics_monitor",
    "alembic",
):  # tables that are made, monitors that start and stop
    logging.getLogger(chatty).setLevel(logging.WARNING)

import lightning as L  # noqa: E402
import yaml  # noqa: E402
from jsonargparse import ActionConfigFile, Namespace  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

import callbacks  # noqa: E402
import datamodules  # noqa: E402, F401  (short class names on the command line)
import lightning_modules  # noqa: E402, F401
import rewards  # noqa: E402, F401
from cli.command_line import completed  # noqa: E402
from cli.run_plan import describe  # noqa: E402
from cli.suggestions import explain  # noqa: E402
from lightning_modules.core.posttrain_module import PosttrainModule  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text, damage, unreadable  # noqa: E402
from tracking.run_names import method_and_paper, run_name  # noqa: E402
from tracking.runs import mlflow_runs, run_folder  # noqa: E402

TRACKING_URI = "sqlite:///mlflow.db"
if not sys.stderr.isatty():  # bars of a second would be fragments in a log
    transformers_logging.disable_progress_bar()


class Parser(LightningArgumentParser):
    """Says in one paragraph what is wrong and what was probably meant, where that can be told; else the parser's own message."""

    def error(self, message, ex=None):
        if not self.exit_on_error:  # the parser of a nested class: its message comes back inside the outer one's
            super().error(message, ex)
        known = [action.dest for action in self._actions]
        for action in self._actions:
            if hasattr(action, "_name_parser_map"):
                known += [a.dest for p in action._name_parser_map.values() for a in p._actions]
        paragraph = explain(str(message), known)
        if paragraph:
            raise ConfigError(paragraph)
        super().error(message, ex)


class SaveConfig(SaveConfigCallback):
    """Keeps the resolved configuration as a file of the run, an artifact and parameters. Lightning's own needs a logger with a folder."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        name = f"config_{getattr(stage, 'value', stage)}.yaml"
        path = run_folder(trainer) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(
            path, self.parser.dump(self.config, skip_unset=False)
        )  # a run that is killed here must still be found by --ckpt_path last
        values = flattened(self.config.as_dict() if isinstance(self.config, Namespace) else dict(self.config))
        if "config" in values:  # else a list of objects, which the compare page shows first
            values["config"] = ", ".join(str(path) for path in values["config"] or [])
        for client, run in mlflow_runs(trainer):
            client.log_artifact(run, str(path), "config")
            # The logger would cut values at 250 characters; MLflow holds 6000.
            known = client.get_run(run).data.params
            for key, value in values.items():
                if key not in known:
                    client.log_param(run, key, str(value)[:6000])


def imported(path: str) -> Any:
    """What a dotted path names. Raises ConfigError if it leads nowhere."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the class path {path!r} leads nowhere: {error}.") from error


def last_checkpoint(root: Path, method: str) -> Path | None:
    """The newest whole checkpoint of this method's newest run; None, with a message, where there is none to go on from."""
    runs = []
    for config in root.glob("*/config_fit.yaml"):
        found = yaml.safe_load(config.read_text()) or {}  # one that another program has cut off
        if found.get("model", {}).get("class_path") == method:
            runs.append(config)
    if not runs:
        print(f"--ckpt_path last: {method} has no run under {root} yet, so this one starts afresh.")
        return None
    newest = max(runs, key=lambda path: path.stat().st_mtime).parent
    for path in sorted(
        newest.glob("checkpoints/rollout_*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True
    ):
        wrong = damage(path)
        if wrong is None:
            print(f"Last checkpoint of {method}: {path}")
            return path
        print(f"--ckpt_path last: {path} is damaged ({wrong}); the one before it is taken.")
    print(f"--ckpt_path last: the newest run of {method}, {newest}, has left no whole checkpoint, so it starts afresh.")
    return None


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names to leaves; a list's items are numbered."""
    if isinstance(config, dict) and config:
        items = config.items()
    elif isinstance(config, list) and any(isinstance(item, dict) for item in config):
        items = enumerate(config)  # type: ignore[assignment]
    else:
        return {prefix: config}
    return {
        name: leaf
        for key, value in items
        for name, leaf in flattened(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def mistake(error: BaseException) -> ConfigError | None:
    """The error of ours behind another: the parser tries every type that a value may have and wraps what each of them raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__ or cause.__context__
    return cause


class Trainer(L.Trainer):
    """Lightning's, which can also say what it would do."""

    def plan(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Print what a run would do and need, without loading the model.

        Args:
            ckpt_path: not read; a run's saved configuration has it. weights_only: the same.
        """
        print(describe(self, model, datamodule))


class CLI(LightningCLI):
    method: str | None = None  # what the run is called by, and its papers
    paper: str | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return LightningCLI.subcommands() | {"plan": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.allow_abbrev = False  # --trainer.max_epoch is a mistake, not a short form
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="configuration file; several are merged in their order"
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        logger = {
            "class_path": "tracking.PatientMLFlowLogger",
            "init_args": {
                "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI", TRACKING_URI),
                "experiment_name": "lightning-posttrain",
            },
        }
        # One batch is one rollout, so every rollout is logged; validation counts rollouts over the whole run, not within an epoch.
        defaults = {
            "logger": logger,
            "default_root_dir": "runs",
            "log_every_n_steps": 1,
            "max_epochs": -1,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_checkpointing": True,
            "use_distributed_sampler": False,  # the data modules share their rows among the processes themselves
        }
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})

    def _parse_ckpt_path(self) -> None:
        """Lightning's would let the checkpoint's hyper-parameters override the configuration and the command line silently."""

    def _find_checkpoint(self, config: Namespace) -> None:
        """Resolve `last`, and refuse a checkpoint that is not whole before anything is loaded."""
        if config.get("ckpt_path") == "last":
            found = last_checkpoint(Path(config.trainer.default_root_dir), config.model.class_path)
            if found is None and self.subcommand != "fit":
                raise ConfigError(
                    f"--ckpt_path last: there is nothing to {self.subcommand}; train first, or leave --ckpt_path out."
                )
            config.ckpt_path = None if found is None else str(found)
            logger = config.trainer.logger
            if (
                found is not None
                and self.subcommand == "fit"
                and isinstance(logger, Namespace)
                and "run_id" in logger.init_args
            ):
                # The same run goes on: one folder, one set of curves. Without a logger the folder is the same anyway.
                logger.init_args.run_id = found.parents[1].name
        elif config.get("ckpt_path") and (wrong := damage(Path(config.ckpt_path))) is not None:
            others = sorted(
                str(path) for path in Path(config.ckpt_path).parent.glob("*.ckpt") if path != Path(config.ckpt_path)
            )
            raise ConfigError(
                f"--ckpt_path: the checkpoint {config.ckpt_path} cannot be used: {wrong}. Beside it are {', '.join(others) or 'no others'}."
            )

    def _read_checkpoint(self, config: Namespace) -> None:
        """Refuse a checkpoint that holds more than plain data, unless the command line says weights_only: false."""
        if (
            config.get("ckpt_path")
            and config.weights_only
            and (wrong := unreadable(Path(config.ckpt_path))) is not None
        ):
            raise ConfigError(
                f"--ckpt_path: the checkpoint {config.ckpt_path} cannot be read as plain data, and nothing in it was executed: {wrong}. Take one that this "
                "project wrote; only for a file that you trust, --weights_only false reads it as a program would."
            )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if (
            self.subcommand == "plan"
        ):  # for another machine, perhaps: no accelerator is asked for, and nothing is recorded
            devices = config.trainer.devices if str(config.trainer.devices).isdecimal() else "auto"
            config.trainer.update(
                Namespace(accelerator="cpu", devices=devices, strategy="auto", precision=None, logger=False)
            )
            config.ckpt_path = None
            return
        if config.get("weights_only") is None:
            config.weights_only = True  # a checkpoint is data, from wherever it came
        self._find_checkpoint(config)
        self._read_checkpoint(config)
        on_policy = issubclass(imported(config.model.class_path), lightning_modules.OnPolicyModule)
        self.method, self.paper = method_and_paper(config.get("config") or [], config.model.class_path)
        if on_policy and config.trainer.gradient_clip_val is not None:
            raise ConfigError(
                "trainer.gradient_clip_val does not reach on-policy modules, which step by themselves; set model.max_grad_norm."
            )
        logger = config.trainer.logger
        if (
            isinstance(logger, Namespace)
            and logger.get("class_path", "").endswith("MLFlowLogger")
            and not logger.init_args.get("run_name")
        ):
            # MLflow draws its names from the generator that seeding has just fixed: all runs of a seed would share one.
            data = config.get("data")
            name = run_name(
                self.method,
                config.model.init_args.get("policy.model"),
                data and data.class_path,
                config.seed_everything,
            )
            logger.init_args.run_name = name if self.subcommand == "fit" else f"{self.subcommand} {name}"

    def instantiate_classes(self) -> None:
        """A constructor that refuses its arguments is a mistake in the configuration; the place says whose constructor it was."""
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ArithmeticError, ImportError, OSError, TypeError, ValueError) as error:
            if (own := mistake(error)) is not None:
                raise own from None
            if "backend found" in str(error):
                asked = self.config[self.subcommand].trainer.accelerator
                raise ConfigError(
                    f"trainer.accelerator is {asked!r}, but PyTorch finds no such device on this machine; leave it out to use what there is, or say cpu."
                ) from error
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"the configuration cannot be put together: {type(error).__name__}: {error} (raised in {place.filename}, line {place.lineno})."
            ) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The default callbacks, unless the configuration brings its own of the same class."""
        given = self._get(self.config_init, "trainer").get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        defaults: list[L.Callback] = [
            callbacks.RolloutProgress(),
            callbacks.CompletionsTable(),
            callbacks.CompletionTraces(),
            callbacks.RunFacts(self.method, self.paper),
            callbacks.SystemMetrics(),
            callbacks.BaselineValidation(),
            callbacks.ThinkingPlot(),
            callbacks.WritePredictions(),
            callbacks.NonFiniteGradients(),
            callbacks.Doctor(),
            callbacks.RolloutCheckpoint(),
            callbacks.RunSummary(),
        ]
        trainer = self._get(self.config_init, "trainer")
        quiet = {
            "RolloutProgress": trainer.get("enable_progress_bar") is False,
            "RolloutCheckpoint": trainer.get("enable_checkpointing") is False,
        }
        extra = [
            c
            for c in defaults
            if not any(isinstance(g, type(c)) for g in given) and not quiet.get(type(c).__name__, False)
        ]
        trainer["callbacks"] = [*given, *extra]
        return super().instantiate_trainer(**kwargs)


def main(args: list[str] | None = None) -> CLI:
    """Run a command line. Returns the CLI with its trainer, module and data module.

    Raises:
        ConfigError: for a mistake that the user can mend, wherever it was found.
    """
    try:
        args = completed(sys.argv[1:] if args is None else args)
        return CLI(
            PosttrainModule,
            L.LightningDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            args=args,
        )
    except Exception as error:
        own = mistake(error)
        if own is None or own is error:
            raise
        raise own from None


def run() -> None:
    """`python main.py`, and `lightning-posttrain` where the distribution is installed."""
    sys.path.insert(0, str(Path.cwd()))  # class paths of the user's own files
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException as stop:
        sys.exit(stop.code or 128 + signal.SIGTERM)
    except (
        KeyboardInterrupt
    ):  # outside of what Lightning catches: start-up, and the end of a run that was interrupted already
        print("stopped at once; checkpoints that were written before stand", file=sys.stderr)
        sys.exit(1)  # as Lightning's own answer


if __name__ == "__main__":
    run()
