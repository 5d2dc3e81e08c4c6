"""What a run is called: its method by the configuration files that make it, its model, its data, its seed."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

#: what a configuration may set about a model without making another method of it
ELSEWHERE = {"policy", "batch", "sampling", "evaluation", "optimizer", "lr_scheduler", "engine", "max_grad_norm"}
ARXIV = re.compile(r"arXiv[ :]*(\d{4}\.\d{5})")


def makes_a_method(text: str) -> bool:
    """Whether a configuration file says what is optimised: a class, parts of an objective, callbacks; and not only a model, data, sizes or a machine."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    model = given.get("model") if isinstance(given, dict) else None
    trainer = given.get("trainer") if isinstance(given, dict) else None
    own = isinstance(model, dict) and ("class_path" in model or set(model.get("init_args") or {}) - ELSEWHERE)
    return bool(own or (isinstance(trainer, dict) and "callbacks+" in trainer))


def method_and_paper(configs: Iterable[Any], class_path: str) -> tuple[str, str | None]:
    """(the files' names joined by +, the arXiv numbers that they state); of the class where no file says so.

    Args:
        configs: paths in the order of the command line. class_path: of the module.
    """
    texts = {Path(path): Path(path).read_text() for path in (str(one) for one in configs) if Path(path).is_file()}
    # A run's own resolved configuration has everything and no name.
    making = {
        path: text
        for path, text in texts.items()
        if makes_a_method(text) and not re.fullmatch(r"config_\w+", path.stem)
    }
    papers = list(dict.fromkeys(number for text in making.values() for number in ARXIV.findall(text)))
    module, _, name = class_path.rpartition(".")
    if not papers:
        owner = getattr(sys.modules.get(module), name, None)
        papers = ARXIV.findall(getattr(sys.modules.get(getattr(owner, "__module__", "")), "__doc__", None) or "")[:1]
    return "+".join(path.stem for path in making) or name, ", ".join(papers) or None


def run_name(method: str, model: str | None, data: str | None, seed: Any) -> str:
    """For example "laser, tiny_rambler, Arithmetic, seed 0".

    Args:
        model: name or folder. data: class path of the data module.
    """
    parts = [
        method,
        Path(model).name if model else None,
        data.rpartition(".")[2].removesuffix("Prompts") if data else None,
    ]
    return ", ".join([part for part in parts if part] + [f"seed {seed}"])
