"""ProRL with and without reference resets on five families of reasoning-gym, and its parts on sums of five levels.

    python benchmarks/prorl.py                       # run arms without a result, print the tables, draw the plots
    python benchmarks/prorl.py --only '[reset]'      # these arms only
    python benchmarks/prorl.py --run false           # the report only

Every arm is configs/prorl.yaml with changes. Its curves, and pass@k for k up to 64 on held-out problems, are stored in
runs/prorl/<arm>_<seed>.json, so that an interrupted benchmark continues where it stopped. The plots are
docs/plots/prorl.png, clip_higher.png and dynamic_sampling.png.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table  # noqa: E402
from benchmarks.experiments import Results, finished, fit, result_path, validate  # noqa: E402
from benchmarks.figures import arm_styles, draw_seeds, panels  # noqa: E402
from lightning_modules.core.problem_counts import pass_at_k  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402

RESULTS = Path("runs/prorl")
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
    "--model.batch.prompts_per_rollout=15",
    "--model.batch.updates_per_rollout=1",
    "--model.optimizer.lr=3.0e-4",
]
#: arm -> arguments after configs/prorl.yaml
ARMS: dict[str, list[str]] = {
    "reset": [],
    "no_reset": [f"--trainer.callbacks=[{CHECKPOINT}]"],
    "reset_keep_moments": [f"--trainer.callbacks=[{CHECKPOINT},{RESET % 'false'}]"],
    "sums": [*SUMS, "--model.batch.refill=3.0"],
    "sums_no_refill": [*SUMS, "--model.batch.refill=0"],
    "reset_symmetric_clip": ["--model.loss.clip_high=0.2"],
}
#: arm -> optimiser steps per rollout, where it is not the configuration's four
UPDATES = {"sums": 1, "sums_no_refill": 1}
SEEDS = {arm: [0] if arm == "reset_keep_moments" else [0, 1, 2] for arm in ARMS}
KS = (1, 2, 4, 8, 16, 32, 64)


@torch.no_grad()
def passes(module: Any, data: Any, problems: int = 20) -> dict[str, dict[str, float]]:
    """pass@k by family, from 64 samples of each of its first held-out problems."""
    rows = data.rows("val")
    by_task = {}
    for task in sorted({row["task"] for row in rows}):
        task_rows = [row for row in rows if row["task"] == task][:problems]
        with isolated_rng("pass at k", task):
            batch = module.sample(task_rows, 64, module.sampling)
        correct = torch.stack([values >= 1 for values in module.score(batch).values()]).any(0).view(len(task_rows), -1)
        by_task[task] = {str(k): float(pass_at_k(correct, k).mean()) for k in KS}
    return by_task


def run_arm(arm: str, seed: int, rollouts: int) -> None:
    """Train one arm and store its result."""
    steps = rollouts * UPDATES.get(arm, 4)
    settings = [f"--seed_everything={seed}", f"--trainer.max_steps={steps}"]
    cli, result = fit(RESULTS, f"{arm} {seed}", ["--config=configs/prorl.yaml", *ARMS[arm], *settings])
    if "reset" in arm:
        result["pass@k"] = passes(cli.model, cli.datamodule)
    atomic_write_text(result_path(RESULTS, arm, seed), json.dumps(result))


def run_start() -> None:
    """Store pass@k of the model that every arm starts from."""
    cli = validate(RESULTS, ["--config=configs/prorl.yaml"])
    atomic_write_text(result_path(RESULTS, "start", 0), json.dumps({"pass@k": passes(cli.model, cli.datamodule)}))


# ---- the report ------------------------------------------------------------------------------------------------------


def mean_between(points: list[tuple[int, float]], first: float, end: float) -> float:
    """Mean of a curve between two fractions of its length, of one value at least."""
    start = int(first * len(points))
    values = [value for _, value in points[start : max(start + 1, int(end * len(points)))]]
    return sum(values) / len(values)


def table(results: Results) -> str:
    """Accuracy, KL, entropy and minutes of every run."""
    head = ["arm", "seed", "val/pass@1: first third", "second third", "last third", "end"]
    head += ["KL at the end", "entropy at the end", "minutes"]
    rows = []
    for (arm, seed), result in results.items():
        if "curves" not in result:
            continue
        accuracy = result["curves"]["val/pass1"]
        thirds = [f"{mean_between(accuracy, i / 3, (i + 1) / 3):.3f}" for i in range(3)]
        end = [f"{mean_between(result['curves'][name], 0.95, 1):.3g}" for name in ("train/kl", "train/entropy")]
        rows.append([arm, str(seed), *thirds, f"{accuracy[-1][1]:.3f}", *end, f"{result['minutes']:.1f}"])
    return markdown_table(head, rows)


def pass_table(results: Results) -> str:
    """pass@k of every family and run."""
    measured = {key: result["pass@k"] for key, result in results.items() if "pass@k" in result}
    rows = [
        [task, str(k), *(f"{pass_at[task][str(k)]:.3f}" for pass_at in measured.values())]
        for task in next(iter(measured.values()))
        for k in KS
    ]
    return markdown_table(["problems", "k", *(f"{arm} {seed}" for arm, seed in measured)], rows)


LABELS = {
    "val/pass1": "val/pass@1",
    "train/reward": "train/reward",
    "train/kl": "train/kl, nats per token",
    "train/entropy": "train/entropy",
    "train/no_signal_left": "groups without signal, of the trained ones",
    "train/clip_fraction": "fraction of tokens clipped",
}


TITLES = {
    "prorl": "Resets of the reference keep pass@1 rising where the KL term holds the policy back",
    "clip_higher": "An upper clip of 0.4 beside 0.2: no difference at this learning rate",
    "dynamic_sampling": "Dynamic sampling replaces groups without signal",
}


def plot(results: Results, arms: list[str], metrics: list[str], out: str) -> None:
    """Draw metrics against rollouts."""
    styles = arm_styles(arms, baseline="no_reset")
    with panels([LABELS[metric] for metric in metrics], TITLES[Path(out).stem]) as (figure, axes):
        for panel, metric in zip(axes, metrics, strict=True):
            for arm, style in styles.items():
                runs = [
                    result
                    for (name, _), result in results.items()
                    if name == arm and metric in result.get("curves", {})
                ]
                draw_seeds(
                    panel, [[(step + 1, value) for step, value in run["curves"][metric]] for run in runs], arm, style
                )
            panel.set_xlabel("rollouts")
        axes[0].legend()
        figure.savefig(out, dpi=110)


def main(run: bool = True, only: list[str] | None = None, rollouts: int = 120, seeds: int = 3) -> None:
    """Run the arms without a result, then report on all results.

    Args:
        run: whether to train; False reports only.
        only: names of arms; all by default.
        rollouts: rollouts per run; the long version has 600.
        seeds: number of seeds.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    families = [arm for arm in only or ARMS if "reset" in arm]
    if run and families and not result_path(RESULTS, "start", 0).is_file():
        run_start()
    for seed in range(seeds) if run else []:
        for arm in (arm for arm in ARMS if only is None or arm in only):
            if seed in SEEDS[arm] and not result_path(RESULTS, arm, seed).is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                run_arm(arm, seed, rollouts)
    results = finished(RESULTS, {"start": [0]} | SEEDS)
    print(table(results))
    print(f"\n{pass_table(results)}")
    plots = {
        "prorl": (["reset", "no_reset", "reset_keep_moments"], ["train/kl", "train/entropy"]),
        "clip_higher": (["reset", "reset_symmetric_clip"], ["train/entropy", "train/clip_fraction"]),
        "dynamic_sampling": (["sums", "sums_no_refill"], ["train/no_signal_left"]),
    }
    for name, (arms, metrics) in plots.items():
        plot(results, arms, ["val/pass1", "train/reward", *metrics], f"docs/plots/{name}.png")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
