"""1-shot RLVR (arXiv 2504.20571): all prompts of a run are copies of one, chosen by how much its pass rate varied.

First train on a pool of prompts with `callbacks.DifficultyLedger`, which writes pass_rates.jsonl; then train on the
prompt whose rates have the largest standard deviation over the visits, with an entropy bonus (`shaping.entropy_bonus`)
and a small KL term.

    python main.py fit --config configs/one_shot.yaml
"""

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import lightning as L

from callbacks.prompt_choice import install_sampler, installed_sampler
from datamodules.samplers import OneShotSampler
from objectives.statistics import group_statistics
from support.errors import ConfigError
from support.files import parse_json
from support.papers import Claim, Experiment, Paper
from tracking.runs import mlflow_runs

Score = Literal["variance", "lim"]


def ranked(rates: dict[str, list[float]], score: Score = "variance") -> list[tuple[str, float]]:
    """(id, score) of every prompt, the highest score first; among equal scores the earlier prompt first.

    Args:
        rates: id -> pass rates of its visits, oldest first.
        score: "variance", the population standard deviation of the prompt's rates, or "lim", how closely they follow
            the pool's mean learning curve: 1 - sum_e (a_e - mean_e)^2 / sum_e (1 - mean_e)^2 over the visits e (LIMR,
            arXiv 2502.11886).
    """
    if score == "variance":
        scores = {id: pstdev(prompt_rates) for id, prompt_rates in rates.items()}
    else:
        visits = max(map(len, rates.values()), default=0)
        mean = [fmean(visited[e] for visited in rates.values() if e < len(visited)) for e in range(visits)]
        scores = {}
        for id, prompt_rates in rates.items():
            to_one = sum((1 - m) ** 2 for m in mean[: len(prompt_rates)])
            to_mean = sum((a - m) ** 2 for a, m in zip(prompt_rates, mean, strict=False))
            scores[id] = 1 - to_mean / to_one if to_one else 1.0
    return sorted(scores.items(), key=lambda item: -item[1])


def read_history(path: str | Path, least_visits: int = 2) -> dict[str, list[float]]:
    """id -> pass rates, from a `DifficultyLedger`'s pass_rates.jsonl, for prompts with at least `least_visits` visits.

    Raises:
        ConfigError: for a file that is missing or has another format, or without any prompt with that many visits.
    """
    try:
        rows = [parse_json(line) for line in Path(path).read_text().splitlines() if line.strip()]
        rates = {str(row["id"]): [float(rate) for _, rate in row["history"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"OneShot: {path} is not a readable pass_rates.jsonl ({error!r}); set `history` to the file that "
            "callbacks.DifficultyLedger wrote."
        ) from error
    visited_often = {id: prompt_rates for id, prompt_rates in rates.items() if len(prompt_rates) >= least_visits}
    if not visited_often:
        raise ConfigError(
            f"OneShot: no prompt of {path} was visited {least_visits} times or more; train on the pool for longer or "
            "on fewer prompts, or lower OneShot.least_visits."
        )
    return visited_often


class OneShot(L.Callback):
    """Train on one or a few prompts of the training rows; the validation rows stay those of the data module.

    Logs `train/one_shot_live`, the fraction of groups whose completions earn different rewards; `train/reward/...` are
    those of the chosen prompts.

    Args:
        history: pass_rates.jsonl of a run on the pool, from which the prompts with the highest scores are taken.
        ids: ids of the prompts, instead of a history.
        examples: number of prompts taken from the history.
        score: score to rank them by, see `ranked`.
        least_visits: minimum number of visits of a prompt that is considered.
    """

    def __init__(
        self,
        history: str | None = None,
        ids: list[str] | None = None,
        examples: int = 1,
        score: Score = "variance",
        least_visits: int = 2,
    ) -> None:
        if (history is None) == (not ids):
            raise ConfigError(
                "OneShot: set either `history`, a pass_rates.jsonl to choose prompts from, or `ids`, the ids of the "
                "prompts, but not both."
            )
        if examples < 1 or least_visits < 1:
            raise ConfigError(
                f"OneShot: examples is {examples} and least_visits is {least_visits}; both must be at least 1."
            )
        self.history, self.ids = history, ids
        self.examples, self.score, self.least_visits = examples, score, least_visits
        self.chosen: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        install_sampler(trainer, stage, self._sampler)

    def _sampler(self, rows: list[dict[str, Any]], *draw: int) -> OneShotSampler:
        row_of_id = {str(row["id"]): index for index, row in reversed(list(enumerate(rows)))}
        if self.history is None:
            self.chosen = [str(id) for id in self.ids or []]
        else:
            ranking = ranked(read_history(self.history, self.least_visits), self.score)
            self.chosen = [id for id, _ in ranking[: self.examples]]
        if missing := [id for id in self.chosen if id not in row_of_id]:
            raise ConfigError(
                f"OneShot: the training rows have no prompt with the id {missing[0]!r}; use the data and the data.seed "
                "of the run that measured the history."
            )
        return OneShotSampler([row_of_id[id] for id in self.chosen], len(rows), *draw)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        installed_sampler(trainer, self, OneShotSampler)
        if trainer.is_global_zero:
            print(f"One-shot: training on {', '.join(self.chosen)}", flush=True)
        for client, run in mlflow_runs(trainer):
            client.set_tag(run, "one_shot", ", ".join(self.chosen)[:4000])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rollout = pl_module.last_rollout
        live = (group_statistics(pl_module.totals(rollout), rollout.groups)[1] > 0).float().mean()
        pl_module.log("train/one_shot_live", live, batch_size=1, sync_dist=trainer.world_size > 1)


PAPER = Paper(
    name="one_shot",
    title="1-shot RLVR",
    arxiv="2504.20571",
    idea="all prompts are copies of one, chosen by its history, on any on-policy method",
    classes=("callbacks.OneShot",),
    configs=("one_shot",),
    effect="one sum 0.64 → 0.79, the pool of 64 sums 0.78",
    comparison={"trainer.callbacks": [{"class_path": "callbacks.OneShot", "init_args": {"ids": ["2518+1128=?"]}}]},
    experiment=Experiment(
        rollouts=80,
        arms={
            "one_shot": {},
            "entropy bonus alone": {
                "model.rewards": [{"class_path": "rewards.ExactAnswer", "init_args": {"weight": 0.0}}]
            },
            "one_shot, no entropy bonus": {"model.shaping.entropy_bonus": 0},
            "grpo": {"trainer.callbacks": []},
        },
        columns={
            "val pass@1": "val/pass1",
            "train": "train/reward/exact_answer",
            "entropy": "train/entropy",
            "live": "train/one_shot_live",
        },
        expect="Held-out accuracy rises by more than 5 points, and still after the one sum is nearly always "
        "solved; without the bonus by less.",
        claims=(
            Claim(text="one problem raises accuracy on others", column="val pass@1", sign=1, against="start"),
            Claim(
                text="as much as the whole pool", column="val pass@1", sign=0, against="grpo, equal tokens", margin=0.02
            ),
            Claim(
                text="an entropy bonus adds to it", column="val pass@1", sign=1, against="one_shot, no entropy bonus"
            ),
        ),
    ),
)
