"""Checks for contradicting settings of an objective, when the module is built."""

from typing import Protocol

from lightning_modules.core.part_types import check_part
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import Advantage, Aggregation, PolicyLoss
from rewards import Reward
from rollouts import BatchPlan, Environment, SamplingParams
from support.errors import ConfigError


class Method(Protocol):
    """The parts of an on-policy method that depend on one another."""

    rewards: list[Reward]
    batch: BatchPlan
    sampling: SamplingParams
    advantage: Advantage
    policy_loss: PolicyLoss
    aggregation: Aggregation
    kl: KLPenalty
    shaping: Shaping
    environment: Environment | None
    importance_cap: float | None
    max_grad_norm: float | None
    zero_variance_groups_have_no_gradient: bool
    needs_rewards: bool
    needs_correctness: bool
    has_critic: bool


def check_objective(method: Method) -> None:
    """Refuse settings that cannot be trained.

    Raises:
        ConfigError: with the key, its value, and what to set.
    """
    check_part(method, "advantage", method.advantage, Advantage, "GroupNorm()")
    check_part(method, "loss", method.policy_loss, PolicyLoss, "ClippedSurrogate()")
    check_part(method, "aggregation", method.aggregation, Aggregation, "TokenMean()")
    check_part(method, "kl", method.kl, KLPenalty, "KLPenalty(coefficient=0.04)")
    check_part(method, "shaping", method.shaping, Shaping, "Shaping()")
    if method.advantage.needs_critic != method.has_critic:
        name, kind = type(method).__name__, type(method.advantage).__name__
        raise ConfigError(
            f"{name} has a critic, whose values {kind} does not use; set model.advantage to objectives.GAE, or train "
            "without a critic, for example with lightning_modules.GRPO."
            if method.has_critic
            else f"model.advantage is {kind}, which needs a critic, and {name} has none; train with "
            "lightning_modules.PPO, or set model.advantage to one that needs no critic."
        )
    _check_turns(method)
    _check_rewards(method)
    _check_batch(method)
    if method.sampling.temperature == 0:
        raise ConfigError(
            "sampling.temperature is 0, so all completions of a prompt would be equal and nothing could be learned; "
            "set it above 0."
        )
    if method.max_grad_norm is not None and method.max_grad_norm <= 0:
        raise ConfigError(
            f"max_grad_norm is {method.max_grad_norm}; set it above 0, or to null for no clipping of gradients."
        )
    if method.importance_cap is not None and method.importance_cap < 1:
        raise ConfigError(f"importance_cap is {method.importance_cap}; set it to 1 or above, or to null for none.")
    if method.kl.placement == "token_reward" and not method.advantage.token_rewards:
        raise ConfigError(
            f"kl.placement is token_reward, but {type(method.advantage).__name__} takes one reward per completion; set "
            "kl.placement to reward, or model.advantage to objectives.ReinforcePlusPlus (baseline: none)."
        )


def _check_turns(method: Method) -> None:
    if method.shaping.credit == "turn":
        if method.environment is None:
            raise ConfigError(
                "shaping.credit is turn, but completions have one turn without an environment; set model.environment, "
                "or shaping.credit to completion."
            )
        if method.kl.placement == "token_reward" and method.kl.coefficient and not method.has_critic:
            raise ConfigError(
                "shaping.credit is turn, which needs one reward per turn, but kl.placement token_reward gives one per "
                "token; set kl.placement to reward or loss."
            )
    of_turns = [reward for reward in method.rewards if reward.reads_turns]
    if method.environment is None and of_turns:
        raise ConfigError(
            f"rewards.{type(of_turns[0]).__name__} reads what an environment gives for turns; set model.environment, "
            "or remove it from model.rewards."
        )


def _check_rewards(method: Method) -> None:
    name = type(method).__name__
    if method.needs_rewards and not method.rewards:
        raise ConfigError(
            f"{name} has no rewards, so there is nothing to maximise; list at least one in model.rewards."
        )
    if method.needs_correctness and not any(reward.is_correctness for reward in method.rewards):
        raise ConfigError(
            f"{name} needs a reward that judges correctness, and model.rewards has "
            f"{[reward.name for reward in method.rewards]}; add one such as rewards.ExactAnswer."
        )


def _check_batch(method: Method) -> None:
    batch, advantage, shaping = method.batch, method.advantage, method.shaping
    if batch.refill and not (method.zero_variance_groups_have_no_gradient and advantage.needs_group):
        learner = type(advantage).__name__ if method.zero_variance_groups_have_no_gradient else type(method).__name__
        raise ConfigError(
            f"batch.refill is {batch.refill}, but {learner} learns from groups of equal rewards too; set "
            "batch.refill to 0."
        )
    if batch.group_size == 1 and (advantage.needs_group or shaping.normalise_rewards):
        part = type(advantage).__name__ if advantage.needs_group else "shaping.normalise_rewards"
        raise ConfigError(
            f"batch.group_size is 1, but {part} compares a completion with the others of its prompt; set "
            "batch.group_size to 2 or more, or model.advantage to one that needs no group, such as "
            "objectives.RunningMean."
        )
