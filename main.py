"""The only entry point.

    python main.py fit --config configs/grpo.yaml [--config configs/models/smollm2.yaml] [--model.batch.group_size 16]
    python main.py fit --config configs/grpo.yaml --ckpt_path last      # resume the method's newest run
    python main.py validate | test | predict --config ... [--ckpt_path ...]
    python main.py predict --ckpt_path runs/RUN/checkpoints/FILE.ckpt   # with the configuration of the checkpoint's run
    python main.py plan --config ...                # batch sizes, memory, settings that do nothing; loads no weights

Later --config files override earlier ones key by key, lists are replaced; the command line overrides both.
Exit status: 2 after a mistake in the configuration; 143 after SIGTERM and 130 after Ctrl+C, when the state is saved.
"""

import signal
import sys
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

import cli.quiet  # noqa: F401  (before the packages whose messages it silences)
from cli.application import CLI, Trainer, config_error_behind, disk_error, foreign_state, lightning_refusal
from cli.command_line import completed
from cli.saved_config import SaveConfig
from lightning_modules.core.posttrain_module import PosttrainModule
from support.errors import ConfigError


def main(args: list[str] | None = None) -> CLI:
    """Run a command line.

    Args:
        args: its words without the program's name; those of this process if None.

    Returns:
        The CLI with its trainer, module and data module.

    Raises:
        ConfigError: for a mistake that the user can correct.
    """
    try:
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
            parser_kwargs={"description": "Train, evaluate and sample language models by reinforcement learning."},
            args=completed(sys.argv[1:] if args is None else args),
        )
    except Exception as error:
        explained = config_error_behind(error) or lightning_refusal(error) or disk_error(error)
        explained = explained or foreign_state(error)
        if explained is None or explained is error:
            raise
        raise explained from None


def run() -> None:
    """Run this process's command line and exit: `python main.py`, or `lightning-posttrain` where it is installed."""
    sys.path.insert(0, str(Path.cwd()))  # class paths of the user's own files
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException as stop:
        sys.exit(stop.code or 128 + signal.SIGTERM)
    except KeyboardInterrupt:  # where Lightning does not catch it: at start-up, and at the end of an interrupted run
        print("stopped at once; checkpoints written before are kept", file=sys.stderr)
        sys.exit(1)  # Lightning's own status


if __name__ == "__main__":
    run()
