"""The methods of the comparison: blocks of facts in the files that implement them, and configuration files."""

import json
import re
from collections import Counter
from pathlib import Path

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
        names: names of methods, and configuration files; None for all papers' methods.
        objectives, hc_rlhf: whether those of configs/objectives and HC-RLHF belong to all methods.

    Raises:
        ConfigError: for a name that is neither.
    """
    known = METHODS | OBJECTIVES | {HELP_DESK.name: HELP_DESK}
    if not names:
        return METHODS | (OBJECTIVES if objectives else {}) | ({HELP_DESK.name: HELP_DESK} if hc_rlhf else {})
    files = [name for name in dict.fromkeys(names) if name.endswith((".yaml", ".yml"))]
    stems = Counter([*known, *(Path(file).stem for file in files)])
    methods: dict[str, Paper] = {}
    for name in dict.fromkeys(names):
        if name in files:
            unique = Path(name).stem if stems[Path(name).stem] == 1 else re.sub(r"\W+", "_", name).strip("_")
            methods[unique] = of_file(name, unique)
        elif name in known:
            methods[name] = known[name]
        else:
            raise ConfigError(
                f"--methods has {name!r}, which is neither a method nor a configuration file (*.yaml); choose from "
                f"{', '.join(known)}."
            )
    return methods


def of_file(file: str, name: str) -> Paper:
    """A configuration file as a method; one that names no module is laid over configs/grpo.yaml.

    Its first comment gives its title, as in configs/objectives.

    Raises:
        ConfigError: for a file that does not exist or cannot be read, or that configures no method.
    """
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
    whole = isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)
    head = heading(path)
    return Paper(
        name=name,
        title=head["title"] if head else name,
        idea=head["idea"] if head else "",
        configs=(str(file),) if whole else ("grpo", str(file)),
        page="",
    )


def configurations(method: Paper) -> list[str]:
    """The paths of the method's configurations."""
    return [name if name.endswith((".yaml", ".yml")) else f"configs/{name}.yaml" for name in method.configs]


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
