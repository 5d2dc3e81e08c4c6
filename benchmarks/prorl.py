"""Do resets of the reference keep a long run improving? ProRL with and without them, on five families of reasoning-gym; its parts on sums of five levels.

python benchmarks/prorl.py                       # runs what has no result yet, then prints the tables and draws docs/plots/prorl*.png
python benchmarks/prorl.py --only '[reset]'      # these arms only
python benchmarks/prorl.py --run false           # the report only

Every arm is configs/prorl.yaml with changes. Its curves and pass@k for k up to 64 on held-out problems land in runs/prorl/<arm>_<seed>.json, so that an
interrupted benchmark goes on where it stopped.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.experiments import Found, curves, finished  # noqa: E402
from lightning_modules.core.problem_counts import pass_at_k  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402

RESULTS = Path("runs/prorl")
URI = f"sqlite:///{RESULTS}/mlflow.db"
CHECKPOINT = '{"class_path":"callbacks.RolloutCheckpoint"}'
RESET = '{"class_path":"callbacks.ReferenceReset","init_args":{"every_n_rollouts":30,"reset_optimizer":%s}}'
#: one family with levels, on which the clip and dynamic sampling are compared
SUMS = [
    "--model.policy.model=assets/tiny_reasoner",
    '--model.rewards=[{"class_path":"rewards.ExactAnswer"}]',
    "--data=datamodules.ArithmeticPrompts",
    "--data.levels=[1,2,3,4,5]",
    f"--trainer.callbacks=[{CHECKPOINT}]",
    "--model.kl.coefficient=0.0",
]
#: many steps on each rollout, so that ratios leave the clip's range; no KL, which would hold the entropy too
OFF_POLICY = [
    "--model.batch.updates_per_rollout=5",
    "--model.batch.epochs=2",
    "--model.optimizer.init_args.lr=1.0e-4",
    "--model.batch.refill=0",
    "--model.kl.coefficient=0.0",
    f"--trainer.callbacks=[{CHECKPOINT}]",
]
#: arm -> arguments after configs/prorl.yaml
ARMS: dict[str, list[str]] = {
    "reset": [],
    "no_reset": [f"--trainer.callbacks=[{CHECKPOINT}]"],
    "reset_keep_moments": [f"--trainer.callbacks=[{CHECKPOINT},{RESET % 'false'}]"],
    "sums": [*SUMS, "--model.batch.refill=3.0"],
    "sums_no_refill": [*SUMS, "--model.batch.refill=0"],
    "clip_higher": OFF_POLICY,
    "symmetric_clip": [*OFF_POLICY, "--model.loss=objectives.ClippedSurrogate", "--model.loss.clip_high=0.2"],
}
#: optimiser steps of a rollout, where it is not one
UPDATES = {"clip_higher": 10, "symmetric_clip": 10}
SEEDS = {arm: [0] if arm == "reset_keep_moments" else [0, 1, 2] for arm in ARMS}
KS = (1, 2, 4, 8, 16, 32, 64)


@torch.no_grad()
def passes(module: Any, data: Any, problems: int = 20) -> dict[str, dict[str, float]]:
    """pass@k by family, from 64 samples of each of its first held-out problems."""
    rows = data.rows("val")
    found = {}
    for task in sorted({row["task"] for row in rows}):
        chosen = [row for row in rows if row["task"] == task][:problems]
        with isolated_rng("pass at k", task):
            batch = module.sample(chosen, 64, module.sampling)
        correct = torch.stack([values >= 1 for values in module.score(batch).values()]).any(0).view(len(chosen), -1)
        found[task] = {str(k): float(pass_at_k(correct, k).mean()) for k in KS}
    return found


def run_arm(arm: str, seed: int, rollouts: int) -> None:
    started = time.perf_counter()
    given = [
        "--config=configs/prorl.yaml",
        *ARMS[arm],
        f"--seed_everything={seed}",
        f"--trainer.max_steps={rollouts * UPDATES.get(arm, 1)}",
    ]
    logger = ["--trainer.logger.init_args.tracking_uri=" + URI, f"--trainer.logger.init_args.run_name={arm} {seed}"]
    cli = command_line(["fit", *given, *logger, f"--trainer.default_root_dir={RESULTS}"])
    minutes = (time.perf_counter() - started) / 60
    found = {"minutes": minutes, "curves": curves(URI, f"{arm} {seed}")}
    if "reset" in arm:
        found["pass@k"] = passes(cli.model, cli.datamodule)
    atomic_write_text(RESULTS / f"{arm}_{seed}.json", json.dumps(found))


def run_start() -> None:
    """pass@k of the model that every arm begins with."""
    cli = command_line(
        ["validate", "--config=configs/prorl.yaml", "--trainer.logger=false", f"--trainer.default_root_dir={RESULTS}"]
    )
    atomic_write_text(RESULTS / "start_0.json", json.dumps({"pass@k": passes(cli.model, cli.datamodule)}))


# ---- the report ---------------------------------------------------------------------------------------------------------------


def last(points: list[tuple[int, float]], first: float, end: float) -> float:
    """Mean of a curve between two fractions of it."""
    part = [
        value
        for _, value in points[int(first * len(points)) : max(int(first * len(points)) + 1, int(end * len(points)))]
    ]
    return sum(part) / len(part)


def table(found: Found) -> str:
    lines = [
        "| arm | seed | val/pass@1: first third | second third | last third | end | KL at the end | entropy at the end | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (arm, seed), result in found.items():
        if "curves" not in result:
            continue
        score = result["curves"]["val/pass1"]
        thirds = [f"{last(score, i / 3, (i + 1) / 3):.3f}" for i in range(3)]
        end = [f"{last(result['curves'][name], 0.95, 1):.3g}" for name in ("train/kl", "train/entropy")]
        lines.append(
            f"| {arm} | {seed} | {' | '.join(thirds)} | {score[-1][1]:.3f} | {' | '.join(end)} | {result['minutes']:.1f} |"
        )
    return "\n".join(lines)


def pass_table(found: Found) -> str:
    found = {key: result for key, result in found.items() if "pass@k" in result}
    lines = [
        "| problems | k | " + " | ".join(f"{arm} {seed}" for arm, seed in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]
    for task in next(iter(found.values()))["pass@k"]:
        for k in KS:
            cells = " | ".join(f"{result['pass@k'][task][str(k)]:.3f}" for result in found.values())
            lines.append(f"| {task} | {k} | {cells} |")
    return "\n".join(lines)


LABELS = {
    "val/pass1": "val/pass@1",
    "train/reward": "train/reward",
    "train/kl": "train/kl, nats a token",
    "train/entropy": "train/entropy",
    "train/no_signal_left": "groups without signal, of those learned from",
    "train/clip_fraction": "share of tokens clipped",
}


def plot(found: Found, arms: list[str], metrics: list[str], out: str) -> None:
    """Metrics against rollouts, a line a seed."""
    figure = Figure(figsize=(3.8 * len(metrics), 3.2), layout="constrained")
    for panel, metric in zip(figure.subplots(1, len(metrics)), metrics, strict=True):
        for (arm, seed), result in found.items():
            if arm in arms and metric in result.get("curves", {}):
                style = {"color": f"C{arms.index(arm)}", "linewidth": 1, "label": arm if seed == 0 else None}
                panel.plot(*zip(*((step + 1, value) for step, value in result["curves"][metric]), strict=True), **style)
        panel.set(xlabel="rollouts", ylabel=LABELS[metric])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(out, dpi=100)


def main(run: bool = True, only: list[str] | None = None, rollouts: int = 120, seeds: int = 3) -> None:
    """Run the arms that have no result, then report on all that have.

    Args:
        run: False reports only. only: names of arms. rollouts: of every run; the long version is 600. seeds: how many.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    families = [arm for arm in only or ARMS if "reset" in arm]
    if run and families and not (RESULTS / "start_0.json").is_file():
        run_start()
    for seed in range(seeds) if run else []:
        for arm in ARMS:
            if seed in SEEDS[arm] and (only is None or arm in only) and not (RESULTS / f"{arm}_{seed}.json").is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                run_arm(arm, seed, rollouts)
    found = finished(RESULTS, {"start": [0]} | SEEDS)
    print(table(found))
    print(f"\n{pass_table(found)}")
    both = ["val/pass1", "train/reward"]
    plot(
        found, ["reset", "no_reset", "reset_keep_moments"], [*both, "train/kl", "train/entropy"], "docs/plots/prorl.png"
    )
    plot(
        found,
        ["clip_higher", "symmetric_clip"],
        [*both, "train/entropy", "train/clip_fraction"],
        "docs/plots/clip_higher.png",
    )
    plot(found, ["sums", "sums_no_refill"], [*both, "train/no_signal_left"], "docs/plots/dynamic_sampling.png")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
