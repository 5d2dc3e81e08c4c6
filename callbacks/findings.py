"""What silent failures look like while training: a small function for each, with its threshold and the reason for it.

A check sees the module and what the rollouts so far showed. It returns one paragraph with the measured figure and the knob to turn, or None.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from objectives.statistics import group_statistics

#: rollouts in a row that must show a thing: one or two may be chance
IN_A_ROW = 5
#: an advantage that is next to none; normalised ones are about 1
SMALL = 1e-3


@dataclass
class Seen:
    """What one rollout showed, over all processes. All fields are plain data, since they are part of a checkpoint.

    Fields:
        rows: completions. truncated: of them, cut off at their greatest length. longest: that length in tokens, as found.
        spread: smallest and largest score by reward, and of their weighted sum under ""; (inf, -inf) where none applied.
        signal: groups whose completions earn different sums. advantage: the largest in size, of those that were learned from.
        moved: size of the last change of the weights that are watched, over their size; changed: the largest share of one tensor's that changed.
        learning_rate: the largest. entropy, kl, grad_norm: as logged; NaN where they are not.
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
    """Whether a thing held in each of the last rollouts."""
    return len(seen) >= rollouts and all(holds(one) for one in seen[-rollouts:])


def no_end_token(module: Any, seen: list[Seen]) -> str | None:
    """Not one completion ended by itself; among a hundred of a working model one does."""
    found = seen[-IN_A_ROW:]
    if not streak(seen, lambda one: one.truncated == one.rows):
        return None
    names = ", ".join(
        f"{module.policy.tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in module.policy.eos_token_ids
    )
    return (
        f"None of {sum(one.rows for one in found)} completions of the last {IN_A_ROW} rollouts ended by itself; all were cut off at {found[-1].longest} tokens. Either "
        f"sampling.max_new_tokens is too small for this task, or the model never produces its end token, {names}: a base model without fine-tuning, "
        "or one whose turns end with another token (set generation_config.eos_token_id of the model's folder, or sampling.stop)."
    )


def truncated(module: Any, seen: list[Seen]) -> str | None:
    """From nine in ten on, what is learned is what fits, not what is right."""
    if not streak(seen, lambda one: one.truncated >= 0.9 * one.rows) or all(
        one.truncated == one.rows for one in seen[-IN_A_ROW:]
    ):
        return None
    share = sum(one.truncated for one in seen[-IN_A_ROW:]) / sum(one.rows for one in seen[-IN_A_ROW:])
    return (
        f"{share:.0%} of the completions of the last {IN_A_ROW} rollouts were cut off at {seen[-1].longest} tokens, before their answer. Raise "
        "sampling.max_new_tokens; or punish length (rewards.SoftOverlong), if the model could be shorter."
    )


def abstains(module: Any, seen: list[Seen]) -> str | None:
    """A reward that never applies costs time and decides nothing."""
    for reward in module.rewards:
        if streak(seen, lambda one, name=reward.name: one.spread[name][0] > one.spread[name][1]):  # type: ignore[misc]
            return (
                f"The reward {reward.name!r} applied to none of the completions of the last {IN_A_ROW} rollouts (it abstained, NaN). Check the data column or "
                "task that it looks for, or take it out of model.rewards."
            )
    return None


def constant_reward(module: Any, seen: list[Seen]) -> str | None:
    """A sum that is the same for every completion is no preference; one part that never varied in 20 rollouts decides nothing either.

    Single rewards get more time: a penalty of rare things is zero most of the time. A method that has advantages from elsewhere (a cost, a reference) is
    left alone.
    """
    names = {"": IN_A_ROW} | {reward.name: 4 * IN_A_ROW for reward in module.rewards}
    for name, rollouts in names.items():
        value = seen[-1].spread.get(name, (0.0, 1.0))
        if value[0] == value[1] and streak(
            seen,
            lambda one, n=name, v=value: one.spread.get(n) == v and (bool(n) or one.advantage < SMALL),  # type: ignore[misc]
            rollouts,
        ):
            who = f"The reward {name!r}" if name else "The sum of the rewards"
            return (
                f"{who} was {value[0]:g} for every completion of the last {rollouts} rollouts ({sum(one.rows for one in seen[-rollouts:])} completions). Nothing can be "
                "learned from that: read completions/ of the run for what the reward misses (the answer's format, an open think block), give partial credit, "
                "or choose easier prompts, or harder ones if everything is right."
            )
    return None


def no_signal(module: Any, seen: list[Seen]) -> str | None:
    """Rewards differ between prompts, never within a group, so a baseline of the group leaves nothing: its deviation is zero."""
    if module.batch.group_size == 1 or not module.advantage.needs_group:
        return None
    if not streak(seen, lambda one: one.signal == 0 and one.advantage < SMALL):
        return None
    if len({end for one in seen[-IN_A_ROW:] for end in one.spread[""]}) == 1:
        return None  # said by constant_reward
    return (
        f"In the last {IN_A_ROW} rollouts no group's completions earned different rewards, though prompts did, so every advantage was zero. Raise "
        f"batch.group_size ({module.batch.group_size}) or sampling.temperature ({module.sampling.temperature:g}), choose prompts that are solved sometimes, or an advantage "
        "over the whole rollout (objectives.GlobalNorm)."
    )


def zero_advantages(module: Any, seen: list[Seen]) -> str | None:
    """Groups do differ, but what reaches the loss is a thousandth of a normalised advantage's size or less."""
    if not streak(seen, lambda one: one.signal > 0 and one.advantage < SMALL):
        return None
    return (
        f"Rewards differ within groups, but the largest advantage of the last {IN_A_ROW} rollouts was {max(one.advantage for one in seen[-IN_A_ROW:]):.2g}: "
        f"{type(module.advantage).__name__} makes almost nothing of such small differences. Scale the rewards up (their weight), lower the advantage's eps, or check "
        "from which reward on it counts a completion as right (PassAtK.correct_at)."
    )


def entropy_collapse(module: Any, seen: list[Seen]) -> str | None:
    """Falling entropy is what learning looks like; below a hundredth of where it began, all completions of a group are the same."""
    start = [one.entropy for one in seen[:IN_A_ROW]]
    if len(seen) < 2 * IN_A_ROW or not streak(seen, lambda one: one.entropy < 0.01 * sum(start) / len(start)):
        return None
    return (
        f"The entropy fell from {sum(start) / len(start):.3g} to {seen[-1].entropy:.3g} nats a token: the policy hardly varies any more, so groups can show it nothing "
        "new. Set shaping.entropy_bonus, raise loss.clip_high (DAPO: 0.28), add a KL penalty (kl.coefficient), or lower the learning rate."
    )


def kl_explosion(module: Any, seen: list[Seen]) -> str | None:
    """One nat a token: the reference gives the policy's tokens a third of the probability that the policy does, on the average."""
    if not streak(seen, lambda one: one.kl > 1.0):
        return None
    return (
        f"The KL to the reference is {seen[-1].kl:.3g} nats a token (above 1 in the last {IN_A_ROW} rollouts): the policy writes what the reference would not, often "
        "because it exploits the reward. Raise kl.coefficient, use callbacks.AdaptiveKL, or lower the learning rate; then read the completions."
    )


def zero_gradient(module: Any, seen: list[Seen]) -> str | None:
    """Advantages are there and the gradient is not: the loss does not see them."""
    if not streak(seen, lambda one: one.grad_norm == 0 and one.advantage >= SMALL):
        return None
    return (
        f"The gradient's norm was 0 in the last {IN_A_ROW} rollouts although advantages were not. The loss sees no token: all completions are truncated under "
        "shaping.mask_truncated, everything is forced, every ratio is clipped, or the loss does not depend on the log-probs."
    )


def weights_still(module: Any, seen: list[Seen]) -> str | None:
    """There is a gradient, but fewer than one in twenty of the watched weights changed, or all of them by less than a millionth."""
    found = seen[-IN_A_ROW:]
    if not streak(seen, lambda one: one.grad_norm > 0 and (one.changed < 0.05 or one.moved < 1e-6)):
        return None
    kind = str(next(module.policy.model.parameters()).dtype).removeprefix("torch.")
    return (
        f"The weights stand still: in the last {IN_A_ROW} rollouts at most {max(one.changed for one in found):.1%} of those watched changed, by {found[-1].moved:.1g} of "
        f"their size a rollout, at a learning rate of {found[-1].learning_rate:g} in {kind}. Raise model.optimizer's lr (or look at the scheduler's); in bfloat16, steps "
        "below a hundredth of a weight are rounded away: use float32 weights or LoRA."
    )


def learning_rate_huge(module: Any, seen: list[Seen]) -> str | None:
    """A tenth of the weights' size in one rollout is another model."""
    if not seen[-1].moved >= 0.1:
        return None
    return (
        f"One rollout changed the weights by {seen[-1].moved:.0%} of their size at a learning rate of {seen[-1].learning_rate:g}; what the model knew is lost at such "
        "steps. Lower model.optimizer's lr (1e-6 to 1e-5 for models of billions of weights, 3e-4 for those of a million or for LoRA), or warm it up."
    )


WHILE_TRAINING = (
    no_end_token, truncated, abstains, constant_reward, no_signal, zero_advantages, entropy_collapse, kl_explosion, zero_gradient, weights_still,
    learning_rate_huge,
)  # fmt: skip
