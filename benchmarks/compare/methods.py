"""The methods of the comparison: blocks of facts in the files that implement them, and configuration files."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cli.yaml_files import read_yaml
from support.errors import ConfigError
from support.papers import Paper, all_objectives, all_papers, flags, heading

#: Its task has a cost, so its numbers compare with no other's. Its answers have five tokens, so a quarter of the tokens
#: makes as many rollouts.
HELP_DESK: Paper = all_papers()["hc_rlhf"]
METHODS: dict[str, Paper] = {
    name: paper for name, paper in all_papers().items() if not paper.not_compared and paper is not HELP_DESK
}
#: the policy losses and advantages of configs/objectives, over GRPO's configuration; GRPO's own is configs/grpo.yaml
OBJECTIVES: dict[str, Paper] = {name: paper for name, paper in all_objectives().items() if name not in METHODS}
LEFT_OUT: tuple[Paper, ...] = tuple(paper for paper in all_papers().values() if paper.not_compared)
#: the common task
TASK = "configs/compare.yaml"


def chosen(names: list[str] | None, objectives: bool = False, hc_rlhf: bool = True) -> dict[str, Paper]:
    """The methods to compare, by name.

    Args:
        names: names of methods, configuration files, or several of these joined by + (`laser+mine.yaml`); None for all
            papers' methods.
        objectives, hc_rlhf: whether those of configs/objectives and HC-RLHF belong to all methods.

    Raises:
        ConfigError: for a name that is neither.
    """
    known = METHODS | OBJECTIVES | {HELP_DESK.name: HELP_DESK}
    if not names:
        return METHODS | (OBJECTIVES if objectives else {}) | ({HELP_DESK.name: HELP_DESK} if hc_rlhf else {})
    names = list(dict.fromkeys(names))
    short = {name: "+".join(Path(part).stem if _is_file(part) else part for part in name.split("+")) for name in names}
    taken = Counter([*(known.keys() - set(names)), *short.values()])
    methods: dict[str, Paper] = {}
    for name in names:
        unique = short[name] if taken[short[name]] == 1 else re.sub(r"\W+", "_", name).strip("_")
        methods[unique] = known[name] if name in known else _composed(unique, name.split("+"), known)
    return methods


def varied(methods: dict[str, Paper], vary: list[str]) -> dict[str, Paper]:
    """Each method once per combination of the values, in their order: laser.clip_high_0.28 is LASER with this value.

    Args:
        vary: KEY=[VALUE, ...] with a key of the command line, such as model.loss.clip_high=[0.2,0.28,0.4].

    Raises:
        ConfigError: for anything else than a key and a list of at least two different values, or for HC-RLHF, whose
            task is its own.
    """
    if not vary:
        return methods
    if HELP_DESK in methods.values():
        raise ConfigError(
            "--vary is about the common task, which hc_rlhf does not train on; leave it out of --methods."
        )
    axes = [_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    short = {key: key.rpartition(".")[2] for key in keys}
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--vary names {', '.join(keys)}; name each key once.")
    if len({*short.values()}) < len(keys):
        short = {key: key for key in keys}
    arms = {}
    for name, method in methods.items():
        for values in itertools.product(*(axis_values for _, axis_values in axes)):
            settings = dict(zip(keys, values, strict=True))
            label = ", ".join(f"{short[key]} {_written(value)}" for key, value in settings.items())
            arm = re.sub(r"[^\w.-]+", "_", f"{name}.{label}")
            arms[arm] = replace(
                method, name=arm, title=f"{method.title}, {label}", comparison=method.comparison | settings
            )
    return arms


def _axis(text: str) -> tuple[str, list[Any]]:
    """The key and the values of one `--vary`."""
    key, equals, listed = text.removeprefix("--").partition("=")
    try:
        values = yaml.safe_load(listed)
    except yaml.YAMLError:
        values = None
    different = isinstance(values, list) and len({_written(value) for value in values}) == len(values) > 1
    if not equals or not key.strip() or not different:
        raise ConfigError(
            f"--vary is {text!r}; it must be a key and a list of at least two different values, for example "
            "--vary 'model.loss.clip_high=[0.2,0.28,0.4]'."
        )
    return key.strip(), values


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_file(part: str) -> bool:
    return part.endswith((".yaml", ".yml"))


def _composed(name: str, parts: list[str], known: dict[str, Paper]) -> Paper:
    """A method of configuration files and known methods, later ones over earlier ones.

    A first file without a module and its rewards is laid over configs/grpo.yaml. The first comments of the files give
    the title, as in configs/objectives.

    Raises:
        ConfigError: for a part that is neither, a file that does not exist or that configures nothing.
    """
    papers = []
    for place, part in enumerate(parts):
        if part in known:
            papers.append(known[part])
        elif _is_file(part):
            papers.append(_of_file(part, over_grpo=place == 0))
        else:
            raise ConfigError(
                f"--methods has {part!r}, which is neither a method nor a configuration file (*.yaml); choose from "
                f"{', '.join(known)}."
            )
    settings = {key: value for paper in papers for key, value in paper.comparison.items()}
    return Paper(
        name=name,
        title=" + ".join(paper.title for paper in papers),
        idea=papers[-1].idea,
        arxiv=papers[-1].arxiv,
        configs=tuple(config for paper in papers for config in paper.configs),
        page="",
        comparison=settings,
    )


def _of_file(file: str, over_grpo: bool) -> Paper:
    from support.files import shipped  # it imports torch, which a list of methods does not need

    path = shipped(file)
    if not path.is_file():
        raise ConfigError(f"--methods has {file!r}, but {path.absolute()} does not exist; correct the path.")
    settings = read_yaml(path)
    if not isinstance(settings, dict) or not {"model", "data", "trainer"} & set(settings):
        raise ConfigError(
            f"--methods has {file!r}, which is not a configuration: it has no `model`, `data`, `trainer`."
        )
    model = settings.get("model")
    is_whole = isinstance(model, dict) and "class_path" in model and "rewards" in (model.get("init_args") or {})
    head = heading(path)
    number = re.search(r"arXiv (\d{4}\.\d{5})", head["source"] or "") if head else None
    return Paper(
        name=path.stem,
        title=head["title"] if head else path.stem,
        idea=head["idea"] if head else "",
        arxiv=number[1] if number else "",
        configs=("grpo", file) if over_grpo and not is_whole else (file,),
        page="",
    )


def configurations(method: Paper) -> list[str]:
    """The paths of the method's configurations."""
    return [name if _is_file(name) else f"configs/{name}.yaml" for name in method.configs]


def arguments(method: Paper, seed: int, tokens: int) -> list[str]:
    """The command line of one run behind `main.py fit`, but for where it is tracked."""
    desk = method is HELP_DESK
    budget = {"class_path": "callbacks.TokenBudget", "init_args": {"tokens": max(1, tokens // 4) if desk else tokens}}
    return [
        *(f"--config={path}" for path in [*configurations(method), *([] if desk else [TASK])]),
        *flags(method.comparison),
        f"--trainer.callbacks+={json.dumps(budget)}",
        f"--seed_everything={seed}",
    ]
