"""Compares the graders of this project, of plain math-verify and of TRL: golds against themselves and each other, and
a table of forms of answers.

For MATH-500, GSM8K, SVAMP and MMLU: each row's own answer, given as a completion, must earn 1 (a false negative
otherwise), and another row's answer 0, unless both are the same value (a false positive otherwise; pairs that are
the same are in SAME). tests/rewards/answer_forms.py has forms of answers that were written for it.

    python -m benchmarks.graders --data FOLDER       # the data sets of a folder, then the forms
    python -m benchmarks.graders --pairs 20000       # without --data only the forms
    python -m benchmarks.graders --gym_questions 6   # scores of trivial answers by reasoning-gym's scorers

FOLDER may hold math500.jsonl, gsm8k_test.jsonl.gz, svamp.json and mmlu_1200.jsonl; missing ones are left out. --pairs
is the number of pairs of distinct golds per data set, --gym_questions the number of questions per task.

The data sets are openai/gsm8k, ChilleD/SVAMP, HuggingFaceH4/MATH-500 and cais/mmlu on the hub. TRL's side needs the
package trl.
"""

import gzip
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from rewards import MathAnswer, MultipleChoice, NumericAnswer, Reward
from rewards.answer_process import judged_all
from rollouts import text_batch
from tests.rewards.answer_forms import FORMS

#: (gold, completion) pairs to the score of each: 1, 0, or None where a grader abstains
Grader = Callable[[Sequence[tuple[str, str]]], list[float | None]]
#: different golds of MATH-500 that are the same answer
SAME = {
    frozenset(pair)
    for pair in (
        ("5", "x=5"), ("1,-2", "-2,1"), ("\\frac{1}{4}", "\\frac14"), ("10,\\!080", "10080"),
        ("2 \\sqrt{5}", "2\\sqrt{5}"), ("36", "\\$36"), ("36", "36^\\circ"),
        ("90", "90^\\circ"), ("120", "120^\\circ"), ("30", "30^\\circ"), ("15", "15\\mbox{ cm}^2"), ("18", "\\$18"),
    )
}  # fmt: skip


@dataclass
class Counts:
    """Verdicts of one grader on one set."""

    right: int = 0
    golds: int = 0
    unread: int = 0
    false_positives: list[tuple[str, str]] = field(default_factory=list)
    false_negatives: list[tuple[str, str]] = field(default_factory=list)
    wrongs: int = 0
    seconds: float = 0.0

    def add(self, pairs: Sequence[tuple[str, str]], truths: Sequence[bool], grade: Grader) -> None:
        """Grade these pairs, whose truth is known."""
        started = time.perf_counter()
        scores = grade(pairs)
        self.seconds += time.perf_counter() - started
        for pair, truth, score in zip(pairs, truths, scores, strict=True):
            self.unread += score is None
            if truth:
                self.golds += 1
                self.right += score == 1
                if score != 1:
                    self.false_negatives.append(pair)
            else:
                self.wrongs += 1
                if score == 1:
                    self.false_positives.append(pair)

    def line(self) -> str:
        """One row of the table."""
        asked = max(1, self.golds + self.wrongs)
        return (
            f"{self.right} of {self.golds} | {self.unread} | {len(self.false_positives)} of {self.wrongs} | "
            f"{1000 * self.seconds / asked:.2f}"
        )


def ours(reward: Reward) -> Grader:
    """A reward of this project."""

    def grade(pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        rows = [{"id": i, "prompt": "?", "answer": gold} for i, (gold, _) in enumerate(pairs)]
        scores = reward(text_batch([completion for _, completion in pairs], rows)).tolist()
        return [None if score != score else score for score in scores]

    return grade


def math_verify(pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """math-verify alone, as its page shows it: parse both, verify."""
    from math_verify import parse, verify

    scores: list[float | None] = []
    for gold, completion in pairs:
        wanted = parse(gold)
        scores.append(float(verify(wanted, parse(completion))) if wanted else None)
    return scores


def trl_reward(pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """TRL's accuracy_reward; None where it gives None."""
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": completion}] for _, completion in pairs]
    scores: list[float | None] = accuracy_reward(completions=completions, solution=[gold for gold, _ in pairs])
    return scores


def graders(reward: Reward) -> dict[str, Grader]:
    """All that are compared on a set of mathematics; TRL's if it is installed."""
    compared: dict[str, Grader] = {f"{type(reward).__name__} (ours)": ours(reward), "math-verify": math_verify}
    try:
        import trl.rewards  # noqa: F401
    except ImportError as error:
        print(f"TRL's figures are left out: {error}")
        return compared
    return compared | {"TRL accuracy_reward": trl_reward}


def _lines(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as file:
        return [json.loads(line) for line in file]


def data_sets(folder: Path) -> dict[str, tuple[list[str], Reward]]:
    """Golds by data set, with the reward that fits; those whose file is there."""
    sets: dict[str, tuple[list[str], Reward]] = {}
    if (path := folder / "math500.jsonl").exists():
        sets["MATH-500"] = [row["answer"] for row in _lines(path)], MathAnswer()
    if (path := folder / "gsm8k_test.jsonl.gz").exists():
        golds = [row["answer"].rsplit("####", 1)[1].strip() for row in _lines(path)]
        sets["GSM8K"], sets["GSM8K, as numbers"] = (golds, MathAnswer()), (golds, NumericAnswer())
    if (path := folder / "svamp.json").exists():
        golds = [str(row["Answer"]) for row in json.loads(path.read_text(encoding="utf-8"))]
        sets["SVAMP"], sets["SVAMP, as numbers"] = (golds, MathAnswer()), (golds, NumericAnswer())
    if (path := folder / "mmlu_1200.jsonl").exists():
        sets["MMLU"] = [row["answer"] for row in _lines(path)], MultipleChoice()
    return sets


def is_same(first: str, second: str) -> bool:
    """Whether two golds are known to be one answer."""
    try:
        return float(first.replace(",", "")) == float(second.replace(",", ""))
    except ValueError:
        return first == second or frozenset((first, second)) in SAME


def measure(golds: list[str], grade: Grader, pairs: int, phrase: str = "So the answer is \\boxed{%s}.") -> Counts:
    """Every gold against itself, and some pairs of different ones against each other."""
    counts = Counts()
    counts.add([(gold, phrase.replace("%s", gold)) for gold in golds], [True] * len(golds), grade)
    distinct = list(dict.fromkeys(golds))
    crossed = list(permutations(distinct, 2))
    crossed = random.Random(0).sample(crossed, pairs) if len(crossed) > pairs else crossed
    crossed = [pair for pair in crossed if not is_same(*pair)]
    counts.add([(gold, phrase.replace("%s", other)) for gold, other in crossed], [False] * len(crossed), grade)
    return counts


def gym(questions: int) -> None:
    """Scores of trivial answers, and of the stored ones, by each scorer of reasoning-gym."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    from rewards.tasks import TRIVIAL, is_unsafe

    for task in sorted(DATASETS):
        try:
            entries = [reasoning_gym.create_dataset(task, size=1, seed=seed)[0] for seed in range(questions)]
        except AssertionError as error:  # a mixture, which has no questions of its own
            print(f"{task}: left out ({error})")
            continue
        texts = [json.dumps(entry, default=str) for entry in entries]
        stored = judged_all([("gym", str(entry["answer"]), text) for entry, text in zip(entries, texts, strict=True)])
        if (mean := sum(score or 0.0 for score in stored) / questions) < 1:
            print(f"{task}: its own answer earns {mean:.3g}", flush=True)
        for answer in TRIVIAL:
            others = [
                text for entry, text in zip(entries, texts, strict=True) if str(entry["answer"]).strip() != answer
            ]
            if is_unsafe(answer, task) or not others:
                continue
            scores = judged_all([("gym", answer, text) for text in others])
            if (mean := sum(score or 0.0 for score in scores) / len(others)) >= 0.25:
                print(f"{task}: {answer!r} earns {mean:.3g}", flush=True)


def main(data: str | None = None, pairs: int = 5000, show: int = 5, gym_questions: int = 0) -> None:
    """Print the tables, and the first `show` mistakes of each grader."""
    if gym_questions:
        gym(gym_questions)
        return
    print("| set | grader | own golds right | unread | wrong ones right | ms an answer |\n|---|---|---|---|---|---|")
    mistakes: list[str] = []
    sets = data_sets(Path(data).expanduser()) if data else {}
    for name, (golds, reward) in sets.items():
        both = graders(reward) if isinstance(reward, MathAnswer) else {f"{type(reward).__name__} (ours)": ours(reward)}
        for who, grade in both.items():
            _print(name, who, measure(golds, grade, pairs), show, mistakes)
            if who.endswith("(ours)") is False and name == "MATH-500":
                wrapped = measure([f"${gold}$" for gold in golds], grade, 0)
                _print(f"{name}, golds in $...$", who, wrapped, show, mistakes)
    everything = [form for forms in FORMS.values() for form in forms]
    for who, grade in graders(MathAnswer()).items():
        counts = Counts()
        counts.add([(gold, text) for gold, text, _ in everything], [right for _, _, right in everything], grade)
        _print("forms", who, counts, show, mistakes)
    print("\n" + "\n".join(mistakes))


def _print(name: str, who: str, counts: Counts, show: int, mistakes: list[str]) -> None:
    print(f"| {name} | {who} | {counts.line()} |", flush=True)
    for kind, pairs in (
        ("wrong, called right", counts.false_positives),
        ("right, called wrong", counts.false_negatives),
    ):
        mistakes += [f"{name}, {who}, {kind}: {gold!r} <- {text[:80]!r}" for gold, text in pairs[:show]]


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
