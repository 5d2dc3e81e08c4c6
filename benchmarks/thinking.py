"""When to think: AdaptThink and AutoThink beside GRPO with and without a price on tokens, from the same start.

python benchmarks/thinking.py                      # runs what has no result yet, then prints the tables and draws docs/plots/*.png
python benchmarks/thinking.py --only '[adapt]'     # these arms only
python benchmarks/thinking.py --run false          # the report only

Every arm is a configuration with changes and goes through main.py. Its curves and a final evaluation with eight samples a problem land in
runs/thinking/<arm>_<seed>.json, so that an interrupted benchmark goes on where it stopped. About five minutes a run on one core.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/thinking")
URI = f"sqlite:///{RESULTS}/mlflow.db"
LEVELS = [f"addition-{n}" for n in range(1, 6)]
EASY, HARD = LEVELS[:2], LEVELS[3:]
DATA = ["--data.levels=[1,1,2,2,3,4,5]", "--data.train_size=1024", "--data.val_size=350"]
GRPO = ["--config=configs/grpo.yaml", "--model.policy.model=assets/tiny_switcher", *DATA, "--trainer.max_steps=120"]
PRICE = '--model.rewards=[{"class_path":"rewards.ExactAnswer"},{"class_path":"rewards.LengthPenalty","init_args":{"scale":72,"weight":%s}}]'
ADAPT, AUTO = ["--config=configs/adapt_think.yaml"], ["--config=configs/auto_think.yaml"]
UNBALANCED = "--trainer.callbacks=[{class_path: callbacks.RolloutCheckpoint}]"
#: arm -> (stage of main.py, arguments, seeds)
ARMS: dict[str, tuple[str, list[str], list[int]]] = {
    "start": ("validate", GRPO[:-1], [0, 1, 2]),
    "adapt": ("fit", ADAPT, [0, 1, 2]),
    "auto": ("fit", AUTO, [0, 1, 2]),
    "grpo": ("fit", GRPO, [0]),
    "grpo_length_0.2": ("fit", [*GRPO, PRICE % 0.2], [0]),
    "adapt_unforced": ("fit", [*ADAPT, "--model.forcing.share=0.0"], [0]),
    "adapt_delta_0": ("fit", [*ADAPT, "--model.delta=0.0"], [0]),
    "adapt_delta_0.2": ("fit", [*ADAPT, "--model.delta=0.2"], [0]),
    "adapt_delta_0.5": ("fit", [*ADAPT, "--model.delta=0.5"], [0]),
    "start_ellipsis": ("validate", AUTO, [0, 1, 2]),
}


def curves(name: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of the newest run of this name, against rollouts."""
    client = mlflow.MlflowClient(URI)
    experiment = client.get_experiment_by_name("lightning-posttrain")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'", order_by=["start_time DESC"])[0]
    wanted = [metric for metric in run.data.metrics if metric.startswith(("train/", "val/"))]
    return {metric: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric)) for metric in wanted}


def run_arm(arm: str, seed: int) -> None:
    stage, arguments, _ = ARMS[arm]
    given = [*arguments, f"--seed_everything={seed}"]
    found: dict[str, Any] = {}
    started = time.perf_counter()
    if stage == "fit":
        logger = ["--trainer.logger.init_args.tracking_uri=" + URI, f"--trainer.logger.init_args.run_name={arm} {seed}"]
        cli = command_line(["fit", *given, *logger, f"--trainer.default_root_dir={RESULTS}"])
        found = {"minutes": (time.perf_counter() - started) / 60, "curves": curves(f"{arm} {seed}")}
        newest = sorted((RESULTS / str(cli.trainer.logger.version) / "checkpoints").glob("*.ckpt"))[-1]  # type: ignore[union-attr]
        given.append(f"--ckpt_path={newest}")
    fit_only = ("--trainer.max_steps", "--trainer.val_check_interval")
    given = [argument for argument in given if not argument.startswith(fit_only)]
    cli = command_line(
        ["validate", *given, "--model.evaluation.samples=8", "--trainer.logger=false", f"--trainer.default_root_dir={RESULTS}"]
    )
    found["final"] = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    atomic_write_text(RESULTS / f"{arm}_{seed}.json", json.dumps(found))


def main(run: bool = True, only: list[str] | None = None) -> None:
    """Run the arms that have no result, then report on all that have.

    Args:
        run: False reports only. only: names of arms.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    for arm, (_, _, seeds) in ARMS.items():
        for seed in seeds if run and (only is None or arm in only) else []:
            if not (RESULTS / f"{arm}_{seed}.json").is_file():
                print(f"=== {arm}, seed {seed}", flush=True)
                run_arm(arm, seed)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
