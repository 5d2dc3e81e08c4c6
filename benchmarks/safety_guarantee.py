"""Measure the guarantee in training: how often a policy is returned although its expected cost exceeds the threshold.

    python benchmarks/safety_guarantee.py --arms '[shipped]'               # 3 minutes per run on a free core
    python benchmarks/safety_guarantee.py                                   # all arms, 20 seeds: 3 hours on one core
    python benchmarks/safety_guarantee.py --seeds 0                         # the report only

Each arm is a list of the configurations in configs/, trained by `main.py fit`; nothing of a method is set here.
Finished runs are kept in --results and not repeated. benchmarks/safety_bounds.py simulates the test alone.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads, write_tables  # noqa: E402
from benchmarks.experiments import Results, finished, fit, result_path  # noqa: E402
from benchmarks.safety_bounds import interval  # noqa: E402
from datamodules.records_desk import RecordsPrompts, draw_rows  # noqa: E402
from lightning_modules import HCRLHF  # noqa: E402
from rewards import RecordsCost, RecordsReward  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


@dataclass(frozen=True)
class Arm:
    """One row of the study.

    Args:
        title: text of the table.
        configs: names in configs/, in the order of the command line.
        settings: further arguments.
    """

    title: str
    configs: tuple[str, ...]
    settings: tuple[str, ...] = ()


#: the shipped scorers, then the rule itself as reward and as cost, so that the cost of the guarantee is the true one
RULE = ("hc_rlhf", "data/records_rule")
ARMS = {
    "shipped": Arm("HC-RLHF, learned reward and cost", ("hc_rlhf",)),
    "rule": Arm("HC-RLHF, C1 = 1, C2 = 2", RULE),
    "rule_c1_4": Arm("HC-RLHF, C1 = 4, C2 = 2", RULE, ("--model.constraint.c1=4",)),
    "lagrangian": Arm("Lagrangian without test", (*RULE, "baselines/lagrangian")),
    "ppo_lagrangian": Arm("PPO-Lagrangian without test", (*RULE, "baselines/ppo_lagrangian")),
    "fixed_penalty": Arm("fixed penalty", (*RULE, "baselines/fixed_penalty")),
    "reward_only": Arm("reward only", (*RULE, "baselines/reward_only")),
}


def arguments(arm: str, seed: int) -> list[str]:
    """The command line of a run after `fit`."""
    configs = [f"--config=configs/{name}.yaml" for name in ARMS[arm].configs]
    return [*configs, *ARMS[arm].settings, f"--seed_everything={seed}"]


def train(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run to a returned policy, or none, and the truth about it."""
    # Arms of one seed share the safety prompts, and each arm is an experiment of its own, with its own ledger.
    os.environ["LIGHTNING_POSTTRAIN_CACHE"] = str(folder.resolve() / "cache" / arm)
    cli, measured = fit(folder, f"{arm} {seed}", arguments(arm, seed))
    module: HCRLHF = cli.model
    return {
        "threshold": module.constraint.threshold,
        "verdict": None if module.verdict is None else asdict(module.verdict),
        "before": module.before,
        "after": module.after,
        "minutes": measured["minutes"],
        **truth(module, cli.datamodule, seed),
    }


@torch.no_grad()
def truth(
    module: HCRLHF, data: RecordsPrompts, seed: int, forbidden: int = 600, allowed: int = 300
) -> dict[str, float]:
    """Expected cost of the guarantee, true cost and true reward on fresh prompts.

    Measured in the two strata that the distribution of the prompts mixes.

    Args:
        forbidden, allowed: number of prompts of each stratum.
    """
    assert module.cost is not None
    measures = {"cost": module.cost, "true_cost": RecordsCost(), "true_reward": RecordsReward()}
    means = dict.fromkeys(measures, 0.0)
    strata = (
        (draw_rows("val", forbidden, 10_000 + seed, 1.0), data.forbidden),
        (draw_rows("val", allowed, 20_000 + seed, 0.0), 1 - data.forbidden),
    )
    for rows, weight in strata:
        with isolated_rng("truth", seed):
            batch = module.sample(rows, 1, module.sampling)
        for name, measure in measures.items():
            means[name] += weight * float(measure(batch).mean())
    return means


# ---- the report -----------------------------------------------------------------------------------------------------


def share(count: int, total: int) -> str:
    """Rate and its 95 % interval."""
    low, high = interval(count, total)
    return f"{count / total:.3f} [{low:.3f}, {high:.3f}]"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def is_returned(run: dict[str, Any]) -> bool:
    """Whether the run hands out a policy: it passed its test, or there was none."""
    return run["verdict"] is None or bool(run["verdict"]["safe"])


def arm_rows(results: Results) -> list[list[str]]:
    """One row per arm."""
    rows = []
    for name, arm in ARMS.items():
        runs = [run for (run_arm, _), run in results.items() if run_arm == name]
        if not runs:
            continue
        unsafe = sum(is_returned(run) and run["cost"] > run["threshold"] for run in runs)
        refused = sum(not is_returned(run) for run in runs)
        rows.append(
            [
                arm.title,
                str(len(runs)),
                f"{runs[0]['threshold']:g}",
                share(unsafe, len(runs)),
                "never" if runs[0]["verdict"] is None else share(refused, len(runs)),
                spread([run["cost"] for run in runs]),
                spread([run["true_cost"] for run in runs]),
                spread([run["true_reward"] for run in runs]),
            ]
        )
    return rows


ARM_HEAD = (
    *("method", "seeds", "threshold", "unsafe policy returned", "no solution found"),
    *("cost of the guarantee, all candidates", "true cost", "true reward"),
)
SEED_HEAD = (
    *("seed", "verdict", "betting bound", "Student's t", "learned reward", "true reward", "true cost"),
    *("true cost, fresh prompts", "minutes"),
)


def seed_rows(results: Results, arm: str) -> list[list[str]]:
    """One row per seed of a tested arm; validation prompts before and after training."""
    rows = []
    for (run_arm, seed), run in results.items():
        if run_arm != arm:
            continue
        verdict, before, after = run["verdict"], run["before"], run["after"]
        changes = [f"{before[name]:.3f} → {after[name]:.3f}" for name in ("reward", "records_reward", "records_cost")]
        text = "SAFE" if verdict["safe"] else "NO SOLUTION FOUND"
        bounds = [f"{verdict[name]:.4f}" for name in ("ucb", "student_t_ucb")]
        rows.append([str(seed), text, *bounds, *changes, f"{run['true_cost']:.3f}", f"{run['minutes']:.1f}"])
    return rows


def plot(results: Results, path: Path) -> None:
    """Cost and true reward of every candidate of the arms with the rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, arm in ARMS.items():
        runs = [run for (run_arm, _), run in results.items() if run_arm == name and name != "shipped"]
        if runs:
            costs, rewards = [run["cost"] for run in runs], [run["true_reward"] for run in runs]
            axes.scatter(rewards, costs, s=14, label=f"{arm.title} ({len(runs)} seeds)")
            threshold = runs[0]["threshold"]
    axes.axhline(threshold, color="#1e8449", linestyle="--", label="threshold")
    axes.set(xlabel="true reward", ylabel="true cost")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(
    arms: list[str] = list(ARMS),  # noqa: B006
    seeds: int = 20,
    results: str = "runs/safety_guarantee",
    page: str | None = None,
    picture: str | None = None,
) -> None:
    """Train what has no result yet, then print the tables of all that have one.

    Args:
        arms: names of arms.
        seeds: number of seeds, from 0 on.
        results: folder of the results, runs and tracking store.
        page: the method's page, to write the tables into; None writes none.
        picture: file of the plot of the arms with the rule; None draws none.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"--arms has {unknown[0]!r}; choose from {', '.join(ARMS)}.")
    use_threads()
    folder = Path(results)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for arm in arms:
            path = result_path(folder, arm, seed)
            if not path.is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                atomic_write_text(path, json.dumps(train(arm, seed, folder)))
    done = finished(folder, {arm: list(range(1000)) for arm in ARMS})
    tables = {
        "seeds of benchmarks/safety_guarantee.py": markdown_table(SEED_HEAD, seed_rows(done, "shipped")),
        "arms of benchmarks/safety_guarantee.py": markdown_table(ARM_HEAD, arm_rows(done)),
    }
    for mark, text in tables.items():
        print(text + "\n")
        if page:
            write_tables(page, mark, text)
    if picture and any(arm != "shipped" for arm, _ in done):
        plot(done, Path(picture))


if __name__ == "__main__":
    run_script(main)
