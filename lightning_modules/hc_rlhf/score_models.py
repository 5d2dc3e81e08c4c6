"""The reward and cost of a constrained method: reward objects, folders of trained models, or models that it trains."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import nn

from lightning_modules.hc_rlhf.scorer_training import MODELS, ScorerTraining, trained_scorer
from policies import PolicyParams, Scorer
from policies.locate import locate
from policies.scorer import load_facts, load_scorer
from rewards import HTTPJudge, Reward
from rewards.models import SPANS, ModelScore, Scale
from support.errors import ConfigError
from support.identity import identity_fingerprint
from support.reachable import reachable
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
        #: loaded models, each with the certificate's entries about its training
        self.loaded: dict[str, tuple[ModelScore, dict[str, Any]]] = {}

    @property
    def incomplete(self) -> bool:
        """Whether a model has to be trained."""
        return None in self.folders.values()

    @property
    def cost_range(self) -> tuple[float, float, bool]:
        """(smallest cost, largest cost, whether nothing lies between them)."""
        return self.cost.span if self.cost is not None else SPANS[self.cost_scale]

    def seen_prompts(self, rewards: Sequence[Reward]) -> SeenPrompts:
        """Fingerprints of the prompts that existing models have seen, as far as their folders state them.

        Args:
            rewards: the rewards and the cost in use, beside the models of this object.
        """
        seen = SeenPrompts()
        for kind, folder in self.folders.items():
            if folder:
                seen.update(_seen_by(folder, f"the {kind} model"))
        known = [part for part, _ in self.loaded.values()]
        for part in _with_parts([*self.rewards, *([self.cost] if self.cost is not None else []), *rewards]):
            if part not in known:
                seen.update(_seen_inside(part))
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
        for kind, folder in self.folders.items():
            folder = folder or self._trained(kind, policy, data, trainer)
            scorer, facts = load_scorer(folder)
            about = {
                "held_out": facts.get("held_out", "unknown"),
                "training_prompts": len(facts["prompts"])
                if "prompts" in facts
                else "unknown, so not compared with the safety split",
            }
            score = ModelScore(
                scorer, self.cost_scale if kind == "cost" else "raw", name={"reward": "reward_model"}.get(kind, kind)
            )
            self.loaded[kind] = score, about
        rewards: list[Reward] = self.rewards or [self.loaded["reward"][0]]
        return rewards, self.cost if self.cost is not None else self.loaded["cost"][0]

    def facts(self, rewards: list[Reward], cost: Reward) -> dict[str, Any]:
        """The certificate's entries about the rewards and the cost in use, with everything that they hold by now."""
        entries = {}
        for kind, parts in (("reward", rewards), ("cost", [cost])):
            score, about = self.loaded.get(kind, (None, {}))
            described = about if parts == [score] else {"parts": [_described(part) for part in parts]}
            entries[f"{kind}_model"] = {"id": identity_fingerprint(*parts), **described}
        return entries


def _seen_by(folder: str, name: str) -> SeenPrompts:
    """The prompts that a scorer saw: those of its training pairs, and those of the model that it started from."""
    facts, seen = load_facts(folder), SeenPrompts()
    if "prompts" in facts:
        seen.by_source[f"{name}'s training data"] = set(facts["prompts"])
    seen.update(SeenPrompts.of_model(locate(folder), f"the start of {name}" if "prompts" in facts else name), name)
    return seen


def _seen_inside(reward: Reward) -> SeenPrompts:
    """The prompts that the models inside a reward saw, wherever it holds them; those of its parts are not included."""
    seen, inside = SeenPrompts(), set[int]()
    if isinstance(reward, HTTPJudge):
        seen.unknown.add(f"the served model of the reward {reward.name!r}")
    for part in reachable(reward, ends=(Reward, Scorer)):
        if isinstance(part, Scorer):
            seen.update(_seen_by(part.params.model, f"the model of the reward {reward.name!r}"))
        elif isinstance(part, nn.Module) and id(part) not in inside:
            inside |= {id(inner) for inner in part.modules()}
            seen.unknown.add(f"a {type(part).__name__} in the reward {reward.name!r}")
    return seen


def _parts(reward: Reward) -> list[Reward]:
    """The rewards that a reward calls or holds, wherever it holds them; theirs are not included."""
    held = [part for part in reachable(reward, ends=(Reward, nn.Module)) if isinstance(part, Reward)]
    return list({id(part): part for part in (*reward.parts, *held)}.values())


def _with_parts(rewards: list[Reward]) -> list[Reward]:
    """The rewards and all rewards inside them, once each."""
    met: dict[int, Reward] = {}
    todo = list(rewards)
    while todo:
        if id(reward := todo.pop(0)) not in met:
            met[id(reward)] = reward
            todo += _parts(reward)
    return list(met.values())


def _described(part: Reward, outer: tuple[Reward, ...] = ()) -> str:
    """Class and plain settings of a reward and of those inside it, for a reader of the certificate."""
    settings: dict[str, Any] = {}
    for name, value in sorted(vars(part).items()):
        if isinstance(value, (str, int, float)):
            settings[name] = value
        elif hasattr(value, "__qualname__"):
            settings[name] = f"{value.__module__}.{value.__qualname__}"
    parts = [_described(inner, (*outer, part)) for inner in _parts(part) if inner not in (*outer, part)]
    inside = f" [{', '.join(parts)}]" if parts else ""
    return f"{type(part).__module__}.{type(part).__qualname__} {settings}{inside}"
