"""Measured difficulty of prompts: the pass rates of their groups over the rollouts that sampled them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Label = str | int | None


@dataclass(frozen=True)
class Measurement:
    """Pass rate of one prompt group.

    Args:
        id: id of the prompt.
        rollout: number of the rollout, from 0.
        rate: mean reward of the group; for a 0/1 reward, the fraction of right completions.
        task, level: columns of the prompt's data row, None where it has none.
    """

    id: str
    rollout: int
    rate: float
    task: Label = None
    level: Label = None


class PassRates:
    """History of pass rates, id -> [(rollout, rate), ...], oldest first.

    Args:
        keep: number of latest measurements kept per prompt; None keeps all.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.labels: dict[str, dict[str, Label]] = {}

    def add(self, measurement: Measurement) -> None:
        history = self.history.setdefault(measurement.id, [])
        history.append((measurement.rollout, measurement.rate))
        if self.keep is not None:
            del history[: -self.keep]
        self.labels[measurement.id] = {"task": measurement.task, "level": measurement.level}

    def __len__(self) -> int:
        """Number of prompts that were measured."""
        return len(self.history)

    def latest(self, id: str) -> float | None:
        """The latest rate of a prompt; None if it was never sampled."""
        history = self.history.get(id)
        return history[-1][1] if history else None

    def mean(self, ids: Iterable[str]) -> float | None:
        """Mean of the latest rates of those of these prompts that were sampled; None if none was."""
        rates = [rate for rate in map(self.latest, ids) if rate is not None]
        return sum(rates) / len(rates) if rates else None

    def by(self, column: str) -> dict[Label, list[tuple[int, float]]]:
        """All (rollout, rate) pairs by the prompts' `task` or `level`, in the order of the rollouts.

        Prompts without this column are left out.
        """
        pairs: dict[Label, list[tuple[int, float]]] = defaultdict(list)
        for id, history in self.history.items():
            if self.labels[id][column] is not None:
                pairs[self.labels[id][column]] += history
        labels = sorted(pairs, key=lambda label: (isinstance(label, str), label))
        return {label: sorted(pairs[label]) for label in labels}

    def jsonl(self) -> str:
        """One line per prompt: {"id", "task", "level", "history": [[rollout, rate], ...]}."""
        rows = ({"id": id, **self.labels[id], "history": history} for id, history in self.history.items())
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def state_dict(self) -> dict[str, Any]:
        """The history as plain data, so that a checkpoint stays readable by safe loading."""
        return {"history": {id: list(history) for id, history in self.history.items()}, "labels": dict(self.labels)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {id: [(int(r), float(rate)) for r, rate in history] for id, history in state["history"].items()}
        self.labels = {id: dict(labels) for id, labels in state["labels"].items()}
