"""Names of runs, made of the method (from the configuration files), the model, the data and the seed."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

#: keys of `model` that a configuration may set without making it another method
ELSEWHERE = {"policy", "batch", "sampling", "evaluation", "optimizer", "lr_scheduler", "engine", "max_grad_norm"}
ARXIV = re.compile(r"arXiv[ :]*(\d{4}\.\d{5})")


def makes_a_method(text: str) -> bool:
    """Whether a configuration file defines a method: a class, parts of an objective, or callbacks.

    A file that only sets a model, data, sizes or a machine does not.
    """
    try:
        configuration = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    model = configuration.get("model") if isinstance(configuration, dict) else None
    trainer = configuration.get("trainer") if isinstance(configuration, dict) else None
    if isinstance(trainer, dict) and "callbacks+" in trainer:
        return True
    return isinstance(model, dict) and ("class_path" in model or bool(set(model.get("init_args") or {}) - ELSEWHERE))


def method_and_paper(configs: Iterable[Any], class_path: str) -> tuple[str, str | None]:
    """(the names of the files that define the method, joined by +; the arXiv numbers that they state).

    Without such a file, or without a number in it, the class's name and its module's number are used.

    Args:
        configs: paths in the order of the command line. class_path: of the module.
    """
    paths = [Path(str(config)) for config in configs]
    texts = {path: path.read_text() for path in paths if path.is_file()}
    # A run's resolved configuration (config_fit.yaml) contains all keys, and its name says nothing about the method.
    methods = {
        path: text
        for path, text in texts.items()
        if makes_a_method(text) and not re.fullmatch(r"config_\w+", path.stem)
    }
    papers = list(dict.fromkeys(number for text in methods.values() for number in ARXIV.findall(text)))
    package, _, name = class_path.rpartition(".")
    if not papers:
        module_class = getattr(sys.modules.get(package), name, None)
        defined_in = sys.modules.get(getattr(module_class, "__module__", ""))
        papers = ARXIV.findall(getattr(defined_in, "__doc__", None) or "")[:1]
    return "+".join(path.stem for path in methods) or name, ", ".join(papers) or None


def run_name(method: str, model: str | None, data: str | None, seed: Any) -> str:
    """The name of a run, for example "laser, tiny_rambler, Arithmetic, seed 0".

    Args:
        model: name or folder. data: class path of the data module.
    """
    parts = [
        method,
        Path(model).name if model else None,
        data.rpartition(".")[2].removesuffix("Prompts") if data else None,
    ]
    return ", ".join([part for part in parts if part] + [f"seed {seed}"])
