"""What a command line may leave out: the place of a shipped configuration, and the configuration of a checkpoint's own run."""

from pathlib import Path

from support.errors import ConfigError
from support.files import shipped

STAGES = ("fit", "validate", "test", "predict")


def completed(args: list[str]) -> list[str]:
    """The arguments with shipped configurations found, and with the resolved configuration of the checkpoint's run where none is given.

    Raises:
        ConfigError: for a checkpoint without a configuration, on the command line or in its run.
    """
    args = list(args)
    for place, (before, argument) in enumerate(zip(["", *args], args, strict=False)):
        option, equals, value = argument.partition("=")
        if equals and option in ("--config", "-c"):
            args[place] = f"{option}={shipped(value)}"
        elif before in ("--config", "-c"):
            args[place] = str(shipped(argument))
    checkpoint = _value(args, "--ckpt_path")
    alone = not any(argument.partition("=")[0] in ("--config", "-c", "--model", "--model.class_path", "--help", "-h") for argument in args)
    if alone and checkpoint is not None and args[0] in STAGES:
        config = _saved_config(checkpoint, Path(_value(args, "--trainer.default_root_dir") or "runs"), args[0])
        print(f"Configuration of the checkpoint's run: {config}")
        args[1:1] = ["--config", str(config)]
    return args


def _value(args: list[str], option: str) -> str | None:
    """What the last occurrence of an option says."""
    found = None
    for argument, following in zip(args, [*args, None][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            found = value if equals else following
    return found


def _saved_config(checkpoint: str, root: Path, stage: str) -> Path:
    if checkpoint == "last":
        runs = sorted(root.glob("*/config_fit.yaml"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ConfigError(f"--ckpt_path last: there is no run under {root} and no --config, so nothing to {stage}; train first.")
        return runs[-1]
    path = Path(checkpoint)
    if not path.exists():
        raise ConfigError(f"--ckpt_path: the checkpoint {checkpoint} does not exist (looked at {path.absolute()}).")
    config = path.absolute().parent.parent / "config_fit.yaml"
    if not config.is_file():
        raise ConfigError(
            f"--ckpt_path: {checkpoint} comes without the configuration that it was trained with (a run keeps it as {config}); name it with --config."
        )
    return config
