"""Compare methods that learn from given data, arm by arm, three seeds.

    python benchmarks/offline.py --what redi            # REDI beside DPO and SimPO, all from SFT on right traces
    python benchmarks/offline.py --what realignment     # TrRa: the student's length by the teacher's weight
    python benchmarks/offline.py --what inra            # InRa: length by the lambda chosen at inference
    python benchmarks/offline.py --what critique        # critiques of one problem beside SFT on one solution of it
    python benchmarks/offline.py --what sleep_cot       # rationales and answers beside answers only
    python benchmarks/offline.py --what redi --run false            # the table only

The files of `make redi`, `make critique` and `make sleep-cot` must be there. A seed decides the order of the rows.
Every arm ends with validations of its exported model. Results are runs/<what>/arms/<arm>_<seed>.json, so that an
interrupted benchmark continues where it stopped.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Arms that start alike.

    Fields:
        arms: arm -> (configuration, or None to measure without training; arguments of it; the arm or model that it
            starts from).
        measure: (model's folder, samples, arguments of an arm without training) -> metrics.
        columns: heading of the table -> metric.
        monitor: metric of the validation that chooses the checkpoint of an arm; None takes the last one.
    """

    arms: dict[str, tuple[str | None, list[str], str]]
    measure: Callable[..., Metrics]
    columns: dict[str, str]
    monitor: str | None = None


def _run(stage: str, config: str, arguments: list[str], seed: int = 0) -> Metrics:
    """Metrics of one command."""
    cli = command_line([stage, f"--config=configs/{config}.yaml", f"--seed_everything={seed}", *QUIET, *arguments])
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def _traces(model: str, samples: int) -> Metrics:
    """pass@1 on held-out sums, and log-probs on all and on held-out pairs."""
    policy = f"--model.policy.model={model}"
    results = {"pass@1": _run("validate", "grpo", [policy, f"--model.evaluation.samples={samples}"])["val/pass@1"]}
    for split, share in (("held_out", []), ("all", ["--data.val_share=1.0"])):
        metrics = _run("validate", "redi", [policy, *share])
        for name in ("logprob/chosen", "logprob/rejected", "margin"):
            results[f"{split}/{name}"] = metrics[f"val/{name}"]
    return results


def _lengths(model: str, samples: int, *settings: str) -> Metrics:
    """Length and pass@1 on held-out sums."""
    arguments = [f"--model.policy.model={model}", f"--model.evaluation.samples={samples}", *settings]
    metrics = _run("validate", "laser", arguments)
    return {name: metrics[f"val/{name}"] for name in ("length", "pass@1")}


def _solved(model: str, samples: int) -> Metrics:
    """pass@1 on held-out problems that no checkpoint was chosen by, and verdicts on unseen solutions of the problem."""
    unseen = "runs/critique/unseen.jsonl"
    prompts = [
        {"class_path": "datamodules.RunningSumPrompts", "init_args": {"val_size": 300, "seed": 1000}},
        {"class_path": "datamodules.FilePrompts", "init_args": {"source": unseen, "val_source": unseen}},
    ]
    arguments = [f"--model.policy.model={model}", f"--model.evaluation.samples={samples}"]
    metrics = _run("validate", "critique", [*arguments, f"--data.prompts={json.dumps(prompts)}"])
    return {name: metrics[f"val/{name}"] for name in ("pass@1", "reward/verdict")}


def _rubric(model: str, samples: int) -> Metrics:
    """The rubric and the swap test on held-out reports; greedy completions, so one per prompt."""
    metrics = _run("validate", "sleep_cot", [f"--model.policy.model={model}"])
    return {name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")}


REDI = Comparison(
    arms={
        "sft": ("redi/3_sft", [], "assets/tiny_reasoner"),
        "redi": ("redi", [], "sft"),
        "redi, alpha 1.2": ("redi", ["--model.loss.alpha=1.2"], "sft"),
        "dpo": ("redi", ["--model.loss=objectives.DPO"], "sft"),
        "simpo": ("redi", ["--model.loss=objectives.SimPO"], "sft"),
    },
    measure=_traces,
    columns={
        "l, right": "all/logprob/chosen",
        "l, wrong": "all/logprob/rejected",
        "margin": "all/margin",
        "l, right, held-out": "held_out/logprob/chosen",
        "margin, held-out": "held_out/margin",
        "pass@1": "pass@1",
    },
)
#: stands for the folder of the arm "aligned" of the same seed
ALIGNED = "ALIGNED"
REALIGNMENT = Comparison(
    arms={
        "reference": (None, [], "assets/tiny_rambler"),
        "aligned": ("laser", ["--trainer.max_steps=10"], "assets/tiny_rambler"),
        **{
            f"lambda {weight}": (
                "distill",
                [f"--model.teacher.weight={weight}", f"--model.teacher.aligned={ALIGNED}"],
                "assets/tiny_rambler",
            )
            for weight in (0.5, 1.0, 1.5, 2.0)
        },
    },
    measure=_lengths,
    columns={"tokens": "length", "pass@1": "pass@1"},
)
INRA = Comparison(
    arms={
        "lambda 1, the exported model": ("inra", [], "assets/tiny_rambler"),
        **{
            f"lambda {weight}": (None, [f"--model.policy.realign={weight}"], "lambda 1, the exported model")
            for weight in (-0.5, 0.0, 0.5, 1.5)
        },
    },
    measure=_lengths,
    columns={"tokens": "length", "pass@1": "pass@1"},
)
CRITIQUE = Comparison(
    arms={
        "start": (None, [], "runs/critique/base"),
        "SFT on one solution": (
            "critique",
            ["--data.source=runs/critique/solution.jsonl", "--data.batch_size=1"],
            "runs/critique/base",
        ),
        "critiques": ("critique", [], "runs/critique/base"),
    },
    measure=_solved,
    columns={"held-out problems solved": "pass@1", "right verdicts on unseen solutions": "reward/verdict"},
    monitor="val/pass@1",
)
SLEEP_COT = Comparison(
    arms={
        "untrained": (None, [], "runs/sleep_cot/base"),
        "answers only": ("sleep_cot", ["--data.response=</think>{answer}"], "runs/sleep_cot/base"),
        "rationales": ("sleep_cot", [], "runs/sleep_cot/base"),
    },
    measure=_rubric,
    columns={
        **{f"right, {count} findings": f"pass@1/recommend-{count}" for count in range(5)},
        "follow-up": "pass@1/follow_up",
        "knowledge": "reward/sleep_knowledge",
        "personalisation": "reward/sleep_personalisation",
        "reasoning": "reward/sleep_reasoning",
        "safety": "reward/sleep_safety",
        "swap": "reward/swap_sensitivity",
        "tokens": "length",
    },
)
COMPARISONS = {"redi": REDI, "realignment": REALIGNMENT, "inra": INRA, "critique": CRITIQUE, "sleep_cot": SLEEP_COT}


def train(what: str, arm: str, seed: int, samples: int) -> Metrics:
    """Train one arm, and measure it."""
    comparison = COMPARISONS[what]
    config, arguments, start = comparison.arms[arm]
    origin = str(_path(what, start, seed).with_suffix("")) if start in comparison.arms else start
    if config is None:
        return comparison.measure(origin, samples, *arguments)
    folder = str(_path(what, arm, seed).with_suffix(""))
    chosen = {"folder": folder, "monitor": comparison.monitor}
    export = [{"class_path": "callbacks.ExportPolicy", "init_args": chosen}]
    validation = ["--trainer.limit_val_batches=0"] if comparison.monitor is None else []
    settings = [f"--model.policy.model={origin}", f"--trainer.callbacks={json.dumps(export)}"]
    arguments = [one.replace(ALIGNED, str(_path(what, "aligned", seed).with_suffix(""))) for one in arguments]
    _run("fit", config, [*settings, *validation, *arguments], seed)
    return comparison.measure(folder, samples)


def _path(what: str, arm: str, seed: int) -> Path:
    return Path(f"runs/{what}/arms/{arm.replace(', ', '_').replace(' ', '_').replace('.', '_')}_{seed}.json")


def main(
    what: Literal["redi", "realignment", "inra", "critique", "sleep_cot"] = "redi",
    seeds: int = 3,
    only: list[str] | None = None,
    run: bool = True,
    samples: int = 2,
) -> None:
    """Run what has no result yet and print the table.

    Args:
        what: the comparison. seeds: number of seeds. only: arms to run; all if None. run: whether to run, or only to
            print. samples: completions per held-out problem.
    """
    use_threads()
    for seed in range(seeds):
        for arm in COMPARISONS[what].arms if only is None else only:
            path = _path(what, arm, seed)
            if run and not path.is_file():
                result = train(what, arm, seed, samples)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(path, json.dumps(result, indent=1))
    print(table(what, seeds))


def table(what: str, seeds: int) -> str:
    """Mean and range over the seeds of every arm."""
    comparison, rows = COMPARISONS[what], []
    for arm in comparison.arms:
        paths = [path for seed in range(seeds) if (path := _path(what, arm, seed)).is_file()]
        results: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
        if results:
            cells = [_shown([one[name] for one in results]) for name in comparison.columns.values()]
            rows.append([arm, str(len(results)), *cells])
    return markdown_table(["arm", "seeds", *comparison.columns], rows)


def _shown(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    run_script(main)
