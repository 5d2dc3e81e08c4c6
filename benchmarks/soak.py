"""Soak test: long training under kills, SIGTERM, an MLflow server that stops and restarts, and a reward that fails on
some completions.

    python benchmarks/soak.py --rollouts 1000        # about an hour

The same run is made twice, undisturbed and disturbed; both must end with the same weights and metrics. Resident memory
and open files of the undisturbed run are sampled every second, and the allocated bytes every 50 rollouts; their slopes
are printed with 95 % intervals. Memory that is resident but not allocated belongs to the allocator.
"""

import contextlib
import ctypes
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import lightning as L
import mlflow
import numpy as np
import torch
from jsonargparse import auto_cli
from scipy.stats import linregress

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.common import markdown_table  # noqa: E402

EVENTS = ("kill", "kill", "terminate", "server", "server")


def digits(completions: list[str]) -> list[float | None]:
    """A reward that is sometimes slow, and has no value for about one text in twenty; the same texts in every run."""
    if any(hash_of(text) % 200 == 0 for text in completions):
        time.sleep(0.2)
    return [
        None if hash_of(text) % 20 == 0 else sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions
    ]


def hash_of(text: str) -> int:
    """A hash that is equal in all processes."""
    return int.from_bytes(text.encode()[-8:], "big") * 2654435761 % 2**32


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


class Heap(L.Callback):
    """Append the memory that is allocated by malloc to heap.jsonl: [time, rollouts, MB]."""

    def on_fit_start(self, *_: Any) -> None:
        self.libc = ctypes.CDLL(None)
        self.libc.mallinfo2.restype = Mallinfo

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if done % 50 == 10:  # not near a validation, whose memory is freed a little later
            gc.collect()
            info = self.libc.mallinfo2()
            with Path("heap.jsonl").open("a") as file:
                file.write(json.dumps([time.monotonic(), done, (info.uordblks + info.hblkhd) / 1e6]) + "\n")


class Server:
    """An MLflow server that can be killed and restarted."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.process = folder, port, None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        store = [
            f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
            f"--artifacts-destination={self.folder}/artifacts",
        ]
        command = [sys.executable, "-m", "mlflow", "server", *store, f"--port={self.port}", "--workers=1"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1200):  # ten minutes, for a machine that is busy
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
                return
            time.sleep(0.5)
        raise SystemExit(f"the MLflow server has not started within ten minutes; see {self.folder / 'server.log'}.")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


REWARDS = [
    {"class_path": "rewards.ExactAnswer"},
    {"class_path": "rewards.FunctionReward", "init_args": {"function": "benchmarks.soak.digits", "weight": 0.1}},
]
CALLBACKS = [
    {"class_path": "callbacks.RolloutCheckpoint", "init_args": {"every_n_rollouts": 10}},
    {"class_path": "benchmarks.soak.Heap"},
]


def begin(folder: Path, uri: str, rollouts: int) -> subprocess.Popen:
    """Start or resume the run."""
    settings = {
        "config": f"{ROOT}/configs/grpo.yaml",
        "model.policy.model": f"{ROOT}/assets/tiny_reasoner",
        "model.batch.prompts_per_rollout": 4,
        "model.batch.group_size": 4,
        "model.sampling.max_new_tokens": 48,
        "model.evaluation.sampling.max_new_tokens": 48,
        "model.rewards": json.dumps(REWARDS),
        "model.optimizer.init_args.lr": 2e-5,
        "data.train_size": 512,
        "data.val_size": 16,
        "trainer.max_steps": rollouts,
        "trainer.val_check_interval": 25,
        "trainer.callbacks": json.dumps(CALLBACKS),
        "trainer.enable_progress_bar": "false",
        "ckpt_path": "last",
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = (folder / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "fit", *arguments], cwd=folder, env=environment, stdout=log, stderr=log
    )


def sample(pid: int) -> tuple[float, float, float]:
    """(time, resident MB, open files) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def undisturbed(folder: Path, rollouts: int) -> list[tuple[float, float, float]]:
    """Run to the end. Returns a sample per second."""
    process, samples = begin(folder, f"sqlite:///{folder}/mlflow.db", rollouts), []
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            samples.append(sample(process.pid))
        time.sleep(1)
    assert process.returncode == 0, (folder / "log.txt").read_text()[-2000:]
    return samples


def disturbed(folder: Path, rollouts: int, rng: random.Random, every: float) -> dict[str, int]:
    """Run to the end, with one event about every `every` seconds. Returns the number of events of each kind."""
    port_file = folder / "port.txt"  # metrics that wait for the server wait for this port
    if not port_file.is_file():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port_file.write_text(str(free.getsockname()[1]))
    port = int(port_file.read_text())
    uri = f"http://127.0.0.1:{port}"
    server = Server(folder / "server", port)
    try:
        process = begin(folder, uri, rollouts)
        next_event, restart_at = time.monotonic() + rng.expovariate(1 / every), None
        while True:
            time.sleep(0.2)
            if restart_at is not None and time.monotonic() > restart_at:
                server.start()
                restart_at = None
            if process.poll() is not None:
                if process.returncode == 0:
                    break
                # 143 is this project's code; before training has begun a SIGTERM ends the process as any other process
                expected = (143, -signal.SIGKILL, -signal.SIGTERM)
                assert process.returncode in expected, (process.returncode, (folder / "log.txt").read_text()[-2000:])
                process = begin(folder, uri, rollouts)
            if time.monotonic() > next_event:
                next_event = time.monotonic() + rng.expovariate(1 / every)
                event = rng.choice(EVENTS)
                if event == "server" and restart_at is None:
                    server.stop()
                    restart_at = time.monotonic() + rng.uniform(5, 60)
                elif event != "server":
                    process.send_signal(signal.SIGKILL if event == "kill" else signal.SIGTERM)
                else:
                    continue
                with (folder / "events.txt").open("a") as events:
                    events.write(event + "\n")
        if restart_at is not None:
            server.start()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for pending in folder.glob("runs/pending/*.jsonl"):
            command = [sys.executable, "-m", "tracking", str(pending)]
            subprocess.run(command, cwd=folder, env=environment, check=True)
    finally:
        server.stop()
    events = (folder / "events.txt").read_text().split()
    return {event: events.count(event) for event in EVENTS}


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run that was written last."""
    return max(folder.glob("runs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)


def minutes_between_files(folder: Path) -> float:
    """Minutes between the first table of completions and the last checkpoint of a run."""
    (run,) = folder.glob("runs/*/config_fit.yaml")
    first = min(path.stat().st_mtime for path in run.parent.glob("completions/*"))
    return (latest_checkpoint(folder).stat().st_mtime - first) / 60


def final_weights(folder: Path) -> dict[str, Any]:
    """The weights of the last checkpoint."""
    return torch.load(latest_checkpoint(folder), weights_only=True)["state_dict"]


def metrics(uri: str) -> dict[tuple[str, int], set[float]]:
    """(metric, rollout) -> values, without speeds and the machine's load."""
    client, values = mlflow.MlflowClient(uri), {}
    for run in client.search_runs([client.get_experiment_by_name("lightning-posttrain").experiment_id]):
        for name in run.data.metrics:
            if not name.startswith(("perf/", "system/")):
                for point in client.get_metric_history(run.info.run_id, name):
                    values.setdefault((name, point.step), set()).add(point.value)
    return values


def main(rollouts: int = 1000, seed: int = 0, every: float = 60.0, out: str = "runs/soak") -> None:
    """Make both runs, compare them, print the table.

    Args:
        rollouts: rollouts per run.
        seed: seed of the events.
        every: mean number of seconds between two events.
        out: a folder; parts that an interrupted soak has finished there are not repeated.
    """
    folder = Path(out).absolute()
    calm, rough = folder / "undisturbed", folder / "disturbed"
    calm.mkdir(parents=True, exist_ok=True), rough.mkdir(exist_ok=True)
    samples_file = folder / "samples.json"
    if not samples_file.is_file():
        samples_file.write_text(json.dumps(undisturbed(calm, rollouts)))
    samples = np.array(json.loads(samples_file.read_text()))
    counts = disturbed(rough, rollouts, random.Random(seed), every)
    first, second = final_weights(calm), final_weights(rough)
    same_weights = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    expected, actual = metrics(f"sqlite:///{calm}/mlflow.db"), metrics(f"sqlite:///{rough}/server/mlflow.db")
    different = [key for key in {*expected, *actual} if actual.get(key) != expected.get(key)]
    rows = [
        ["minutes", f"{minutes_between_files(calm):.1f}", f"{minutes_between_files(rough):.1f}"],
        ["events", "none", ", ".join(f"{kind}: {count}" for kind, count in counts.items())],
        ["final weights", "", "equal bit for bit" if same_weights else "DIFFERENT"],
        [
            f"metrics, {len(expected)} points",
            "",
            f"{len(different)} differ, e.g. {different[:3]}" if different else "equal",
        ],
    ]
    heap = np.array([json.loads(line) for line in (calm / "heap.jsonl").read_text().splitlines()])
    samples, heap = (values[len(values) // 3 :] for values in (samples, heap))  # after warming up
    series = {
        "resident memory": (samples[:, 0], samples[:, 1], "MB"),
        "allocated memory": (heap[:, 0], heap[:, 2], "MB"),
        "open files": (samples[:, 0], samples[:, 2], "files"),
    }
    for name, (times, values, unit) in series.items():
        line = linregress(times / 3600, values)
        slope = f"slope {line.slope:+.1f} ± {1.96 * line.stderr:.1f} {unit} per hour"
        rows.append([name, f"{values.mean():.1f} {unit}, {slope}", ""])
    print(markdown_table([f"{rollouts} rollouts", "undisturbed", "disturbed"], rows))
    if different or not same_weights:
        sys.exit(1)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
