"""What a command line may leave out: the place of a shipped configuration, and the configuration of a checkpoint's own run.

And what it must not: mistakes that can be seen in it before anything is built.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml

from support.errors import ConfigError
from support.files import INSTALLED, shipped

STAGES = ("fit", "validate", "test", "predict")
COMMANDS = (*STAGES, "plan")
EXAMPLE = "python main.py fit --config configs/grpo.yaml"


def completed(args: list[str]) -> list[str]:
    """The arguments with shipped configurations found, and with the resolved configuration of the checkpoint's run where none is given.

    Raises:
        ConfigError: for no command, no configuration, one that is not there or is no YAML; for a checkpoint without a configuration, on the command line
            or in its run.
    """
    args = list(args)
    helps = any(argument.startswith(("--help", "-h")) or ".help" in argument for argument in args)
    if not helps and (not args or args[0] not in COMMANDS):
        _refuse_command(args[0] if args else "")
    for place, (before, argument) in enumerate(zip(["", *args], args, strict=False)):
        option, equals, value = argument.partition("=")
        if equals and option in ("--config", "-c"):
            args[place] = f"{option}={shipped(value)}"
        elif before in ("--config", "-c"):
            args[place] = str(shipped(argument))
    checkpoint = _value(args, "--ckpt_path")
    for path in _configs(args):
        _check_config(path)
    alone = not helps and not any(
        argument.partition("=")[0] in ("--config", "-c", "--model", "--model.class_path") for argument in args
    )
    if alone and checkpoint is not None and args[0] in STAGES:
        config = _saved_config(checkpoint, Path(_value(args, "--trainer.default_root_dir") or "runs"), args[0])
        print(f"Configuration of the checkpoint's run: {config}")
        args[1:1] = ["--config", str(config)]
    elif alone:
        raise ConfigError(
            f"nothing says what to {args[0]}: name a configuration, e.g. --config configs/{', configs/'.join(_methods())}."
        )
    return args


def _refuse_command(given: str) -> None:
    near = difflib.get_close_matches(given, COMMANDS, n=1)
    meant = {"train": "fit", "eval": "validate", "evaluate": "validate", "generate": "predict"}.get(given) or (
        near[0] if near else ""
    )
    hint = f" Did you mean {meant!r}?" if meant else f" Such as: {EXAMPLE}"
    what = f"{given!r} is none" if given else "there is none"
    raise ConfigError(f"the first word after main.py is a command, one of {', '.join(COMMANDS)}; {what}.{hint}")


def _methods() -> list[str]:
    return sorted(path.name for path in (INSTALLED / "configs").glob("*.yaml"))


def _configs(args: list[str]) -> list[str]:
    """The values of --config, in their order."""
    found = []
    for argument, following in zip(args, [*args, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            found.append(value if equals else following)
    return found


class _Unique(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def _check_config(name: str) -> None:
    path = Path(name).expanduser()
    if not path.is_file():
        meant = None
        for pattern in ("*.yaml", "**/*.yaml"):  # overlays come second
            there = {
                found.stem: found
                for folder in (INSTALLED / "configs", path.parent)
                for found in sorted(folder.glob(pattern))
            }
            if meant is None and (near := difflib.get_close_matches(path.stem, list(there), n=1, cutoff=0.7)):
                meant = there[near[0]]
        if meant is not None and meant.is_relative_to(INSTALLED):
            meant = meant.relative_to(INSTALLED)
        hint = f"did you mean {meant}?" if meant else "check the path after --config."
        raise ConfigError(f"the file {path.absolute()} does not exist; {hint}")
    try:
        yaml.load(path.read_text(encoding="utf-8"), Loader=_Unique)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}, column {place.column + 1}" if place else ""
        why = getattr(error, "problem", None) or str(error)
        hint = " Indent by spaces; YAML allows no tabs." if "\\t" in why else ""
        raise ConfigError(f"the configuration {name} is no good YAML{where}: {why}.{hint}") from error


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
            raise ConfigError(
                f"--ckpt_path last: there is no run under {root} and no --config, so nothing to {stage}; train first."
            )
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
