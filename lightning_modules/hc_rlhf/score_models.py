"""Where a method's reward and cost come from: parts that are given, folders of trained models, or models trained on the way."""

from typing import Any

import lightning as L
import torch

from lightning_modules.hc_rlhf.scorer_training import ScorerTraining, trained_scorer
from policies import PolicyParams
from policies.scorer import load_facts, load_scorer
from rewards import Reward
from rewards.models import SPANS, ModelScore, Scale
from support.errors import ConfigError
from support.files import fingerprint, weights_fingerprint


class ScoreModels:
    """The reward and the cost of a constrained method.

    Args:
        reward_model, cost_model: folders of trained models; trained from preference pairs when None.
        rewards, cost: parts to use instead.
        training: how models are trained.
        cost_scale: of a cost model; a part has its own.
    """

    def __init__(
        self, reward_model: str | None, cost_model: str | None, rewards: list[Reward], cost: Reward | None, training: ScorerTraining, cost_scale: Scale
    ) -> None:  # fmt: skip
        for name, folder, part in (("reward", reward_model, rewards), ("cost", cost_model, cost)):
            if folder and part:
                raise ConfigError(
                    f"both model.{name}_model and model.{'rewards' if name == 'reward' else name} are given; leave one out."
                )
        if cost is not None and cost_scale != "raw":
            raise ConfigError(
                f"constraint.cost_scale is {cost_scale}, which rescales a cost model's scores; model.cost ({type(cost).__name__}) has a scale of its own: set "
                "cost_scale: raw."
            )
        self.rewards, self.cost, self.training, self.cost_scale = rewards, cost, training, cost_scale
        self.folders = {
            kind: f for kind, f, part in (("reward", reward_model, rewards), ("cost", cost_model, cost)) if not part
        }
        #: what a certificate says about them, once loaded
        self.facts: dict[str, Any] = {}

    @property
    def incomplete(self) -> bool:
        """Whether a model has to be trained."""
        return None in self.folders.values()

    @property
    def cost_range(self) -> tuple[float, float, bool]:
        """(smallest cost, largest cost, whether nothing lies between them)."""
        return self.cost.span if self.cost is not None else SPANS[self.cost_scale]

    def seen_prompts(self) -> dict[str, list[str]]:
        """Fingerprints of the prompts that given models were trained on, as far as their folders say."""
        return {
            f"the {kind} model's training data": load_facts(f).get("prompts", [])
            for kind, f in self.folders.items()
            if f
        }

    def train_missing(self, policy: PolicyParams, data: Any, trainer: L.Trainer) -> None:
        for kind, folder in self.folders.items():
            if folder is None:
                self.folders[kind] = trained_scorer(kind, policy, data.preferences.rows(), self.training, trainer)  # type: ignore[arg-type]

    def load(self, policy: PolicyParams, data: Any, trainer: L.Trainer) -> tuple[list[Reward], Reward]:
        """(rewards, cost); what another process trained on the way comes from the cache."""
        loaded: dict[str, ModelScore] = {}
        for kind, folder in self.folders.items():
            folder = folder or trained_scorer(kind, policy, data.preferences.rows(), self.training, trainer)  # type: ignore[arg-type]
            scorer, facts = load_scorer(folder)
            identity = facts.get("id") or weights_fingerprint(scorer.state_dict())
            self.facts[f"{kind}_model"] = {
                "id": identity,
                "held_out": facts.get("held_out", "unknown"),
                "training_prompts": len(facts["prompts"])
                if "prompts" in facts
                else "unknown, so not compared with the safety split",
            }
            loaded[kind] = ModelScore(
                scorer, self.cost_scale if kind == "cost" else "raw", name={"reward": "reward_model"}.get(kind, kind)
            )
        parts = {"reward_model": self.rewards, "cost_model": [self.cost] if self.cost is not None else []}
        for kind, given in parts.items():
            if given:
                self.facts[kind] = {
                    "id": fingerprint(map(_identity, given)),
                    "parts": [_identity(part) for part in given],
                }
        rewards: list[Reward] = self.rewards or [loaded["reward"]]
        return rewards, self.cost if self.cost is not None else loaded["cost"]


def _identity(part: Reward) -> str:
    """What decides a part's scores: its class, plain settings, functions by their names, models by their weights."""
    settings: dict[str, Any] = {}
    for name, value in sorted(vars(part).items()):
        if isinstance(value, (str, int, float)):
            settings[name] = value
        elif isinstance(value, torch.nn.Module):
            settings[name] = weights_fingerprint(value.state_dict())
        elif hasattr(value, "__qualname__"):
            settings[name] = f"{value.__module__}.{value.__qualname__}"
    return f"{type(part).__module__}.{type(part).__qualname__} {settings}"
