"""Real processes that run main.py's command lines, forked from one that has imported everything."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlflow
import torch

from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]


def _run(arguments: list[str], folder: str) -> None:
    """`main.py fit`, from its first line to its exit status."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["main.py", "fit", *arguments]
    import main

    main.run()


def start(arguments: list[str], folder: Path) -> Any:
    """Begin a run in a process of its own."""
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "LIGHTNING_POSTTRAIN_CACHE": f"{folder}/cache"}
    return processes.start(_run, arguments, str(folder), log=folder / "log.txt", PL_GLOBAL_SEED="0", **own)


def heed_ctrl_c() -> None:
    """A shell's background jobs, and all that they start, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Command:
    """The same with main.py's own process, which starts others for --trainer.devices 2; they live and die together."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "LIGHTNING_POSTTRAIN_CACHE": f"{folder}/cache",
        }
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment.pop("PL_GLOBAL_SEED", None)
        with (folder / "log.txt").open("a") as log:
            command = [sys.executable, str(ROOT / "main.py"), "fit", *arguments]
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=heed_ctrl_c,
            )
        self.pid = -self.process.pid  # of the group

    def join(self, seconds: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    @property
    def exitcode(self) -> int | None:
        return self.process.poll()


def kill_after(process: Any, seconds: float, how: int = signal.SIGKILL) -> bool:
    """Kill it after so many seconds; False if it had ended before."""
    process.join(seconds)
    if process.exitcode is not None:
        return False
    os.kill(process.pid, how)  # a negative number is a group
    process.join()
    return True


def state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of the only run: everything that training goes on from."""
    (run,) = {path.parents[1] for path in folder.glob("runs/*/checkpoints/*.ckpt")}
    newest = sorted(run.glob("checkpoints/rollout_*.ckpt"))[-1]
    saved = torch.load(newest, weights_only=True)
    saved.pop("hyper_parameters", None)
    return saved


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two nested states differ, even in a single bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = {*a, *b}
        return [
            d
            for key in keys
            for d in (differences(a[key], b[key], f"{where}.{key}") if key in a and key in b else [f"{where}.{key}"])
        ]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{where}: {a!r} is not {b!r}"]


def metrics(folder: Path) -> dict[tuple[str, str, int], set[float]]:
    """(run's name, metric, step) -> the values logged there; speeds and the machine's load are left out."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found: dict[tuple[str, str, int], set[float]] = defaultdict(set)
    for run in client.search_runs(["1"]):
        for name in run.data.metrics:
            if not name.startswith(("perf/", "system/")):
                for point in client.get_metric_history(run.info.run_id, name):
                    found[run.info.run_name, name, point.step].add(point.value)
    return dict(found)


def tables(folder: Path) -> dict[str, Any]:
    """Every table of sampled texts, by name."""
    return {path.name: json.loads(path.read_text()) for path in folder.glob("runs/*/completions/*.json")}


def wait_for(condition: Any, seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)
