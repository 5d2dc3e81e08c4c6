"""Settings of a run that do nothing: each check names one, and the reason.

A setting counts as the user's where it differs from the method's own value: the default in the method's signature.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import lightning as L
import torch

from cli.memory_estimate import ModelSize
from cli.parameters import default_part
from cli.run_plan import RunPlan
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty
from objectives import ClippedSurrogate
from rollouts import BatchPlan


def idle_settings(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> list[str]:
    """One line per setting that does nothing in this run."""
    return [line for check in CHECKS if (line := check(plan, module, trainer))]


def method_value(module: OnPolicyModule, part: str, kind: type) -> Any:
    """A part as the method has it by default, or with the part's own defaults where the signature has no such part."""
    default = default_part(type(module), part)
    return default if type(default) is kind else kind()


def changed_fields(value: Any, default: Any) -> list[str]:
    """Names of the attributes in which an object differs from another of its class."""
    return [name for name in vars(default) if getattr(value, name) != getattr(default, name)]


def dropout(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """Dropout makes importance ratios noisy."""
    lora, config = module.policy_params.lora, ModelSize.of(module.policy_params).config
    rates = {
        name: value
        for name, value in config.to_dict().items()
        if "drop" in name and isinstance(value, float) and value > 0
    }
    rates |= {"lora.dropout": lora.dropout} if lora is not None and lora.dropout else {}
    if not rates:
        return None
    shown = ", ".join(f"{name} {value:g}" for name, value in rates.items())
    return (
        f"{shown}: dropout acts in updates and not in rollouts, so ratios are noise from the first step on; set it to 0"
    )


def kl(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """A KL penalty without a coefficient."""
    default = method_value(module, "kl", KLPenalty)
    changed = [
        field.name
        for field in fields(KLPenalty)
        if field.name != "coefficient" and getattr(module.kl, field.name) != getattr(default, field.name)
    ]
    if module.kl.coefficient or not changed:
        return None
    return f"kl.{', kl.'.join(changed)}: kl.coefficient is 0, so there is no reference and no penalty"


def group(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """A group without a second completion."""
    if module.batch.group_size > 1 or module.has_critic:  # a critic takes the group's place
        return None
    return "batch.group_size is 1: completions of a prompt are not compared with one another"


def clip(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """A clip range under one update per rollout."""
    if module.batch.updates > 1 or type(module.policy_loss) is not ClippedSurrogate:
        return None
    default_batch = default_part(type(module), "batch")
    if isinstance(default_batch, BatchPlan) and default_batch.updates > 1:
        return (
            f"loss.clip_low, loss.clip_high: with one update per rollout the ratio is 1 and nothing is clipped; "
            f"{type(module).__name__} makes {default_batch.updates} updates by default (batch.updates_per_rollout)"
        )
    changed = changed_fields(module.policy_loss, method_value(module, "loss", ClippedSurrogate))
    if not changed:
        return None
    return f"loss.{', loss.'.join(changed)}: with one update per rollout the ratio is 1 and nothing is clipped"


def budgets(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """Limits that a rollout does not reach."""
    batch, rows = module.batch, plan.rows // plan.processes
    tokens = rows * module.sampling.max_new_tokens + rows // batch.group_size * plan.prompt
    tokens //= batch.updates_per_rollout
    lines = []
    if (batch.update_token_budget or 0) >= tokens:
        lines.append(
            f"batch.update_token_budget {batch.update_token_budget:,} is more than the {tokens:,} tokens of an update"
        )
    if (batch.rollout_micro_batch or 0) >= rows:
        lines.append(
            f"batch.rollout_micro_batch {batch.rollout_micro_batch:,} is not less than the {rows:,} rows of a process"
        )
    return "; ".join(lines) or None


def shaping(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """Shaping that another setting makes void."""
    settings = module.shaping
    if settings.mask_truncated and settings.truncated_scale < 1:
        return (
            "shaping.truncated_scale: truncated completions carry no loss under shaping.mask_truncated; the scale only "
            "moves their group's mean"
        )
    if settings.normalise_rewards and len(module.rewards) == 1:
        return "shaping.normalise_rewards: there is one reward, which the advantage normalises anyway"
    return None


def weights(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """Rewards without a weight."""
    names = [reward.name for reward in module.rewards if reward.weight == 0]
    return f"rewards with weight 0 are logged and change nothing else: {', '.join(names)}" if names else None


def pass_at_k(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """pass@k without a judge of correctness."""
    is_judged = any(reward.is_correctness for reward in module.rewards) or hasattr(module, "models")
    if module.evaluation.pass_k is None or is_judged:
        return None
    return "evaluation.pass_k: no reward judges correctness, so there is no pass@k"


def schedule(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """A learning-rate scheduler of another length than the run."""
    if module.scheduler_callable is None or plan.steps is None or plan.rollouts is None:
        return None
    optimizer = module.optimizer_callable([torch.nn.Parameter(torch.zeros(1))])
    scheduler: Any = module.scheduler_callable(optimizer)
    lengths = [getattr(scheduler, name, None) for name in ("total_steps", "T_max", "total_iters")]
    total = next((int(length) for length in lengths if length is not None), None)
    steps = plan.steps if module.batch.lr_per == "update" else plan.rollouts
    if total is None or total == steps:
        return None
    consequence = (
        "ends before its learning rate does" if total > steps else "continues after its learning rate has ended"
    )
    name = type(scheduler).__name__
    return f"lr_scheduler: {name} is made for {total:,} steps and the run has {steps:,}, so it {consequence}"


def intervals(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    """Intervals longer than the run."""
    if plan.rollouts is None:
        return None
    late = [
        f"{type(callback).__name__}.every_n_rollouts {every}"
        for callback in getattr(trainer, "callbacks", [])
        if (every := getattr(callback, "every_n_rollouts", 0) or 0) > plan.rollouts
    ]
    if plan.interval is not None and plan.interval > plan.rollouts:
        late.append(f"trainer.val_check_interval {plan.interval}")
    # Nobody has set the default intervals of these two.
    late = [text for text in late if not text.startswith(("CompletionsTable", "RolloutProgress"))]
    return f"never reached within {plan.rollouts:,} rollouts: {', '.join(late)}" if late else None


CHECKS: tuple[Callable[[RunPlan, OnPolicyModule, L.Trainer], str | None], ...] = (
    dropout, kl, group, clip, budgets, shaping, weights, pass_at_k, schedule, intervals
)  # fmt: skip
