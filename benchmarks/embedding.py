"""Train configs/t_vec.yaml and its variants, three seeds, and show held-out triplets and the control before and after.

    python benchmarks/embedding.py                           # the embedded decoder
    python benchmarks/embedding.py --only '[minilm]'         # a real encoder (make wheels)
    python benchmarks/embedding.py --run false               # the table only

Results are runs/embedding/<arm>_<seed>.json, so that an interrupted benchmark continues where it stopped.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

MINILM = [
    "--model.policy.model=all-minilm-l6-v2",
    "--model.pooling=mean",
    "--model.instruction=",
    "--model.domain_tokens=0",
    "--model.optimizer.lr=1e-4",
    "--trainer.max_steps=30",
]
ARMS = {
    "triplet": [],
    "mnr": ["--model.loss=objectives.MultipleNegatives"],
    "minilm": MINILM,
}
COLUMNS = {
    "accuracy": "accuracy@0",
    "accuracy, margin 0.3": "accuracy@0.3",
    "recall@1": "recall@1",
    "general accuracy": "accuracy@0/general",
    "general, margin 0.3": "accuracy@0.3/general",
    "general recall@1": "recall@1/general",
}
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
RESULTS = Path("runs/embedding")
Metrics = dict[str, float]


def train(arm: str, seed: int) -> dict[str, Metrics]:
    """Held-out metrics before and after training."""
    arguments = ["--config=configs/t_vec.yaml", f"--seed_everything={seed}", *QUIET, *ARMS[arm]]
    results = {}
    for stage, command in (("before", ["validate"]), ("after", ["fit", "--trainer.limit_val_batches=0"])):
        cli = command_line([*command, *arguments])
        if stage == "after":
            cli.trainer.limit_val_batches = 1.0
            cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
        results[stage] = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return results


def main(seeds: int = 3, only: list[str] | None = None, run: bool = True) -> None:
    """Run what has no result yet and print the table.

    Args:
        seeds: number of seeds. only: arms to run; all if None. run: whether to run, or only to print.
    """
    use_threads()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds if run else 0):
        for arm in ARMS if only is None else only:
            path = RESULTS / f"{arm}_{seed}.json"
            if not path.is_file():
                atomic_write_text(path, json.dumps(train(arm, seed), indent=1))
    print(table(seeds))


def table(seeds: int) -> str:
    """Mean and range over the seeds of every arm, before and after."""
    rows = []
    for arm in ARMS:
        paths = [path for seed in range(seeds) if (path := RESULTS / f"{arm}_{seed}.json").is_file()]
        results: list[dict[str, Metrics]] = [json.loads(path.read_text()) for path in paths]
        for stage in ("before", "after") if results else ():
            cells = []
            for metric in COLUMNS.values():
                values = [one[stage][f"val/{metric}"] for one in results]
                cells.append(f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            rows.append([f"{arm}, {stage}", str(len(results)), *cells])
    return markdown_table(["arm", "seeds", *COLUMNS], rows)


if __name__ == "__main__":
    run_script(main)
