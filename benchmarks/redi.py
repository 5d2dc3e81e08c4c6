"""Compare REDI with DPO and SimPO from the same start, SFT on right traces, three seeds.

    python benchmarks/redi.py                     # run arms without a result, print the table
    python benchmarks/redi.py --only '[redi]'     # these arms only
    python benchmarks/redi.py --run false         # the table only

Needs runs/redi/positives.jsonl and pairs.jsonl (`make redi`). A seed decides the order of the rows in both stages.
Every arm ends with three validations: log-probs and margins on all and on held-out pairs, and pass@1 on held-out sums.
Results are runs/redi/arms/<arm>_<seed>.json, so that an interrupted benchmark continues where it stopped.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

ARMS_FOLDER = Path("runs/redi/arms")
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
#: arm -> arguments after configs/redi.yaml; "sft" is the start of the others
ARMS: dict[str, list[str]] = {
    "sft": [],
    "redi": [],
    "redi, alpha 1.2": ["--model.loss.alpha=1.2"],
    "dpo": ["--model.loss=objectives.DPO"],
    "simpo": ["--model.loss=objectives.SimPO"],
}
#: heading -> metric of a result; l is the mean log-prob per token
COLUMNS = {
    "l, right": "all/logprob/chosen",
    "l, wrong": "all/logprob/rejected",
    "margin": "all/margin",
    "l, right, held-out": "held_out/logprob/chosen",
    "margin, held-out": "held_out/margin",
    "pass@1": "pass@1",
}


PAIR_METRICS = ("logprob/chosen", "logprob/rejected", "margin")


def _run(stage: str, configs: list[str], arguments: list[str], seed: int) -> dict[str, float]:
    """Metrics of one command."""
    files = [f"--config=configs/{name}.yaml" for name in configs]
    cli = command_line([stage, *files, f"--seed_everything={seed}", *QUIET, *arguments])
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def _exported(arm: str, seed: int) -> str:
    return str(ARMS_FOLDER / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}")


def _to(folder: str) -> str:
    callback = {"class_path": "callbacks.ExportPolicy", "init_args": {"folder": folder}}
    return f"--trainer.callbacks={json.dumps([callback])}"


def train(arm: str, seed: int, samples: int) -> dict[str, float]:
    """Train one arm, and measure it."""
    folder, start = _exported(arm, seed), _exported("sft", seed)
    without = "--trainer.limit_val_batches=0"
    if arm == "sft":
        _run("fit", ["redi/3_sft"], [without, _to(folder)], seed)
    else:
        _run("fit", ["redi"], [f"--model.policy.model={start}", without, _to(folder), *ARMS[arm]], seed)
    model = f"--model.policy.model={folder}"
    sums = _run("validate", ["grpo"], [model, f"--model.evaluation.samples={samples}"], 0)
    results = {"pass@1": sums["val/pass@1"]}
    for name, share in (("held_out", []), ("all", ["--data.val_share=1.0"])):
        metrics = _run("validate", ["redi"], [model, *share], 0)
        results |= {f"{name}/{metric}": metrics[f"val/{metric}"] for metric in PAIR_METRICS}
    return results


def main(seeds: int = 3, only: list[str] | None = None, run: bool = True, samples: int = 4) -> None:
    """Run what has no result yet and print the table.

    Args:
        seeds: number of seeds. only: arms to run; all if None. run: whether to run, or only to print.
        samples: completions per held-out sum.
    """
    use_threads()
    for seed in range(seeds):
        for arm in ARMS if only is None else only:
            path = Path(f"{_exported(arm, seed)}.json")
            if run and not path.is_file():
                result = train(arm, seed, samples)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(path, json.dumps(result, indent=1))
    print(table(seeds))


def table(seeds: int) -> str:
    """Mean and range over the seeds of every arm."""
    rows = []
    for arm in ARMS:
        paths = [Path(f"{_exported(arm, seed)}.json") for seed in range(seeds)]
        results: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths if path.is_file()]
        if results:
            rows.append(
                [arm, str(len(results)), *(_shown([one[name] for one in results]) for name in COLUMNS.values())]
            )
    return markdown_table(["arm", "seeds", *COLUMNS], rows)


def _shown(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    run_script(main)
