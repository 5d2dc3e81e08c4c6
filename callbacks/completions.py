"""Tables of sampled completions for reading."""

import json
import math
from typing import Any

import lightning as L
import pandas
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from rollouts import RolloutBatch
from support.files import atomic_write_text
from tracking.runs import mlflow_runs, run_folder

#: the tag that lists tables for MLflow's pages, and its maximum length in characters, beyond which MLflow truncates it
TABLES, MAX_TAG_LENGTH = "mlflow.loggedArtifacts", 8000


def table(batch: RolloutBatch, prompts: int) -> dict[str, list[Any]]:
    """Columns of the first `prompts` groups: prompt, completion, answer, length, finish, rewards, advantage.

    Completions that an environment took part in also have turns (their number), turn rewards and finish reasons.

    The advantage of a completion is the mean over its tokens where every token has its own.
    """
    rows = slice(0, prompts * batch.group_size)
    columns: dict[str, list[Any]] = {
        "prompt": [p if isinstance(p, str) else json.dumps(p) for p in batch.column("prompt")[rows]],
        "completion": batch.completions[rows],
        "answer": [None if a is None else str(a) for a in batch.column("answer")[rows]],
        "length": batch.lengths[rows].tolist(),
        "finish": list(batch.finish_reasons[rows]),
    }
    if batch.turns is not None:
        reasons = batch.turns.finish_reasons[rows]
        by_turn = [values[: len(r)] for values, r in zip(batch.turns.rewards[rows].tolist(), reasons, strict=True)]
        columns["turns"] = [len(r) for r in reasons]
        columns["turn rewards"] = [", ".join("-" if math.isnan(v) else f"{v:.4g}" for v in row) for row in by_turn]
        columns["turn finish"] = [", ".join(r) for r in reasons]
    for name, scores in batch.rewards.items():
        columns[f"reward/{name}"] = [None if math.isnan(s) else s for s in scores[rows].tolist()]
    if batch.advantages is not None:
        advantages, mask = batch.advantages[rows], batch.action_mask[rows]
        if advantages.dim() == 2:
            advantages = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        columns["advantage"] = advantages.tolist()
    return columns


def newest(tables: list[dict[str, str]]) -> str:
    """JSON of as many of the latest tables as one tag can hold; all of them remain artifacts."""
    while len(text := json.dumps(tables)) > MAX_TAG_LENGTH:
        tables = tables[1:]
    return text


def as_markdown(columns: dict[str, list[Any]]) -> str:
    """The table in Markdown, each completion as code, so that nothing in it is markup."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)
        text = text.replace("\n", "\u23ce").replace("`", "'").replace("|", "\\|")
        return f"`{text}`" if text else ""

    rows = [list(columns), ["---"] * len(columns), *(map(cell, row) for row in zip(*columns.values(), strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class CompletionsTable(L.Callback):
    """Log tables of completions after every validation, and of the first, every n-th and the last training rollout.

    Each table is a separate file, completions/<train|val>_<rollout>.json: appending to one file would rewrite all of it
    every time. In TensorBoard they are texts, in Weights & Biases tables, named completions/<train|val>.

    Args:
        prompts: prompt groups per table.
        every_n_rollouts: training rollouts between two tables; 0 logs validations only.
    """

    def __init__(self, prompts: int = 8, every_n_rollouts: int = 25) -> None:
        self.prompts, self.every_n_rollouts = prompts, every_n_rollouts
        self._last_logged = 0

    def _log(self, trainer: L.Trainer, batch: RolloutBatch, kind: str) -> None:
        if not trainer.is_global_zero:
            return
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        name = f"completions/{kind}_{done:06d}.json"
        columns = table(batch, self.prompts)
        frame = pandas.DataFrame(columns)
        atomic_write_text(run_folder(trainer) / name, frame.to_json(orient="split", index=False))
        for client, run in mlflow_runs(trainer):
            # Not client.log_table, which would append to the rows that a killed run wrote for the same rollout.
            client.log_artifact(run, str(run_folder(trainer) / name), "completions")
            tables = json.loads(client.get_run(run).data.tags.get(TABLES, "[]"))
            if (entry := {"path": name, "type": "table"}) not in tables:
                client.set_tag(run, TABLES, newest([*tables, entry]))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"completions/{kind}", as_markdown(columns), done)
            elif isinstance(logger, WandbLogger):
                logger.log_table(f"completions/{kind}", dataframe=frame)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        rollout = getattr(pl_module, "last_rollout", None)
        if rollout is not None and self.every_n_rollouts and (done == 1 or done % self.every_n_rollouts == 0):
            self._log(trainer, rollout, "train")
            self._last_logged = done

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        rollout = getattr(pl_module, "last_rollout", None)
        if rollout is not None and self.every_n_rollouts and done != self._last_logged:
            self._log(trainer, rollout, "train")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if getattr(pl_module, "last_validation", None) and not trainer.sanity_checking:
            self._log(trainer, pl_module.last_validation[0], "val")
