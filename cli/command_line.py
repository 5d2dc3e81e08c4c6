"""The words of a command line, before anything is parsed: gaps are filled, and visible mistakes are reported.

A command line may leave out the folder of a shipped configuration, and the configuration of a checkpoint's own run.
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
#: other projects' commands -> ours
SYNONYMS = {"train": "fit", "eval": "validate", "evaluate": "validate", "generate": "predict"}


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
    if checkpoint and checkpoint[-1] and args[0] in STAGES:
        roots = _values(args, "--trainer.default_root_dir")
        root = Path(roots[-1] if roots else "runs")
        config = _saved_config(checkpoint[-1], root, args[0])
        print(f"Configuration of the checkpoint's run: {config}")
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


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} occurs twice in this mapping", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _check_config(name: str) -> None:
    """Refuse a configuration file that does not exist or is not valid YAML."""
    path = Path(name).expanduser()
    if not path.is_file():
        meant = _similar_config(path)
        hint = f"Did you mean --config {meant}?" if meant else f"Check the path; an example is: {EXAMPLE}"
        raise ConfigError(f"the configuration {path.absolute()} does not exist. {hint}")
    try:
        yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if "\\t" in problem:
            hint = "Indent with spaces instead of tabs."
        elif "occurs twice" in problem:
            hint = "Join the two into one."
        else:
            hint = "Correct this line." if mark else "Save the file as UTF-8."
        raise ConfigError(f"{name} is not valid YAML{place}: {problem}. {hint}") from error


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
        runs = sorted(root.glob("*/config_fit.yaml"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ConfigError(
                f"--ckpt_path last: there is no run under {root} and no --config, so there is nothing to {command}. "
                f"Train first: {EXAMPLE}"
            )
        return runs[-1]
    path = Path(checkpoint)
    if not path.exists():
        raise ConfigError(f"the checkpoint {path.absolute()} does not exist. Correct the path after --ckpt_path.")
    config = path.absolute().parent.parent / "config_fit.yaml"
    if not config.is_file():
        raise ConfigError(
            f"{checkpoint} comes without the configuration that it was trained with; a run keeps it as {config}. "
            "Name the configuration with --config."
        )
    return config
