"""Train a reward model on pairs that people judged, beside a logistic regression on words, on the same split.

    python benchmarks/real_pairs.py --source hh_harmless.jsonl.gz                # three seeds, then the table
    python benchmarks/real_pairs.py --source hh_harmless.jsonl.gz --run false    # the table only

Both learn from one half of the first `pairs` pairs and are measured on the other half. The halves have no prompt in
common and are fixed; a seed decides the order of the pairs. The regression (scikit-learn, extra `bench`) sees counts of
the words in one response minus those in the other. Results are runs/real_pairs/<arm>_<seed>.json, so that an
interrupted benchmark continues where it stopped.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from datamodules import PairSource, PreferencePairs  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

CONFIGS = ["--config=configs/reward_model.yaml", "--config=configs/data/hh_rlhf.yaml"]
LORA = "--model.policy.lora={r: 16, alpha: 32}"
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
RESULTS = Path("runs/real_pairs")
ARMS = ("words", "reward model")
SIDES = ("response_0", "response_1")


def words(data: PreferencePairs) -> dict[str, Any]:
    """Held-out pairs and how many of them a logistic regression on counts of words orders as people did."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold

    counts = CountVectorizer(min_df=2).fit(row[side] for row in data.train_data for side in SIDES)
    train, held_out = (_differences(counts, rows) for rows in (data.train_data, data.val_data))
    both_orders, labels = _stacked(train)
    strengths = {"C": [10.0**power for power in range(-4, 2)]}
    plain = LogisticRegression(fit_intercept=False, max_iter=2000)
    # Both orders of a pair are in one fold.
    groups = [*range(train.shape[0])] * 2
    search = GridSearchCV(plain, strengths, cv=GroupKFold(5)).fit(both_orders, labels, groups=groups)
    return {"pairs": len(data.val_data), "right": int((search.decision_function(held_out) > 0).sum())}


def _differences(counts: Any, rows: list[dict[str, Any]]) -> Any:
    """Counts of the preferred response minus those of the other."""
    first, second = (counts.transform(row[SIDES[side ^ row["better"]]] for row in rows) for side in (0, 1))
    return first - second


def _stacked(differences: Any) -> tuple[Any, list[int]]:
    from scipy.sparse import vstack

    rows = differences.shape[0]
    return vstack([differences, -differences]), [1] * rows + [0] * rows


def reward_model(model: str, data: PreferencePairs, arguments: list[str]) -> dict[str, Any]:
    """Held-out pairs and how many of them a trained reward model orders as people did."""
    settings = [f"--model.policy.model={model}", LORA, "--trainer.limit_val_batches=0", *QUIET, *arguments]
    trained = command_line(["fit", *CONFIGS, *settings])
    trained.trainer.limit_val_batches = 1.0
    held_out: dict[str, Any] = trained.trainer.validate(trained.model, datamodule=trained.datamodule)[0]
    assert [row["id"] for row in trained.datamodule.val_data] == [row["id"] for row in data.val_data]
    return {
        "pairs": len(data.val_data),
        "right": round(held_out["val/accuracy"] * len(data.val_data)),
        "loss": held_out["val/loss"],
    }


def main(
    source: str,
    pairs: int = 1000,
    seeds: int = 3,
    model: str = "smollm2-135m-instruct",
    arguments: list[str] | None = None,
    only: list[str] | None = None,
    run: bool = True,
) -> None:
    """Run what has no result yet and print the table.

    Args:
        source: a file of pairs in HH's format. pairs: number of its first rows that are used, one half held out.
        seeds: number of seeds. model: whose backbone is trained. arguments: of the training, after the configurations.
        only: arms to run; all if None. run: whether to run, or only to print.
    """
    use_threads()
    for seed in range(seeds):
        data = PreferencePairs(PairSource(source, format="hh", limit=pairs), val_share=0.5, seed=seed)
        data.setup("fit")
        chosen = [f"--data.pairs.source={source}", f"--data.pairs.limit={pairs}", "--data.val_share=0.5"]
        steps = max(1, len(data.train_data) // 8)
        chosen += [f"--data.seed={seed}", f"--seed_everything={seed}", "--data.batch_size=8"]
        chosen += [f"--trainer.max_steps={steps}", "--trainer.precision=bf16-mixed", *(arguments or [])]
        for arm in ARMS if only is None else only:
            path = RESULTS / f"{arm.replace(' ', '_')}_{seed}.json"
            if run and not path.is_file():
                result = words(data) if arm == "words" else reward_model(model, data, chosen)
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(path, json.dumps(result | {"trained on": len(data.train_data)}, indent=1))
    print(table(seeds))


def table(seeds: int) -> str:
    """Held-out accuracy per arm, over all seeds, with the exact binomial interval of a seed's pairs."""
    from scipy.stats import binomtest

    rows = []
    for arm in ARMS:
        for seed in range(seeds):
            path = RESULTS / f"{arm.replace(' ', '_')}_{seed}.json"
            if path.is_file():
                result = json.loads(path.read_text())
                low, high = binomtest(result["right"], result["pairs"]).proportion_ci()
                accuracy = f"{result['right'] / result['pairs']:.3f} ({low:.3f} to {high:.3f})"
                rows.append([arm, str(seed), str(result["trained on"]), str(result["pairs"]), accuracy])
    return markdown_table(["arm", "seed", "trained on", "held out", "accuracy (95 % interval)"], rows)


if __name__ == "__main__":
    run_script(main)
