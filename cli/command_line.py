"""The words of a command line, before anything is parsed: gaps are filled, and visible mistakes are reported.

A command line may leave out the folder of a shipped configuration, and the configuration of a checkpoint's own run.
"""

import difflib
import sys
from pathlib import Path
from typing import Any

from cli.chat import exported_folder
from cli.own_configurations import is_own
from cli.resume import runs_of
from cli.yaml_files import read_yaml
from support.errors import ConfigError
from support.files import INSTALLED, shipped

STAGES = ("fit", "validate", "test", "predict")
COMMANDS = (*STAGES, "plan", "chat")
EXAMPLE = "python main.py fit --config configs/grpo.yaml"
#: packages whose classes are not listed when a configuration from elsewhere is refused
KNOWN = ("callbacks.", "datamodules.", "environments.", "lightning.", "lightning_modules.", "objectives.", "policies.",
         "rewards.", "rollouts.", "torch.", "tracking.")  # fmt: skip
#: other projects' commands -> ours
SYNONYMS = {"train": "fit", "eval": "validate", "evaluate": "validate", "generate": "predict", "talk": "chat"}


def completed(args: list[str]) -> list[str]:
    """Find shipped configurations, and add the saved configuration of the checkpoint's run where none is named.

    Raises:
        ConfigError: for a missing or unknown command; for a configuration that is not named, does not exist or is not
            valid YAML; for a checkpoint without a configuration, on the command line or in its run.
    """
    args = list(args)
    asks_help = any(word.startswith(("--help", "-h")) or ".help" in word for word in args)
    if not asks_help and (not args or args[0] not in COMMANDS):
        _refuse_command(args[0] if args else "")
    for place, (before, word) in enumerate(zip(["", *args], args, strict=False)):
        option, equals, value = word.partition("=")
        if equals and option in ("--config", "-c"):
            args[place] = f"{option}={shipped(value)}"
        elif before in ("--config", "-c"):
            args[place] = str(shipped(word))
    for path in _values(args, "--config", "-c"):
        _check_config(path)
    names_method = any(word.partition("=")[0] in ("--config", "-c", "--model", "--model.class_path") for word in args)
    if asks_help or names_method:
        return args
    checkpoint = _values(args, "--ckpt_path")
    if checkpoint and args[0] == "chat" and (words := exported_folder(checkpoint[-1])) is not None:
        return [args[0], *words, *_without(args[1:], "--ckpt_path")]
    if checkpoint and checkpoint[-1] and args[0] in (*STAGES, "chat"):
        roots = _values(args, "--trainer.default_root_dir")
        root = Path(roots[-1] if roots else "runs")
        config = _saved_config(checkpoint[-1], root, args[0])
        # a script that asks for one answer reads standard output
        print(f"Configuration of the checkpoint's run: {config}", file=sys.stderr if args[0] == "chat" else sys.stdout)
        return [args[0], "--config", str(config), *args[1:]]
    raise ConfigError(
        f"no configuration says what to {args[0]}; configs/ has {', '.join(_methods())}. "
        f"Name one: python main.py {args[0]} --config configs/grpo.yaml"
    )


def _refuse_command(word: str) -> None:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    meant = SYNONYMS.get(word) or (near[0] if near else "")
    problem = f"{word!r} is not a command" if word else "the command is missing"
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise ConfigError(f"{problem}; the commands are {', '.join(COMMANDS)}.{hint} Example: {EXAMPLE}")


def _methods() -> list[str]:
    return sorted(path.stem for path in (INSTALLED / "configs").glob("*.yaml"))


def _values(args: list[str], *options: str) -> list[str]:
    """The values of an option, in their order."""
    values = []
    for word, following in zip(args, [*args, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        if option in options:
            values.append(value if equals else following)
    return values


def _without(args: list[str], option: str) -> list[str]:
    """The words without an option and its value."""
    return [
        word
        for before, word in zip(["", *args], args, strict=False)
        if word.partition("=")[0] != option and before != option
    ]


def _check_config(name: str) -> None:
    """Refuse a configuration file that does not exist or is not valid YAML."""
    path = Path(name).expanduser()
    if not path.is_file():
        meant = _similar_config(path)
        hint = f"Did you mean --config {meant}?" if meant else f"Check the path; an example is: {EXAMPLE}"
        raise ConfigError(f"the configuration {path.absolute()} does not exist. {hint}")
    read_yaml(path)


def _similar_config(path: Path) -> Path | None:
    """The configuration whose name is most like that of a missing file: a method's first, then an overlay."""
    for pattern in ("*.yaml", "**/*.yaml"):
        by_name = {
            config.stem: config
            for folder in (INSTALLED / "configs", path.parent)
            for config in sorted(folder.glob(pattern))
        }
        near = difflib.get_close_matches(path.stem, list(by_name), n=1, cutoff=0.7)
        if near:
            config = by_name[near[0]]
            return config.relative_to(INSTALLED) if config.is_relative_to(INSTALLED) else config
    return None


def _saved_config(checkpoint: str, root: Path, command: str) -> Path:
    """The configuration that a checkpoint's run has saved; that of the newest run for `last`."""
    if checkpoint == "last":
        runs = runs_of(root)
        if not runs:
            raise ConfigError(
                f"--ckpt_path last: there is no run under {root} and no --config, so there is nothing to {command}. "
                f"Train first: {EXAMPLE}"
            )
        return _own(runs[0] / "config_fit.yaml")
    path = Path(checkpoint)
    if not path.exists():
        raise ConfigError(f"the checkpoint {path.absolute()} does not exist. Correct the path after --ckpt_path.")
    config = path.absolute().parent.parent / "config_fit.yaml"
    if not config.is_file():
        raise ConfigError(
            f"{checkpoint} comes without the configuration that it was trained with; a run keeps it as {config}. "
            "Name the configuration with --config."
        )
    return _own(config)


def _own(config: Path) -> Path:
    """The configuration, if this installation wrote it: the classes that it names are code that would run."""
    if is_own(config):
        return config
    classes = sorted(_classes(read_yaml(config)))
    raise ConfigError(
        f"this installation did not write {config}, the configuration beside the checkpoint, and the classes that it "
        f"names are code that would run: {', '.join(classes) or 'none'}. Read it, and if you trust it, name it with "
        f"--config {config}"
    )


def _classes(value: Any) -> set[str]:
    """The classes and functions that a configuration names, other than this project's, Lightning's and PyTorch's."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    named = {repr(item) for key, item in items if key in ("class_path", "function") and isinstance(item, str)}
    foreign = {name for name in named if not name.strip("'\"").startswith(KNOWN)}
    return foreign.union(*(_classes(item) for _, item in items))
