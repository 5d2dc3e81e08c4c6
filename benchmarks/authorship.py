"""Compare the classifier of configs/authorship.yaml with TF-IDF baselines, on both splits and without comments.

    python benchmarks/authorship.py                  # what has no result yet, then the table
    python benchmarks/authorship.py --run false      # the table only

The baselines are the paper's: 400 TF-IDF features of words, with K nearest neighbours, a random forest, a decision tree
and a linear SVM; and, harder to beat, an SVM on characters n-grams. They come from scikit-learn (extra `bench`).
Results are runs/authorship/<arm>_<seed>.json, so that an interrupted benchmark continues where it stopped.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from callbacks.confusion import confusion_figure  # noqa: E402
from datamodules import AuthorshipPrograms  # noqa: E402
from datamodules.code_styles import SIMILAR  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

ARMS = {
    "grouped": [],
    "random": ["--data.split=random"],
    "grouped, no comments": ["--data.comments=false"],
}
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
RESULTS = Path("runs/authorship")


def baselines(data: AuthorshipPrograms) -> dict[str, float]:
    """Test accuracy of classifiers on TF-IDF features."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC
    from sklearn.tree import DecisionTreeClassifier

    classifiers = {
        "words, nearest neighbours": KNeighborsClassifier(),
        "words, tree": DecisionTreeClassifier(max_depth=8, random_state=0),
        "words, linear SVM": LinearSVC(),
        "words, random forest": RandomForestClassifier(100, random_state=0),
        "characters, linear SVM": LinearSVC(),
    }
    texts, labels = ([row[column] for row in data.train_data] for column in ("text", "label"))
    test_texts, test_labels = ([row[column] for row in data.test_data] for column in ("text", "label"))
    scores = {}
    for name, classifier in classifiers.items():
        of_words = name.startswith("words")
        features = (
            TfidfVectorizer(max_features=400)
            if of_words
            else TfidfVectorizer(analyzer="char", ngram_range=(1, 4), max_features=4000)
        )
        scores[name] = float(make_pipeline(features, classifier).fit(texts, labels).score(test_texts, test_labels))
    return scores


def train(arm: str, seed: int) -> dict[str, Any]:
    """Train and test one arm, and the baselines on its data."""
    config = "--config=configs/authorship.yaml"
    cli = command_line(["fit", config, f"--seed_everything={seed}", *QUIET, *ARMS[arm]])
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    confusion = cli.model.confusion
    first, second, share = confusion.hardest_pair()
    if seed == 0:
        name = arm.replace(", ", "_").replace(" ", "_")
        confusion_figure(confusion).savefig(RESULTS / f"confusion_{name}.png", dpi=120)
    return {
        "encoder": float(cli.trainer.callback_metrics["test/accuracy"]),
        "f1": float(cli.trainer.callback_metrics["test/f1"]),
        "hardest": [first, second],
        "hardest_share": share,
        "counts": confusion.counts.tolist(),
        **baselines(cli.datamodule),
    }


def _path(arm: str, seed: int) -> Path:
    return RESULTS / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}.json"


def main(seeds: int = 3, run: bool = True) -> None:
    """Run what has no result yet and print the table.

    Args:
        seeds: number of seeds. run: whether to run, or only to print.
    """
    use_threads()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds if run else 0):
        for arm in ARMS:
            if not (path := _path(arm, seed)).is_file():
                atomic_write_text(path, json.dumps(train(arm, seed), indent=1))
    print(table(seeds))


def table(seeds: int) -> str:
    """Test accuracy of every classifier by arm, mean and range over the seeds."""
    results: dict[str, list[dict[str, Any]]] = {
        arm: [json.loads(path.read_text()) for seed in range(seeds) if (path := _path(arm, seed)).is_file()]
        for arm in ARMS
    }
    results = {arm: rows for arm, rows in results.items() if rows}
    if not results:
        return "no results yet"
    names = [name for name, value in next(iter(results.values()))[0].items() if isinstance(value, float)]
    rows = [[name, *(_shown([one[name] for one in runs]) for runs in results.values())] for name in names]
    pairs = [str(sum(tuple(one["hardest"]) == SIMILAR for one in runs)) for runs in results.values()]
    rows.append(["seeds in which the similar pair is the hardest", *pairs])
    return markdown_table(["", *results], rows)


def _shown(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    run_script(main)
