"""Long training with everything going wrong: kills, SIGTERM, an MLflow server that comes and goes, a reward that fails on some completions.

python benchmarks/soak.py --rollouts 1000        # about an hour

The same run is made twice, undisturbed and disturbed; both must end with the same weights and metrics. Resident memory and open files of the
undisturbed run are sampled every second, the bytes that its parts hold every 50 rollouts; their slopes are printed with 95 % intervals. What is
resident and held by nobody is the allocator's.
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
EVENTS = ("kill", "kill", "terminate", "server", "server")


def digits(completions: list[str]) -> list[float | None]:
    """A reward that is now and then slow, and has no answer for one text in about twenty; the same texts in every run."""
    if any(hash_of(text) % 200 == 0 for text in completions):
        time.sleep(0.2)
    return [
        None if hash_of(text) % 20 == 0 else sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions
    ]


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-8:], "big") * 2654435761 % 2**32


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


class Heap(L.Callback):
    """Write what malloc has given out and not got back to heap.jsonl: [time, rollouts, MB]."""

    def on_fit_start(self, *_: Any) -> None:
        self.libc = ctypes.CDLL(None)
        self.libc.mallinfo2.restype = Mallinfo

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if done % 50 == 10:  # away from validations and what they leave for a while
            gc.collect()
            found = self.libc.mallinfo2()
            with Path("heap.jsonl").open("a") as file:
                file.write(json.dumps([time.monotonic(), done, (found.uordblks + found.hblkhd) / 1e6]) + "\n")


class Server:
    """An MLflow server that can be killed and started again."""

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
        raise SystemExit("the MLflow server does not start; see " + str(self.folder / "server.log"))

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def begin(folder: Path, uri: str, rollouts: int) -> subprocess.Popen:
    reward = '[rewards.ExactAnswer,{"class_path":"rewards.FunctionReward","init_args":{"function":"benchmarks.soak.digits","weight":0.1}}]'
    arguments = [
        f"--config={ROOT}/configs/grpo.yaml", f"--model.policy.model={ROOT}/assets/tiny_reasoner", "--model.batch.prompts_per_rollout=4",
        "--model.batch.group_size=4", "--model.sampling.max_new_tokens=48", "--model.evaluation.sampling.max_new_tokens=48", f"--model.rewards={reward}",
        "--model.optimizer.init_args.lr=2e-5",
        "--data.train_size=512", "--data.val_size=16", f"--trainer.max_steps={rollouts}", "--trainer.val_check_interval=25",
        '--trainer.callbacks=[{"class_path":"callbacks.RolloutCheckpoint","init_args":{"every_n_rollouts":10}},"benchmarks.soak.Heap"]', "--trainer.enable_progress_bar=false",
        "--ckpt_path=last",
    ]  # fmt: skip
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
    process, samples = begin(folder, f"sqlite:///{folder}/mlflow.db", rollouts), []
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            samples.append(sample(process.pid))
        time.sleep(1)
    assert process.returncode == 0, (folder / "log.txt").read_text()[-2000:]
    return samples


def disturbed(folder: Path, rollouts: int, rng: random.Random, every: float) -> dict[str, int]:
    """Run to the end through one event about every so many seconds. Returns how many of each kind."""
    remembered = folder / "port.txt"  # what waits for a server waits for this one
    if not remembered.is_file():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            remembered.write_text(str(free.getsockname()[1]))
    port = int(remembered.read_text())
    server = Server(folder / "server", port)
    try:
        process, next_event, back_at = (
            begin(folder, f"http://127.0.0.1:{port}", rollouts),
            time.monotonic() + rng.expovariate(1 / every),
            None,
        )
        while True:
            time.sleep(0.2)
            if back_at is not None and time.monotonic() > back_at:
                server.start()
                back_at = None
            if process.poll() is not None:
                if process.returncode == 0:
                    break
                # 143 is ours; a SIGTERM that comes before training has begun ends the process as it ends any other
                assert process.returncode in (143, -signal.SIGKILL, -signal.SIGTERM), (
                    process.returncode,
                    (folder / "log.txt").read_text()[-2000:],
                )
                process = begin(folder, f"http://127.0.0.1:{port}", rollouts)
            if time.monotonic() > next_event:
                next_event = time.monotonic() + rng.expovariate(1 / every)
                event = rng.choice(EVENTS)
                if event == "server" and back_at is None:
                    server.stop()
                    back_at = time.monotonic() + rng.uniform(5, 60)
                elif event != "server":
                    process.send_signal(signal.SIGKILL if event == "kill" else signal.SIGTERM)
                else:
                    continue
                with (folder / "events.txt").open("a") as events:
                    events.write(event + "\n")
        if back_at is not None:
            server.start()
        for waiting in folder.glob("runs/pending/*.jsonl"):
            subprocess.run(
                [sys.executable, "-m", "tracking", str(waiting)],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                check=True,
            )
    finally:
        server.stop()
    happened = (folder / "events.txt").read_text().split()
    return {event: happened.count(event) for event in EVENTS}


def spent(folder: Path) -> float:
    """Minutes between the first and the last sign of a run."""
    (run,) = folder.glob("runs/*/config_fit.yaml")
    newest = max(folder.glob("runs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return (newest.stat().st_mtime - min(path.stat().st_mtime for path in run.parent.glob("completions/*"))) / 60


def final_weights(folder: Path) -> dict[str, Any]:
    newest = max(folder.glob("runs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return torch.load(newest, weights_only=True)["state_dict"]


def metrics(uri: str) -> dict[tuple[str, int], set[float]]:
    """(metric, rollout) -> values; speeds and the machine's load are left out."""
    client, found = mlflow.MlflowClient(uri), {}
    for run in client.search_runs([client.get_experiment_by_name("lightning-posttrain").experiment_id]):
        for name in run.data.metrics:
            if not name.startswith(("perf/", "system/")):
                for point in client.get_metric_history(run.info.run_id, name):
                    found.setdefault((name, point.step), set()).add(point.value)
    return found


def main(rollouts: int = 1000, seed: int = 0, every: float = 60.0, out: str = "runs/soak") -> None:
    """Make both runs, compare them, print the table.

    Args:
        rollouts: of each run. seed: of the events. every: mean seconds between two events. out: a folder; what a stopped soak has left there is not repeated.
    """
    folder = Path(out).absolute()
    calm, rough = folder / "undisturbed", folder / "disturbed"
    calm.mkdir(parents=True, exist_ok=True), rough.mkdir(exist_ok=True)
    kept = folder / "samples.json"
    if not kept.is_file():
        kept.write_text(json.dumps(undisturbed(calm, rollouts)))
    samples = np.array(json.loads(kept.read_text()))
    counts = disturbed(rough, rollouts, random.Random(seed), every)
    minutes = [spent(calm), spent(rough)]
    first, second = final_weights(calm), final_weights(rough)
    same_weights = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    expected, found = metrics(f"sqlite:///{calm}/mlflow.db"), metrics(f"sqlite:///{rough}/server/mlflow.db")
    wrong = [key for key in {*expected, *found} if found.get(key) != expected.get(key)]
    later = samples[len(samples) // 3 :]  # after warming up
    print(f"| {rollouts} rollouts | undisturbed | disturbed |\n|---|---|---|")
    print(f"| minutes | {minutes[0]:.1f} | {minutes[1]:.1f} |")
    print(f"| events | none | {', '.join(f'{kind}: {count}' for kind, count in counts.items())} |")
    print(f"| final weights | | {'equal bit for bit' if same_weights else 'DIFFERENT'} |")
    print(
        f"| metrics, {len(expected)} points | | {'equal' if not wrong else f'{len(wrong)} differ, e.g. {wrong[:3]}'} |"
    )
    held = np.array([json.loads(line) for line in (calm / "heap.jsonl").read_text().splitlines()])
    held = held[len(held) // 3 :]
    rows = {
        "resident memory": (later[:, 0], later[:, 1], "MB"),
        "held": (held[:, 0], held[:, 2], "MB"),
        "open files": (later[:, 0], later[:, 2], "files"),
    }
    for name, (times, values, unit) in rows.items():
        line = linregress(times / 3600, values)
        print(
            f"| {name} | {values.mean():.1f} {unit}, slope {line.slope:+.1f} ± {1.96 * line.stderr:.1f} {unit} an hour | |"
        )
    if wrong or not same_weights:
        sys.exit(1)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
