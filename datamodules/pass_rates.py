"""How difficult each prompt has shown itself to be: the pass rates of its groups, over the rollouts that drew it."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Label = str | int | None


@dataclass(frozen=True)
class Measurement:
    """One group of completions.

    Args:
        id: of the prompt. rollout: number of the rollout, from 0.
        rate: mean reward of the group; of a 0/1 reward, the share of right completions.
        task, level: of the prompt's data row, None where it has none.
    """

    id: str
    rollout: int
    rate: float
    task: Label = None
    level: Label = None


class PassRates:
    """id -> [(rollout, rate), ...], oldest first.

    Args:
        keep: newest measurements kept of each prompt; None keeps all.
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
        """Prompts that were measured."""
        return len(self.history)

    def latest(self, id: str) -> float | None:
        """The newest rate of a prompt; None if it was never drawn."""
        history = self.history.get(id)
        return history[-1][1] if history else None

    def mean(self, ids: Iterable[str]) -> float | None:
        """Mean of the newest rates of these prompts, of those that were drawn; None if none was."""
        rates = [rate for rate in map(self.latest, ids) if rate is not None]
        return sum(rates) / len(rates) if rates else None

    def by(self, column: str) -> dict[Label, list[tuple[int, float]]]:
        """All (rollout, rate) by a label of the prompts, `task` or `level`, in the order of the rollouts; prompts without it are left out."""
        found: dict[Label, list[tuple[int, float]]] = defaultdict(list)
        for id, history in self.history.items():
            if self.labels[id][column] is not None:
                found[self.labels[id][column]] += history
        return {
            label: sorted(found[label]) for label in sorted(found, key=lambda label: (isinstance(label, str), label))
        }

    def jsonl(self) -> str:
        """A line a prompt: {"id", "task", "level", "history": [[rollout, rate], ...]}."""
        rows = ({"id": id, **self.labels[id], "history": history} for id, history in self.history.items())
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def state_dict(self) -> dict[str, Any]:
        """Plain data, so that a checkpoint stays readable by safe loading."""
        return {"history": {id: list(history) for id, history in self.history.items()}, "labels": dict(self.labels)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {id: [(int(r), float(rate)) for r, rate in history] for id, history in state["history"].items()}
        self.labels = {id: dict(labels) for id, labels in state["labels"].items()}
