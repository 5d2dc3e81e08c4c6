"""The plan of a run as text: batch sizes, memory by phase, and settings that do nothing.

python main.py plan --config configs/grpo.yaml
"""

import math
from typing import Any

import lightning as L

from cli.idle_settings import idle_settings
from cli.memory_estimate import ModelSize, machine_memory, states_of
from cli.run_plan import RunPlan
from lightning_modules.core.critic import CriticMethod
from lightning_modules.core.on_policy import OnPolicyModule
from policies.compute import chosen_precision
from policies.params import PolicyParams
from rollouts import EmbeddedEngine
from support.errors import ConfigError


def describe(trainer: L.Trainer, module: Any, data: Any) -> str:
    """The whole plan as text.

    Raises:
        ConfigError: for a module that does not sample its own batches, and for sizes that do not fit together.
    """
    if not isinstance(module, OnPolicyModule):
        raise ConfigError(
            f"{type(module).__name__} has no rollouts, which is what plan describes. "
            "Start it with: python main.py fit ..."
        )
    plan = RunPlan.of(trainer, module, data)
    parts = {
        f"{type(module).__name__} on {module.policy_params.model}": batches(plan, module, data),
        "Memory per process, largest amounts": memory(plan, module),
        "Matrix products": precision(module.policy_params),
        "Settings that do nothing": idle_settings(plan, module, trainer) or ["none found"],
    }
    return "\n\n".join(title + "".join(f"\n  {line}" for line in lines) for title, lines in parts.items())


def batches(plan: RunPlan, module: OnPolicyModule, data: Any) -> list[str]:
    """Prompts, completions, tokens, steps and validations."""
    batch, evaluation, train = module.batch, module.evaluation, len(data.rows("train"))
    lines = [
        batch.describe(plan.processes),
        f"per rollout: at most {plan.rows:,} x {module.sampling.max_new_tokens:,} completion tokens + "
        f"{batch.prompts_per_rollout:,} prompts of at most {plan.prompt:,} = {plan.tokens:,} tokens",
    ]
    if (environment := module.environment) is not None:
        lines.append(
            f"environment: {type(environment).__name__}, at most {environment.max_turns} turns, which share the "
            "completion tokens with its replies"
        )
    if plan.rollouts is None or plan.steps is None:
        lines.append("per run: no end; set trainer.max_steps (optimiser steps)")
    else:
        sampled = plan.rollouts * batch.prompts_per_rollout
        lines.append(
            f"per run: {plan.rollouts:,} rollouts, {plan.steps:,} optimiser steps, "
            f"at most {plan.rollouts * plan.tokens:,} tokens"
        )
        lines.append(f"prompts: {sampled:,} drawn from {train:,}, {sampled / train:.2f} epochs")
    if plan.interval is None:
        return [*lines, "validation: none"]
    prompts = len(data.rows("val"))
    times = f", {plan.validations} in all with the one before training" if plan.validations else ""
    lines.append(
        f"validation: every {plan.interval:,} rollouts{times}, each {prompts:,} prompts x {evaluation.samples} = "
        f"{prompts * evaluation.samples:,} completions"
    )
    return lines


def memory(plan: RunPlan, module: OnPolicyModule) -> list[str]:
    """Bytes in memory in each phase, and the largest sum. Activations are an estimate, the rest is counted."""
    params = module.policy_params
    size = ModelSize.of(params)
    phases = {
        "always": resident(size, module),
        "rollout": in_rollout(size, plan, module),
        "update": in_update(size, plan, module),
    }
    lines = [f"{size.parameters:,} parameters, {size.trained:,} of them trained, {size.width} bytes each"]
    for phase, amounts in phases.items():
        lines += [f"{phase:<8}{name}: {amount(number)}" for name, number in amounts.items() if number]
    sums = {phase: sum(amounts.values()) for phase, amounts in phases.items()}
    available = machine_memory()
    lines.append(
        f"largest sum: {amount(sums['always'] + max(sums['rollout'], sums['update']))}"
        + (f"; this machine has {amount(available)}" if available else "")
    )
    if not params.packing:
        lines.append(
            "policy.packing is off, so an update needs more: padding, one prompt per completion, "
            "logits over the whole vocabulary"
        )
    if hasattr(module, "models"):
        lines.append("the reward and cost models need memory in addition")
    return lines


def precision(params: PolicyParams) -> list[str]:
    """The precision of matrix products on this machine, and the measurement that chose it."""
    if params.compute == "float32":
        return [f"{params.dtype}, or as trainer.precision says"]
    choice, measured = chosen_precision(params, ModelSize.of(params).config)
    return [f"{choice}, policy.compute {params.compute}", *([] if measured is None else [str(measured)])]


def resident(size: ModelSize, module: OnPolicyModule) -> dict[str, int]:
    """Bytes that are in memory throughout."""
    with_copy = module.with_reference and module.policy_params.lora is None
    numbers = states_of(module.optimizer_callable)
    critic, count = critics(module)
    return {
        "weights": size.parameters * size.width,
        "reference": size.parameters * size.width if with_copy else 0,
        "optimiser": numbers * size.trained * size.width,
        f"{count} critic(s), with the optimiser's state": 0
        if critic is None
        else count * (critic.parameters + numbers * critic.trained) * critic.width,
    }


def critics(module: OnPolicyModule) -> tuple[ModelSize | None, int]:
    """(size of a critic with a body of its own, number of them); None for others, whose heads are negligible."""
    if not isinstance(module, CriticMethod) or module.critic.body == "shared":
        return None, 0
    return ModelSize.of(module.critic_params), len(module.critic_names)


def in_rollout(size: ModelSize, plan: RunPlan, module: OnPolicyModule) -> dict[str, int]:
    """Bytes that generation needs in addition."""
    rows = plan.rows // plan.processes
    rows_at_once = min(rows, module.batch.rollout_micro_batch or rows)
    tokens = plan.prompt + module.sampling.max_new_tokens
    has_copies = isinstance(module.engine, EmbeddedEngine)
    return {
        "merged or transposed copies of matrices, at most": size.parameters * size.width if has_copies else 0,
        f"{'states' if size.state else 'keys and values'} of {rows_at_once:,} rows of {tokens:,} tokens": (
            size.cache_bytes(rows_at_once, tokens)
        ),
    }


def in_update(size: ModelSize, plan: RunPlan, module: OnPolicyModule) -> dict[str, int]:
    """Bytes that a backward pass needs in addition."""
    batch, new_tokens = module.batch, module.sampling.max_new_tokens
    rows_at_once = plan.rows // plan.processes // batch.updates_per_rollout
    if batch.update_token_budget is not None:
        rows_at_once = min(rows_at_once, max(1, (batch.update_token_budget - plan.prompt) // new_tokens))
    pass_size = math.ceil(rows_at_once / batch.group_size), plan.prompt, rows_at_once, new_tokens
    critic, count = critics(module)
    amounts = {
        "gradients": size.trained * size.width,
        f"activations of {rows_at_once:,} rows at once, about": size.activation_bytes(
            *pass_size, module.policy_params.gradient_checkpointing
        ),
    }
    if critic is not None and isinstance(module, CriticMethod):
        activations = critic.activation_bytes(*pass_size, module.critic_params.gradient_checkpointing)
        amounts["gradients and activations of the critic(s), about"] = count * (
            critic.trained * critic.width + activations
        )
    return amounts


def amount(number: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**29 else f"{number / 2**20:.1f} MiB"
