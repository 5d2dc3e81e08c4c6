"""Runs of a comparison: started through main.py, found again by their tags, and read back as curves."""

import ast
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from benchmarks.compare.methods import TASK, arguments
from cli.yaml_files import read_yaml
from support.errors import ConfigError
from support.files import INSTALLED, file_hash, fingerprint, shipped
from support.papers import Paper
from tracking.run_records import KIND, PARENT, TRAINING

EXPERIMENT = "compare"
#: starts every run in a new process that has already imported everything
FORKS = multiprocessing.get_context("forkserver")
Curve = list[tuple[float, float]]


@dataclass
class Result:
    """One finished run.

    Fields:
        run: MLflow id of the run.
        seed: seed of the run.
        seconds: duration of the run.
        values: last value of every metric.
        first: first value of every validation metric.
        curves: metric -> (generated tokens, value) of every validation.
        rollouts: number of rollouts.
        clock: metric -> seconds since the start of the run of every validation.
    """

    run: str
    seed: int
    seconds: float
    values: dict[str, float]
    first: dict[str, float]
    curves: dict[str, Curve] = field(default_factory=dict)
    rollouts: int = 0
    clock: dict[str, list[float]] = field(default_factory=dict)


#: packages whose code decides the outcome of a run
SOURCES = (
    "callbacks cli datamodules environments lightning_modules objectives policies rewards rollouts support"
).split()


#: libraries whose version decides it too
LIBRARIES = ("lightning", "peft", "torch", "transformers")


def digest(command: list[str]) -> str:
    """Digest of everything that decides a run's outcome, for a tag: runs with equal digests are not repeated.

    It covers the arguments, the contents of the configuration files among them, the files and folders of data and
    models that they name, the code of the classes that they name, and the source code, which holds the defaults. It
    begins with a letter, because a command line would read a value such as 130512023e19 as a number.
    """
    paths = [part.partition("=")[2] for part in command if part.startswith("--config=")]
    others = [part for part in command if not part.startswith("--config=")]
    configurations = [_that_act(read_yaml(shipped(path))) for path in paths]
    texts = _texts([others, [part.partition("=")[2] for part in others], configurations])
    inputs = {text: _content(shipped(text)) for text in sorted(texts) if _is_input(text)}
    code = own_code({text.partition(".")[0] for text in texts if _CLASS_PATH.fullmatch(text)})
    return f"d{fingerprint([others, configurations, inputs, code, _source_version()])[:12]}"


def _that_act(configuration: Any) -> Any:
    """The settings but for where a run is written, which the comparison sets."""
    settings = dict(configuration or {})
    if isinstance(trainer := settings.get("trainer"), dict):
        settings["trainer"] = {
            key: value for key, value in trainer.items() if key not in ("default_root_dir", "logger")
        }
    return settings


_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def _texts(value: Any) -> set[str]:
    """All texts in nested lists and dicts, and those inside texts that hold JSON."""
    if isinstance(value, str):
        inside = json.loads(value) if value[:1] in "{[" and _is_json(value) else []
        return {value, *_texts(inside)}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return {text for item in items for text in _texts(item)}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_input(text: str) -> bool:
    """Whether a text names a file or folder, and not by chance one of the packages or the folder of the runs."""
    try:
        return Path(text).name not in ("", "..", "runs", *SOURCES) and shipped(text).exists()
    except (OSError, ValueError):  # too long for a path
        return False


def _content(path: Path) -> Any:
    """Hashes of a file, or of the files in a folder."""
    if path.is_dir():
        return {
            file.relative_to(path).as_posix(): file_hash(file) for file in sorted(path.rglob("*")) if file.is_file()
        }
    return file_hash(path) if path.is_file() else None


def own_code(roots: set[str]) -> dict[str, Any]:
    """Hashes of the source files of top-level modules outside of this project and its libraries, and of what they
    import.

    Args:
        roots: names of modules and packages. Other names are passed over.
    """
    hashes: dict[str, Any] = {}
    todo = sorted(roots)
    while todo:
        root = todo.pop()
        if root in hashes or root in SOURCES or root in sys.stdlib_module_names:
            continue
        hashes[root] = {}
        for file in _sources(root):
            hashes[root][file.name] = file_hash(file)
            tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):  # relative imports stay within the package, whose files are all here
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    todo.append(node.module.partition(".")[0])
                elif isinstance(node, ast.Import):
                    todo += [alias.name.partition(".")[0] for alias in node.names]
    return {root: files for root, files in hashes.items() if files}


def _sources(root: str) -> list[Path]:
    """The Python files of a top-level module that is neither a library's nor this project's."""
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = sorted(file for place in places for file in place.rglob("*.py")) or [Path(spec.origin or "")]
    return [file for file in files if file.suffix == ".py" and not {"site-packages", "dist-packages"} & {*file.parts}]


@functools.cache
def _source_version() -> str:
    files = sorted(file for package in SOURCES for file in (INSTALLED / package).rglob("*.py"))
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    return fingerprint([versions, [[file.relative_to(INSTALLED).as_posix(), file_hash(file)] for file in files]])


class Comparison:
    """A parent run and its children in the tracking store.

    Args:
        uri: tracking store of MLflow.
        tokens: number of generated tokens per run.
        folder: folder for files of the runs.
    """

    def __init__(self, uri: str, tokens: int, folder: Path) -> None:
        self.uri, self.tokens, self.folder = uri, tokens, folder
        self.client = mlflow.MlflowClient(uri)
        self.experiment: str
        if (experiment := self.client.get_experiment_by_name(EXPERIMENT)) is not None:
            self.experiment = experiment.experiment_id
        else:
            self.experiment = self.client.create_experiment(EXPERIMENT, tags={KIND: TRAINING})
        # The task's values, so that a comment in its configuration does not start another comparison.
        self.task = fingerprint([read_yaml(shipped(TASK)), tokens])[:12]
        self.parent = self._parent()

    def _parent(self) -> str:
        """The MLflow id of the parent run of this task, created at first use."""
        parents = self._search(f"tags.`compare.task` = '{self.task}' and tags.`compare.role` = 'parent'")
        if parents:
            return parents[0].info.run_id
        name = f"compare, {self.tokens // 1000} k tokens"
        tags = {"mlflow.runName": name, "compare.task": self.task, "compare.role": "parent"}
        run = self.client.create_run(self.experiment, tags=tags)
        self.client.log_param(run.info.run_id, "tokens", self.tokens)
        return run.info.run_id

    def _search(self, query: str) -> list[Run]:
        return list(
            self.client.search_runs([self.experiment], query, order_by=["attributes.start_time DESC"], max_results=1000)
        )

    def _children(self, name: str, method: Paper, seed: int) -> list[Run]:
        settings = digest(arguments(method, seed, self.tokens))
        tags = {PARENT: self.parent, "compare.method": name, "compare.settings": settings}
        return self._search(" and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items()))

    def finished(self, name: str, method: Paper, seed: int) -> Run | None:
        """The latest finished run with these settings; None before the first."""
        return next((run for run in self._children(name, method, seed) if run.info.status == "FINISHED"), None)

    def train(self, name: str, method: Paper, seed: int) -> bool:
        """Train by `main.py fit` in a new process, with its output in `log`. Returns whether the run succeeded."""
        for run in self._children(name, method, seed):
            if run.info.status == "RUNNING":  # a run of a comparison that was killed
                self.client.set_terminated(run.info.run_id, "KILLED")
        command = arguments(method, seed, self.tokens)
        tags = {PARENT: self.parent, "compare.method": name, "compare.settings": digest(command)}
        logger = {
            "tracking_uri": self.uri,
            "experiment_name": EXPERIMENT,
            "run_name": f"{name}, seed {seed}",
            "tags": tags,
        }
        command += [
            f"--trainer.logger.init_args.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in logger.items()
        ]
        log = self.log(name, seed)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = FORKS.Process(
            target=fit_in_process, args=([*command, f"--trainer.default_root_dir={self.folder}"], str(log))
        )
        process.start()
        process.join()
        return process.exitcode == 0

    def log(self, name: str, seed: int) -> Path:
        """The file of a run's output."""
        return self.folder / "logs" / f"{name}_{seed}.log"

    def result(self, run: Run, seed: int) -> Result:
        """The measurements of a finished run."""
        names = [name for name in run.data.metrics if name.startswith("val/")]
        history = {name: self.client.get_metric_history(run.info.run_id, name) for name in names}
        tokens = {point.step: point.value for point in self.client.get_metric_history(run.info.run_id, "train/tokens")}
        if not tokens or not names:
            raise ConfigError(
                f"the run {run.info.run_name!r} has no metric train/tokens or no validation; delete it in MLflow and "
                "run the comparison again."
            )
        curves, first, clock = {}, {}, {}
        for name, points in history.items():
            ordered = sorted(points, key=lambda point: point.timestamp)
            first[name] = ordered[0].value
            # The first validation precedes the first rollout, but has the same step as the validation after it.
            curves[name] = [(0.0, ordered[0].value), *((tokens[point.step], point.value) for point in ordered[1:])]
            clock[name] = [(point.timestamp - run.info.start_time) / 1000 for point in ordered]
        seconds = (run.info.end_time - run.info.start_time) / 1000
        return Result(run.info.run_id, seed, seconds, dict(run.data.metrics), first, curves, len(tokens), clock)


def fit_in_process(command: list[str], log: str) -> None:
    """Train in the process of the run; its output goes to a file."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    main = sys.modules.get("main") or __import__("main")
    try:
        main.main(["fit", *command])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
