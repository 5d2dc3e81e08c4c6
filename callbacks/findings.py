"""Checks for silent failures during training: one function per failure, with its threshold and the reason for it.

A check reads the module and the measurements of the rollouts so far. It returns one paragraph with the measured figure
and the setting to change, or None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from objectives.statistics import group_statistics

#: number of consecutive rollouts that must show a failure: one or two may be chance
IN_A_ROW = 5
#: an advantage that is practically zero; normalised ones are about 1
SMALL = 1e-3


@dataclass
class Seen:
    """Measurements of one rollout, over all processes. All fields are plain data, since they are part of a checkpoint.

    Fields:
        rows: number of completions.
        truncated: number of completions that were cut off at the maximum length.
        longest: length of the longest completion, in tokens.
        spread: smallest and largest score by reward, and of their weighted sum under ""; (inf, -inf) where none
            applied.
        signal: number of groups whose completions have different totals.
        advantage: largest absolute advantage among the rows that the update learned from.
        moved: norm of the last change of the watched weights, divided by the norm of these weights.
        changed: largest fraction of one watched tensor's weights that changed.
        learning_rate: the policy's.
        entropy, kl, grad_norm: as logged; NaN where they are not logged.
        explained: fraction of the variance of a critic's targets that its values explain; NaN without a critic.
        gap: mean difference of the engine's log-probs from the policy's before the update; NaN where it is not logged.
    """

    rows: int
    truncated: int
    longest: int
    spread: dict[str, tuple[float, float]]
    signal: int
    advantage: float
    moved: float = math.nan
    changed: float = math.nan
    learning_rate: float = math.nan
    entropy: float = math.nan
    kl: float = math.nan
    grad_norm: float = math.nan
    gap: float = math.nan
    explained: float = math.nan

    @classmethod
    def of(cls, module: Any) -> "Seen":
        """This process's part of the latest rollout."""
        batch, learned = module.last_sampled, module.last_rollout
        totals = module.totals(batch)
        return cls(
            rows=len(batch.finish_reasons),
            truncated=int(batch.truncated.sum()),
            longest=int(batch.lengths.max()),
            spread={name: _range(values) for name, values in ({"": totals} | batch.rewards).items()},
            signal=int((group_statistics(totals, batch.groups)[1] > 0).sum()),
            advantage=float(learned.advantages.abs().max()),
        )

    @staticmethod
    def together(parts: list["Seen"]) -> "Seen":
        """The whole rollout from the processes' parts."""
        first = parts[0]
        first.rows, first.truncated, first.signal = (
            sum(getattr(p, name) for p in parts) for name in ("rows", "truncated", "signal")
        )
        first.longest, first.advantage = max(p.longest for p in parts), max(p.advantage for p in parts)
        lows, highs = ({name: [p.spread[name][end] for p in parts] for name in first.spread} for end in (0, 1))
        first.spread = {name: (min(lows[name]), max(highs[name])) for name in first.spread}
        return first


def _range(values: Any) -> tuple[float, float]:
    known = values[~values.isnan()]
    return (float(known.min()), float(known.max())) if len(known) else (math.inf, -math.inf)


def streak(seen: list[Seen], holds: Callable[[Seen], bool], rollouts: int = IN_A_ROW) -> bool:
    """Whether a condition held in each of the last rollouts."""
    return len(seen) >= rollouts and all(holds(one) for one in seen[-rollouts:])


def no_end_token(module: Any, seen: list[Seen]) -> str | None:
    """No completion ended by itself. Of a hundred completions of a working model, at least one does."""
    recent = seen[-IN_A_ROW:]
    if not streak(seen, lambda one: one.truncated == one.rows):
        return None
    names = ", ".join(
        f"{module.policy.tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in module.policy.eos_token_ids
    )
    return (
        f"None of {sum(one.rows for one in recent)} completions of the last {IN_A_ROW} rollouts ended by itself; all "
        f"were cut off at {recent[-1].longest} tokens. Either sampling.max_new_tokens is too small for this task, or "
        f"the model never produces its end token, {names}, because it is a base model without fine-tuning or ends its "
        "turns with another token. Raise sampling.max_new_tokens, or set sampling.stop or eos_token_id in the model "
        "folder's generation_config.json."
    )


def truncated(module: Any, seen: list[Seen]) -> str | None:
    """From 90 % truncated completions on, the policy learns what fits, not what is right."""
    if not streak(seen, lambda one: one.truncated >= 0.9 * one.rows) or all(
        one.truncated == one.rows for one in seen[-IN_A_ROW:]
    ):
        return None
    fraction = sum(one.truncated for one in seen[-IN_A_ROW:]) / sum(one.rows for one in seen[-IN_A_ROW:])
    return (
        f"{fraction:.0%} of the completions of the last {IN_A_ROW} rollouts were cut off at {seen[-1].longest} tokens, "
        "before their answer. Raise sampling.max_new_tokens, or penalise length with rewards.SoftOverlong if the model "
        "could answer in fewer tokens."
    )


def abstains(module: Any, seen: list[Seen]) -> str | None:
    """A reward that never applies costs time and has no effect."""
    for reward in module.rewards:
        if streak(seen, lambda one, name=reward.name: one.spread[name][0] > one.spread[name][1]):  # type: ignore[misc]
            return (
                f"The reward {reward.name!r} applied to none of the completions of the last {IN_A_ROW} rollouts (it "
                "abstained, NaN). Check the data column or task that it reads, or remove it from model.rewards."
            )
    return None


def constant_reward(module: Any, seen: list[Seen]) -> str | None:
    """A total that is equal for all completions has no gradient, nor has one reward that was constant for 20 rollouts.

    Single rewards get more time, because a penalty on rare events is zero most of the time. Methods whose advantages
    have another source (a cost, a reference) are not reported.
    """
    names = {"": IN_A_ROW} | {reward.name: 4 * IN_A_ROW for reward in module.rewards}
    for name, rollouts in names.items():
        value = seen[-1].spread.get(name, (0.0, 1.0))

        def stayed(one: Seen, name: str = name, value: tuple[float, float] = value) -> bool:
            return one.spread.get(name) == value and (bool(name) or one.advantage < SMALL)

        if value[0] == value[1] and streak(seen, stayed, rollouts):
            who = f"The reward {name!r}" if name else "The sum of the rewards"
            completions = sum(one.rows for one in seen[-rollouts:])
            return (
                f"{who} was {value[0]:g} for every completion of the last {rollouts} rollouts ({completions} "
                "completions), so it has no gradient. Read completions/ in the run's folder to find out what the "
                "reward misses (the answer's format, an open think block). Then give partial credit, or choose easier "
                "prompts, or harder ones if all completions are right."
            )
    return None


def no_signal(module: Any, seen: list[Seen]) -> str | None:
    """Rewards differ between prompts but never within a group, so the group's baseline makes every advantage zero."""
    if module.batch.group_size == 1 or not module.advantage.needs_group:
        return None
    if not streak(seen, lambda one: one.signal == 0 and one.advantage < SMALL):
        return None
    if len({end for one in seen[-IN_A_ROW:] for end in one.spread[""]}) == 1:
        return None  # reported by constant_reward
    return (
        f"In the last {IN_A_ROW} rollouts the completions of each group had equal rewards, though prompts differed, so "
        f"every advantage was zero. Raise batch.group_size ({module.batch.group_size}) or sampling.temperature "
        f"({module.sampling.temperature:g}), choose prompts that are solved sometimes, or use an advantage over the "
        "whole rollout (objectives.GlobalNorm)."
    )


def zero_advantages(module: Any, seen: list[Seen]) -> str | None:
    """Rewards differ within groups, but the advantages are a thousandth of a normalised advantage or less."""
    if not streak(seen, lambda one: one.signal > 0 and one.advantage < SMALL):
        return None
    largest = max(one.advantage for one in seen[-IN_A_ROW:])
    return (
        f"Rewards differ within groups, but the largest advantage of the last {IN_A_ROW} rollouts was {largest:.2g}: "
        f"{type(module.advantage).__name__} turns such small differences into almost nothing. Raise the rewards' "
        "weight, lower the advantage's eps, or check from which reward on a completion counts as right "
        "(PassAtK.correct_at)."
    )


def entropy_collapse(module: Any, seen: list[Seen]) -> str | None:
    """Learning lowers the entropy; below 1 % of its start, all completions of a group are the same."""
    start = [one.entropy for one in seen[:IN_A_ROW]]
    if len(seen) < 2 * IN_A_ROW or not streak(seen, lambda one: one.entropy < 0.01 * sum(start) / len(start)):
        return None
    return (
        f"The entropy fell from {sum(start) / len(start):.3g} to {seen[-1].entropy:.3g} nats per token: the "
        "completions of a group hardly differ any more, so they give no gradient. Set shaping.entropy_bonus, raise "
        "loss.clip_high (DAPO: 0.28), add a KL penalty (kl.coefficient), or lower the learning rate."
    )


def kl_explosion(module: Any, seen: list[Seen]) -> str | None:
    """At 1 nat per token the reference gives the sampled tokens about a third of the policy's probability."""
    if not streak(seen, lambda one: one.kl > 1.0):
        return None
    return (
        f"The KL to the reference is {seen[-1].kl:.3g} nats per token (above 1 in the last {IN_A_ROW} rollouts): the "
        "policy's text is unlikely under the reference, often because the policy exploits the reward. Read the "
        "completions; then raise kl.coefficient, use callbacks.AdaptiveKL, or lower the learning rate."
    )


def zero_gradient(module: Any, seen: list[Seen]) -> str | None:
    """Advantages are not zero but the gradient is: the loss does not depend on them."""
    if not streak(seen, lambda one: one.grad_norm == 0 and one.advantage >= SMALL):
        return None
    return (
        f"The gradient's norm was 0 in the last {IN_A_ROW} rollouts although advantages were not. No token carries "
        "loss: all completions are truncated under shaping.mask_truncated, all tokens are forced, every ratio is "
        "clipped, or the loss does not depend on the log-probs."
    )


def weights_still(module: Any, seen: list[Seen]) -> str | None:
    """There is a gradient, but less than 5 % of the watched weights changed, or all by less than a millionth."""
    recent = seen[-IN_A_ROW:]
    if not streak(seen, lambda one: one.grad_norm > 0 and (one.changed < 0.05 or one.moved < 1e-6)):
        return None
    kind = str(next(module.policy.model.parameters()).dtype).removeprefix("torch.")
    return (
        f"The weights hardly change: in the last {IN_A_ROW} rollouts at most {max(one.changed for one in recent):.1%} "
        f"of those watched changed, by {recent[-1].moved:.1g} of their norm per rollout, at a learning rate of "
        f"{recent[-1].learning_rate:g} in {kind}. Raise model.optimizer's lr, or check the scheduler's. In bfloat16, "
        "steps below a hundredth of a weight are rounded away: use float32 weights or LoRA."
    )


def learning_rate_huge(module: Any, seen: list[Seen]) -> str | None:
    """A change of the weights by 10 % in one rollout destroys what the model has learned."""
    if not seen[-1].moved >= 0.1:
        return None
    return (
        f"One rollout changed the weights by {seen[-1].moved:.0%} of their norm at a learning rate of "
        f"{seen[-1].learning_rate:g}; steps of this size destroy what the model has learned. Lower model.optimizer's "
        "lr (1e-6 to 1e-5 for models with billions of weights, 3e-4 for those with a million or for LoRA), or warm it "
        "up."
    )


def behaviour_gap(module: Any, seen: list[Seen]) -> str | None:
    """The log-probs of the rollout are not those of the update, although the policy is the same.

    In float32 they differ by rounding, 1e-6; a hundredth is a fault. Engines that compute in another precision are
    reported from a tenth on. Tokens that were sampled from another distribution (top-p) are not judged; those of a
    method's own, or of an earlier policy, are compared with the log-probs that its `behaviour` gives.
    """
    if not seen[-1].gap > 0.01 or not module.plain_sampling:
        return None
    limit = 0.01 if module.engine.matches(module.policy) else 0.1
    if seen[-1].gap <= limit:
        return None
    return (
        f"The log-probs that {type(module.engine).__name__} recorded differ by {seen[-1].gap:.2g} nats per token from "
        f"those that the update computes with the same weights (at most {limit:g} is rounding), so the policy learns "
        "from another distribution than the one that was sampled. Compare with another engine "
        "(rollouts.TransformersEngine) and with policy.packing: false to find which of the two is wrong; "
        "policy.dropout and lora.dropout cause it too."
    )


def critic_learns_nothing(module: Any, seen: list[Seen]) -> str | None:
    """A critic whose values explain nothing after 20 rollouts: the advantages are noisier than without it."""
    if not streak(seen, lambda one: one.explained < 0, 4 * IN_A_ROW):
        return None
    return (
        f"The critic explained {seen[-1].explained:.2f} of the variance of its targets, and less than nothing in each "
        f"of the last {4 * IN_A_ROW} rollouts, so its values add noise to the advantages. Raise critic.lr "
        f"({module.critic.lr:g}), set critic.warmup_rollouts, raise critic.value_clip "
        f"({module.critic.value_clip}) if value_clip_fraction is high, or train without a critic "
        "(lightning_modules.GRPO)."
    )


WHILE_TRAINING = (
    no_end_token,
    truncated,
    abstains,
    constant_reward,
    no_signal,
    zero_advantages,
    entropy_collapse,
    kl_explosion,
    zero_gradient,
    weights_still,
    learning_rate_huge,
    behaviour_gap,
    critic_learns_nothing,
)
