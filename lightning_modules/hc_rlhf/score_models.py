"""The reward and cost of a constrained method: reward objects, folders of trained models, or models that it trains."""

from typing import Any

import lightning as L

from lightning_modules.hc_rlhf.scorer_training import MODELS, ScorerTraining, trained_scorer
from policies import PolicyParams, Scorer
from policies.locate import locate
from policies.scorer import load_facts, load_scorer
from rewards import HTTPJudge, Reward
from rewards.models import SPANS, ModelScore, Scale
from support.errors import ConfigError
from support.files import fingerprint, weights_fingerprint
from support.identity import identity_fingerprint, tokenizer_identity
from support.seen_prompts import SeenPrompts


class ScoreModels:
    """The reward and the cost of a constrained method.

    Args:
        reward_model, cost_model: folders of trained models; None trains them on preference pairs.
        rewards, cost: reward objects to use instead of models.
        training: settings of the models' training.
        cost_scale: scale of a cost model's scores; a reward object has its own.
    """

    def __init__(
        self,
        reward_model: str | None,
        cost_model: str | None,
        rewards: list[Reward],
        cost: Reward | None,
        training: ScorerTraining,
        cost_scale: Scale,
    ) -> None:
        for name, folder, part in (("reward", reward_model, rewards), ("cost", cost_model, cost)):
            if folder and part:
                part_key = "rewards" if name == "reward" else name
                raise ConfigError(f"both model.{name}_model and model.{part_key} are given; remove one of them.")
        if cost is not None and cost_scale != "raw":
            raise ConfigError(
                f"constraint.cost_scale is {cost_scale}, which rescales a cost model's scores, but model.cost "
                f"({type(cost).__name__}) has a scale of its own; set model.constraint.cost_scale: raw."
            )
        self.rewards, self.cost, self.training, self.cost_scale = rewards, cost, training, cost_scale
        self.folders = {
            kind: f for kind, f, part in (("reward", reward_model, rewards), ("cost", cost_model, cost)) if not part
        }
        #: the certificate's entries about them, once they are loaded
        self.facts: dict[str, Any] = {}

    @property
    def incomplete(self) -> bool:
        """Whether a model has to be trained."""
        return None in self.folders.values()

    @property
    def cost_range(self) -> tuple[float, float, bool]:
        """(smallest cost, largest cost, whether nothing lies between them)."""
        return self.cost.span if self.cost is not None else SPANS[self.cost_scale]

    def seen_prompts(self) -> SeenPrompts:
        """Fingerprints of the prompts that existing models have seen, as far as their folders state them."""
        seen = SeenPrompts()
        for kind, folder in self.folders.items():
            if folder:
                seen.update(_seen_by(folder, f"the {kind} model"))
        for part in _with_parts([*self.rewards, *([self.cost] if self.cost is not None else [])]):
            for scorer in (value for value in vars(part).values() if isinstance(value, Scorer)):
                seen.update(_seen_by(scorer.params.model, f"the model of the reward {part.name!r}"))
            if isinstance(part, HTTPJudge):
                seen.unknown.add(f"the served model of the reward {part.name!r}")
        return seen

    def train_missing(self, policy: PolicyParams, data: Any, trainer: L.Trainer) -> None:
        for kind, folder in self.folders.items():
            if folder is None:
                MODELS[kind].check_pairs(data.preferences.rows())  # of all models, before the first one is trained
        for kind, folder in self.folders.items():
            if folder is None:
                self.folders[kind] = self._trained(kind, policy, data, trainer)

    def _trained(self, kind: str, policy: PolicyParams, data: Any, trainer: L.Trainer) -> str:
        return trained_scorer(kind, policy, data.preferences.rows(), self.training, trainer)  # type: ignore[arg-type]

    def load(self, policy: PolicyParams, data: Any, trainer: L.Trainer) -> tuple[list[Reward], Reward]:
        """(rewards, cost); models that another process has trained come from the cache."""
        loaded: dict[str, ModelScore] = {}
        for kind, folder in self.folders.items():
            folder = folder or self._trained(kind, policy, data, trainer)
            scorer, facts = load_scorer(folder)
            self.facts[f"{kind}_model"] = {
                "id": _scorer_identity(scorer),
                "held_out": facts.get("held_out", "unknown"),
                "training_prompts": len(facts["prompts"])
                if "prompts" in facts
                else "unknown, so not compared with the safety split",
            }
            loaded[kind] = ModelScore(
                scorer, self.cost_scale if kind == "cost" else "raw", name={"reward": "reward_model"}.get(kind, kind)
            )
        replacements = {"reward_model": self.rewards, "cost_model": [self.cost] if self.cost is not None else []}
        for kind, parts in replacements.items():
            if parts:
                self.facts[kind] = {"id": identity_fingerprint(*parts), "parts": [_described(part) for part in parts]}
        rewards: list[Reward] = self.rewards or [loaded["reward"]]
        return rewards, self.cost if self.cost is not None else loaded["cost"]


def _seen_by(folder: str, name: str) -> SeenPrompts:
    """The prompts that a scorer saw: those of its training pairs, and those of the model that it started from."""
    facts, seen = load_facts(folder), SeenPrompts()
    if "prompts" in facts:
        seen.by_source[f"{name}'s training data"] = set(facts["prompts"])
    seen.update(SeenPrompts.of_model(locate(folder), f"the start of {name}" if "prompts" in facts else name), name)
    return seen


def _scorer_identity(scorer: Scorer) -> str:
    """Fingerprint of everything that decides a scorer's scores."""
    config = {name: value for name, value in scorer.backbone.config.to_dict().items() if name != "_name_or_path"}
    return fingerprint([weights_fingerprint(scorer.state_dict()), config, tokenizer_identity(scorer.tokenizer)])


def _with_parts(rewards: list[Reward]) -> list[Reward]:
    """The rewards and all rewards that they call."""
    return [one for reward in rewards for one in (reward, *_with_parts(reward.parts))]


def _described(part: Reward) -> str:
    """Class and plain settings of a reward and of its parts, for a reader of the certificate."""
    settings: dict[str, Any] = {}
    for name, value in sorted(vars(part).items()):
        if isinstance(value, (str, int, float)):
            settings[name] = value
        elif hasattr(value, "__qualname__"):
            settings[name] = f"{value.__module__}.{value.__qualname__}"
    inside = f" [{', '.join(_described(inner) for inner in part.parts)}]" if part.parts else ""
    return f"{type(part).__module__}.{type(part).__qualname__} {settings}{inside}"
