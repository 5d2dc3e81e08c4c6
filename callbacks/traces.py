"""Traces of a few prompt groups of every validation, for reading one by one on MLflow's pages."""

import json
import math
from typing import Any

import lightning as L

from rollouts import RolloutBatch, Turns
from support.errors import ConfigError
from tracking.run_records import Facts, now_ms, record
from tracking.runs import mlflow_runs


def group(batch: RolloutBatch, prompt: int) -> Facts:
    """Contents of a trace: one prompt and its completions."""
    row, size = batch.rows[prompt], batch.group_size
    text = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
    completions: list[Facts] = []
    texts = batch.turn_texts if batch.turns is not None else []
    for index in range(prompt * size, (prompt + 1) * size):
        rewards = {name: float(scores[index]) for name, scores in batch.rewards.items()}
        completions.append(
            {
                "completion": batch.completions[index],
                "tokens": int(batch.lengths[index]),
                "finish": batch.finish_reasons[index],
                "rewards": {name: value for name, value in rewards.items() if not math.isnan(value)},
            }
        )
        if batch.turns is not None:
            completions[-1]["turns"] = _turns(batch.turns, texts[index], index)
    return {
        "prompt": text,
        "prompt_id": str(row.get("id", prompt)),
        "answer": row.get("answer"),
        "completions": completions,
    }


def _turns(turns: Turns, texts: list[str], row: int) -> list[Facts]:
    """Contents of the spans of a completion's turns."""
    rewards = turns.rewards[row].tolist()
    return [
        {
            "text": text,
            "tokens": int(turns.lengths(turn)[row]),
            "finish": turns.finish_reasons[row][turn],
            "reward": None if math.isnan(rewards[turn]) else rewards[turn],
        }
        for turn, text in enumerate(texts)
    ]


class CompletionTraces(L.Callback):
    """After every validation, record the first prompt groups as traces: prompt, completions, mean of each reward as
    feedback.

    The prompts are the same every time, so that one can be followed through training. A trace takes some hundredths of
    a second.

    Args:
        prompts: number of traces per validation; 0 for none.
    """

    def __init__(self, prompts: int = 3) -> None:
        if prompts < 0:
            raise ConfigError(f"CompletionTraces: prompts is {prompts}; it must be 0 or above.")
        self.prompts = prompts

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not getattr(pl_module, "last_validation", None) or trainer.sanity_checking:
            return
        runs, batch = mlflow_runs(trainer), pl_module.last_validation[0]
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        for prompt in range(min(self.prompts, len(batch.rows)) if runs else 0):
            facts = group(batch, prompt) | {
                "name": f"val, rollout {done}",
                "rollout": done,
                "judge": type(pl_module).__name__,
                "time_ms": now_ms(),
            }
            for client, run in runs:
                record(client, run, "trace", facts)
