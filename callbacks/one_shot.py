"""1-shot RLVR: all prompts of all rollouts are copies of one, chosen by how much its pass rate varied (arXiv 2504.20571).

First a run on a pool of prompts with `callbacks.DifficultyLedger`, which leaves pass_rates.jsonl; then a run on the prompt whose rates have the
largest standard deviation over the visits, with an entropy bonus (`shaping.entropy_bonus`) and a small KL term.

    python main.py fit --config configs/one_shot.yaml
"""

import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import lightning as L

from datamodules.samplers import OneShotSampler
from objectives.statistics import group_statistics
from support.errors import ConfigError
from support.papers import Experiment, Paper
from tracking.runs import mlflow_runs

Score = Literal["variance", "lim"]


def ranked(rates: dict[str, list[float]], score: Score = "variance") -> list[tuple[str, float]]:
    """(id, score) of every prompt, the best first; of equal ones the earlier.

    "variance": the population's standard deviation of the prompt's rates. "lim": how closely they follow the pool's mean learning curve,
    1 - sum_e (a_e - mean_e)^2 / sum_e (1 - mean_e)^2 over the visits e (LIMR, arXiv 2502.11886).

    Args:
        rates: id -> pass rates of its visits, oldest first.
    """
    if score == "variance":
        found = {id: pstdev(own) for id, own in rates.items()}
    else:
        visits = max(map(len, rates.values()), default=0)
        mean = [fmean(own[e] for own in rates.values() if e < len(own)) for e in range(visits)]
        found = {}
        for id, own in rates.items():
            below_one = sum((1 - m) ** 2 for m in mean[: len(own)])
            apart = sum((a - m) ** 2 for a, m in zip(own, mean, strict=False))
            found[id] = 1 - apart / below_one if below_one else 1.0
    return sorted(found.items(), key=lambda item: -item[1])


def read_history(path: str | Path, least_visits: int = 2) -> dict[str, list[float]]:
    """id -> pass rates, from a `DifficultyLedger`'s pass_rates.jsonl; prompts with fewer visits are left out.

    Raises:
        ConfigError: for a file that is missing or of another kind, or where no prompt was visited as often.
    """
    try:
        rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
        found = {str(row["id"]): [float(rate) for _, rate in row["history"]] for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"OneShot: {path} is no pass_rates.jsonl ({error!r}); give the one that callbacks.DifficultyLedger left."
        ) from error
    kept = {id: rates for id, rates in found.items() if len(rates) >= least_visits}
    if not kept:
        raise ConfigError(
            f"OneShot: no prompt of {path} was visited {least_visits} times; train on the pool for longer, or on fewer prompts."
        )
    return kept


class OneShot(L.Callback):
    """Trains on one prompt, or a few, of the training rows; validation stays that of the data.

    Logs `train/one_shot_live`, the share of the groups whose completions earn different rewards; `train/reward/...` are those of the chosen prompts.

    Args:
        history: pass_rates.jsonl of a run on the pool, from which the best are taken. ids: or the prompts themselves.
        examples: how many are taken from the history. score: by which, see `ranked`.
        least_visits: prompts that were visited less often are not considered.
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
                "OneShot: give either `history`, the pass_rates.jsonl to choose from, or `ids`, the prompts themselves."
            )
        if examples < 1 or least_visits < 1:
            raise ConfigError(f"OneShot: needs examples >= 1 and least_visits >= 1, got {examples} and {least_visits}.")
        self.history, self.ids, self.examples, self.score, self.least_visits = (
            history,
            ids,
            examples,
            score,
            least_visits,
        )
        self.chosen: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and hasattr(data, "sampler"):
            data.sampler = self._sampler

    def _sampler(self, rows: list[dict[str, Any]], *draw: int) -> OneShotSampler:
        places = {str(row["id"]): index for index, row in reversed(list(enumerate(rows)))}
        if self.history is None:
            self.chosen = [str(id) for id in self.ids or []]
        else:
            self.chosen = [
                id for id, _ in ranked(read_history(self.history, self.least_visits), self.score)[: self.examples]
            ]
        if missing := [id for id in self.chosen if id not in places]:
            raise ConfigError(
                f"OneShot: the training rows have no prompt with the id {missing[0]!r}; use the data and the data.seed of the run that measured the history."
            )
        return OneShotSampler([places[id] for id in self.chosen], len(rows), *draw)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        sampler = getattr(trainer.train_dataloader, "prompt_sampler", None)
        if not isinstance(sampler, OneShotSampler):
            raise ConfigError(
                f"OneShot repeats prompts by a OneShotSampler, but the training prompts come from {type(sampler).__name__}; use a data module of this "
                "project, and no other callback that chooses prompts."
            )
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
            "one_shot, no entropy bonus": {"model.shaping.entropy_bonus": 0},
            "grpo": {"trainer.callbacks": []},
        },
        columns={
            "val pass@1": "val/pass1",
            "train": "train/reward/exact_answer",
            "entropy": "train/entropy",
            "live": "train/one_shot_live",
        },
        expect="Held-out accuracy rises by more than 5 points, and still after the one sum is nearly always solved; without "
        "the bonus by less.",
    ),
)
