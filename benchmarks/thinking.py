"""When to think: AdaptThink and AutoThink beside GRPO with and without a price on tokens, from the same start.

python benchmarks/thinking.py            # runs what has no result yet, then prints the tables and draws docs/plots/*.png
python benchmarks/thinking.py --only '[adapt]' --run false

Every arm is a configuration with changes and runs through main.py; its metrics land in runs/thinking/<arm>_<seed>.json, so that an
interrupted benchmark goes on where it stopped. About four minutes a run on one core.
"""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
from jsonargparse import auto_cli

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("runs/thinking")
URI = f"sqlite:///{RESULTS}/mlflow.db"
LEVELS = [f"addition-{n}" for n in range(1, 6)]
SHARE = dict(zip(LEVELS, (2 / 7, 2 / 7, 1 / 7, 1 / 7, 1 / 7), strict=True))
SAME = ["--model.policy.model=assets/tiny_switcher", "--data.levels=[1,1,2,2,3,4,5]", "--data.train_size=1024", "--data.val_size=350"]
GRPO = ["--config=configs/grpo.yaml", *SAME, "--trainer.max_steps=120"]
PRICED = '--model.rewards=[{"class_path": "rewards.ExactAnswer"}, {"class_path": "rewards.LengthPenalty", "init_args": {"scale": 72, "weight": %s}}]'
ADAPT, AUTO = ["--config=configs/adapt_think.yaml"], ["--config=configs/auto_think.yaml"]
#: arm -> (arguments, seeds)
ARMS: dict[str, tuple[list[str], list[int]]] = {
    "adapt": (ADAPT, [0, 1, 2]),
    "auto": (AUTO, [0, 1, 2]),
    "grpo": (GRPO, [0]),
    "grpo_length": ([*GRPO, PRICED % 0.2], [0]),
    "adapt_delta_0": ([*ADAPT, "--model.delta=0.0"], [0]),
    "adapt_delta_0.2": ([*ADAPT, "--model.delta=0.2"], [0]),
    "adapt_delta_0.5": ([*ADAPT, "--model.delta=0.5"], [0]),
    "adapt_unforced": ([*ADAPT, "--model.forcing.share=0.0"], [0]),
}


def run_arm(arm: str, seed: int) -> None:
    arguments, _ = ARMS[arm]
    name = f"{arm} {seed}"
    logger = ["--trainer.logger.init_args.tracking_uri=" + URI, f"--trainer.logger.init_args.run_name={name}"]
    command = [sys.executable, str(ROOT / "main.py"), "fit", *arguments, f"--seed_everything={seed}", *logger]
    with (RESULTS / f"{arm}_{seed}.log").open("w") as log:
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    client = mlflow.MlflowClient(URI)
    experiment = client.get_experiment_by_name("lightning-posttrain")
    run = client.search_runs([experiment.experiment_id], f"run_name = '{name}'", order_by=["start_time DESC"])[0]
    history = {
        metric: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
        for metric in run.data.metrics
        if not metric.startswith("system/")
    }
    minutes = (run.info.end_time - run.info.start_time) / 60_000
    (RESULTS / f"{arm}_{seed}.json").write_text(json.dumps({"minutes": minutes, "metrics": history}))


def main(run: bool = True, only: list[str] | None = None) -> None:
    """Run the arms that have no result, then report on all that have.

    Args:
        run: False reports only. only: names of arms.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    for arm, (_, seeds) in ARMS.items():
        for seed in seeds if run and (only is None or arm in only) else []:
            if not (RESULTS / f"{arm}_{seed}.json").is_file():
                print(f"{arm}, seed {seed}", flush=True)
                run_arm(arm, seed)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
