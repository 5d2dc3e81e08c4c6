"""Generalisation stress test (arXiv 2502.12459): the same questions under edits that keep their content.

Each question is answered as it is, with a longer right option, with longer wrong options, with all options longer, as
statements that are true or false, and with other names and objects. An option is chosen by the log-prob of its label,
and, separately, by the mean log-prob per token of its text:

    argmax_i log pi(label_i | question, options)
    argmax_i (1 / |y_i|) sum_t log pi(y_{i,t} | question, y_{i,<t})

    python main.py test --config configs/stress_test.yaml
    python main.py test --config configs/stress_test.yaml --ckpt_path RUN/checkpoints/FILE.ckpt
"""

from dataclasses import asdict
from typing import Any, Literal

from lightning_modules.core.choice_module import ChoiceModule, Rows
from objectives.stress import Answer, stress_figures
from policies import PolicyParams
from policies.choice_scores import label_scores, text_scores
from rewards.choices import LETTERS
from support.errors import ConfigError
from support.papers import Paper
from support.processes import gathered

Scoring = Literal["label", "text"]


class StressTest(ChoiceModule):
    """Measures accuracy, its change, flips and the length preference under the edits of `datamodules.StressQuestions`.

    `figures` holds the result, `answers` how every form of every question was answered.

    Args:
        policy: the model, or for a checkpoint the policy of its run.
        scoring: ways of choosing an option: by the label's log-prob, and by the text's mean log-prob per token.
        kwargs: as in every module; a test uses none of them.
    """

    def __init__(self, policy: PolicyParams, *, scoring: list[Scoring] | None = None, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.scoring: list[Scoring] = ["label", "text"] if scoring is None else scoring
        if not self.scoring:
            raise ConfigError("model.scoring is empty; set it to [label], [text] or both.")
        self.answers: list[Answer] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self._texts: dict[tuple[str, str], float] = {}  # (prompt, text) -> mean log-prob; edits share most options

    def check_row(self, row: dict[str, Any]) -> None:
        super().check_row(row)
        if "condition" not in row:
            raise ConfigError(
                f"StressTest reads edited questions, but row {row.get('id')!r} has no 'condition'; use "
                "datamodules.StressQuestions."
            )

    def on_test_epoch_start(self) -> None:
        self.gather_weights()
        self.answers, self._texts = [], {}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        rows = self.choice_rows(batch)
        scores: list[dict[str, list[float]]] = [{} for _ in rows]
        if "label" in self.scoring:
            for scores_of_row, logprobs in zip(scores, label_scores(self.policy, rows).logprobs, strict=True):
                scores_of_row["label"] = logprobs.tolist()
        if "text" in self.scoring:
            self._score_texts(rows, scores)
        self.answers += [
            Answer(
                str(row["question_id"]),
                row["condition"],
                LETTERS.index(row["answer"]),
                scores_of_row,
                [len(text) for text in row["choices"]],
                "statement" in row,
            )
            for row, scores_of_row in zip(rows, scores, strict=True)
        ]

    def _score_texts(self, rows: Rows, scores: list[dict[str, list[float]]]) -> None:
        """Add the texts' scores; each text behind a prompt is scored once."""
        open_rows = [(row, into) for row, into in zip(rows, scores, strict=True) if "statement" not in row]
        missing: dict[str, tuple[Any, dict[str, None]]] = {}
        for row, _ in open_rows:
            new = {text: None for text in row["choices"] if (str(row["text_prompt"]), text) not in self._texts}
            if new:
                missing.setdefault(str(row["text_prompt"]), (row["text_prompt"], {}))[1].update(new)
        texts = [list(options) for _, options in missing.values()]
        scored = text_scores(self.policy, [prompt for prompt, _ in missing.values()], texts) if missing else []
        for key, options, logprobs in zip(missing, texts, scored, strict=True):
            self._texts |= {(key, text): value for text, value in zip(options, logprobs.tolist(), strict=True)}
        for row, into in open_rows:
            into["text"] = [self._texts[str(row["text_prompt"]), text] for text in row["choices"]]

    def on_test_epoch_end(self) -> None:
        self.scatter_weights()
        self.answers = [answer for part in gathered(self.answers) for answer in part]
        self.figures = stress_figures(self.answers)
        logged = ("accuracy", "change", "longest_chosen")
        self.log_figures(
            {
                scoring: {
                    condition: {name: figure for name, figure in of_condition.items() if name in logged}
                    for condition, of_condition in by_condition.items()
                }
                for scoring, by_condition in self.figures.items()
            }
        )

    def report(self) -> dict[str, Any]:
        """The figures, and every answer, as plain data."""
        return {"figures": self.figures, "answers": [asdict(answer) for answer in self.answers]}


PAPER = Paper(
    name="stress_test",
    title="Generalisation stress test",
    arxiv="2502.12459",
    idea="the same multiple-choice questions with longer options, as true/false and with other nouns",
    classes=("lightning_modules.StressTest", "datamodules.StressQuestions"),
    configs=("stress_test",),
    not_compared="it measures a policy and trains none",
)
