"""What a run would do and need, before anything is loaded: batch arithmetic, memory by phase, and settings that do nothing.

python main.py plan --config configs/grpo.yaml
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import lightning as L

from cli.memory_estimate import ModelSize, machine_memory, states_of
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty
from objectives import ClippedSurrogate
from policies import encode_prompt, load_tokenizer
from rollouts import EmbeddedEngine
from support.errors import ConfigError

#: prompts, the longest in characters, that are encoded to find the longest in tokens
ENCODED = 64


@dataclass
class RunPlan:
    """The numbers of a run.

    Fields:
        rows: completions a rollout. prompt: tokens of the longest prompt. tokens: most of a rollout. steps: optimiser steps, None without an end.
        rollouts: of the run, None without an end. epoch: rollouts of one. validations: of the run, the one before training included. interval: rollouts from one to
            the next, None for none. processes: that share a rollout.
    """

    rows: int
    prompt: int
    tokens: int
    steps: int | None
    rollouts: int | None
    epoch: int
    interval: int | None
    validations: int
    processes: int

    @classmethod
    def of(cls, trainer: L.Trainer, module: OnPolicyModule, data: Any) -> "RunPlan":
        batch, train = module.batch, data.rows("train")
        tokenizer = load_tokenizer(module.policy_params.model)
        longest = sorted((row["prompt"] for row in train), key=lambda prompt: -len(str(prompt)))[:ENCODED]
        prompt = max(len(encode_prompt(tokenizer, one)) for one in longest)
        rows, epoch = batch.prompts_per_rollout * batch.group_size, len(train) // batch.prompts_per_rollout
        limits = [math.ceil(trainer.max_steps / batch.updates)] if trainer.max_steps > 0 else []
        limits += [trainer.max_epochs * epoch] if (trainer.max_epochs or -1) > 0 else []  # type: ignore[operator]
        rollouts = min(limits, default=None)
        every = trainer.val_check_interval or 1.0
        interval: int | None = every if isinstance(every, int) else max(1, int(every * epoch))
        if not trainer.limit_val_batches:
            interval = None
        validations = 0 if interval is None or rollouts is None else 1 + rollouts // interval
        steps = None if rollouts is None else rollouts * batch.updates
        tokens = rows * module.sampling.max_new_tokens + batch.prompts_per_rollout * prompt
        return cls(rows, prompt, tokens, steps, rollouts, epoch, interval, validations, trainer.world_size)


def describe(trainer: L.Trainer, module: Any, data: Any) -> str:
    """The whole plan, for people.

    Raises:
        ConfigError: for a module that does not sample its own batches, and for sizes that do not fit together.
    """
    if not isinstance(module, OnPolicyModule):
        raise ConfigError(f"plan is about rollouts, and {type(module).__name__} has none; start it with fit.")
    plan = RunPlan.of(trainer, module, data)
    parts = {
        f"{type(module).__name__} on {module.policy_params.model}": batches(plan, module, data),
        "Memory of a process, most at once": memory(plan, module),
        "Settings that do nothing": [text for check in DEAD if (text := check(plan, module, trainer))]
        or ["none found"],
    }
    return "\n\n".join(title + "".join(f"\n  {line}" for line in lines) for title, lines in parts.items())


# ---- batch arithmetic -------------------------------------------------------------------------------------------------------


def batches(plan: RunPlan, module: OnPolicyModule, data: Any) -> list[str]:
    """Prompts, rows, tokens, steps and validations."""
    batch, evaluation, train = module.batch, module.evaluation, len(data.rows("train"))
    found = [
        batch.describe(plan.processes),
        f"a rollout: at most {plan.rows:,} x {module.sampling.max_new_tokens:,} completion tokens + {batch.prompts_per_rollout:,} prompts of at most {plan.prompt:,} = {plan.tokens:,} tokens",
    ]
    if plan.rollouts is None or plan.steps is None:
        found.append("the run has no end: set trainer.max_steps (optimiser steps)")
    else:
        drawn = plan.rollouts * batch.prompts_per_rollout
        found.append(
            f"the run: {plan.rollouts:,} rollouts, {plan.steps:,} optimiser steps, at most {plan.rollouts * plan.tokens:,} tokens"
        )
        found.append(f"prompts: {drawn:,} drawn from {train:,}, {drawn / train:.2f} epochs")
    if plan.interval is None:
        found.append("validation: none")
    else:
        prompts = len(data.rows("val"))
        times = f", {plan.validations} in all with the one before training" if plan.validations else ""
        found.append(
            f"validation: every {plan.interval:,} rollouts{times}, each {prompts:,} prompts x {evaluation.samples} = {prompts * evaluation.samples:,} completions"
        )
    return found


# ---- memory -----------------------------------------------------------------------------------------------------------------


def memory(plan: RunPlan, module: OnPolicyModule) -> list[str]:
    """What lies in memory in each phase, and the largest sum; activations are an estimate, the rest is counted."""
    params, batch = module.policy_params, module.batch
    size = ModelSize.of(params)
    own_rows = plan.rows // plan.processes
    at_once = min(own_rows, batch.rollout_micro_batch or own_rows)
    sequence = plan.prompt + module.sampling.max_new_tokens
    budget = batch.update_token_budget or math.inf
    in_pass = int(
        min(own_rows // batch.updates_per_rollout, max(1, (budget - plan.prompt) // module.sampling.max_new_tokens))
    )
    passed = (math.ceil(in_pass / batch.group_size), plan.prompt, in_pass, module.sampling.max_new_tokens)
    copies = isinstance(module.engine, EmbeddedEngine)
    resident = {
        "weights": size.parameters * size.width,
        "reference": size.parameters * size.width if module.with_reference and params.lora is None else 0,
        "optimiser": states_of(module.optimizer_callable) * size.trained * size.width,
    }
    rollout = {
        "merged or transposed copies of matrices, at most": size.parameters * size.width if copies else 0,
        f"keys and values of {at_once:,} rows of {sequence:,} tokens": size.cache_bytes(at_once * sequence),
    }
    update = {
        "gradients": size.trained * size.width,
        f"activations of {in_pass:,} rows at once, about": size.activation_bytes(
            *passed, params.gradient_checkpointing
        ),
    }
    lines = [f"{size.parameters:,} parameters, {size.trained:,} of them trained, {size.width} bytes each"]
    for phase, found in (("always", resident), ("rollout", rollout), ("update", update)):
        lines += [f"{phase:<8}{name}: {amount(number)}" for name, number in found.items() if number]
    most = sum(resident.values()) + max(sum(rollout.values()), sum(update.values()))
    here = machine_memory()
    lines.append(f"largest sum: {amount(most)}" + (f"; this machine has {amount(here)}" if here else ""))
    if not params.packing:
        lines.append(
            "without policy.packing an update needs more: padding, a prompt for every completion, and logits over the whole vocabulary"
        )
    if hasattr(module, "models"):
        lines.append("reward and cost models come on top")
    return lines


def amount(number: float) -> str:
    """Bytes for people."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**29 else f"{number / 2**20:.1f} MiB"


# ---- settings that do nothing -----------------------------------------------------------------------------------------------


def dropout(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    lora, config = module.policy_params.lora, ModelSize.of(module.policy_params).config
    on = {
        name: value
        for name, value in config.to_dict().items()
        if "drop" in name and isinstance(value, float) and value > 0
    }
    on |= {"lora.dropout": lora.dropout} if lora is not None and lora.dropout else {}
    shown = ", ".join(f"{name} {value:g}" for name, value in on.items())
    return (
        f"dropout is on in updates and off in rollouts ({shown}): ratios are noise from the first step on; set it to 0"
        if on
        else None
    )


def kl(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    changed = [f.name for f in fields(KLPenalty) if f.name != "coefficient" and getattr(module.kl, f.name) != f.default]
    if module.kl.coefficient or not changed:
        return None
    return f"kl.{', kl.'.join(changed)}: kl.coefficient is 0, so there is no reference and no penalty"


def group(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    return (
        "batch.group_size is 1: completions of a prompt are not compared with one another"
        if module.batch.group_size == 1
        else None
    )


def clip(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    loss, default = module.policy_loss, ClippedSurrogate()
    if module.batch.updates > 1 or type(loss) is not ClippedSurrogate:
        return None
    changed = [name for name, value in vars(default).items() if getattr(loss, name) != value]
    return (
        f"loss.{', loss.'.join(changed)}: with one update a rollout the ratio is 1 and nothing is clipped"
        if changed
        else None
    )


def budgets(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    batch, own = module.batch, plan.rows // plan.processes
    most = (own * module.sampling.max_new_tokens + own // batch.group_size * plan.prompt) // batch.updates_per_rollout
    idle = (
        [f"batch.update_token_budget {batch.update_token_budget:,} is more than the {most:,} tokens of an update"]
        if (batch.update_token_budget or 0) >= most
        else []
    )
    idle += (
        [f"batch.rollout_micro_batch {batch.rollout_micro_batch:,} is not less than the {own:,} rows of a process"]
        if (batch.rollout_micro_batch or 0) >= own
        else []
    )
    return "; ".join(idle) or None


def shaping(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    found = module.shaping
    if found.mask_truncated and found.truncated_scale < 1:
        return "shaping.truncated_scale: truncated completions carry no loss under shaping.mask_truncated; the scale only moves their group's mean"
    if found.normalise_rewards and len(module.rewards) == 1:
        return "shaping.normalise_rewards: there is one reward, which the advantage normalises anyway"
    return None


def weights(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    names = [reward.name for reward in module.rewards if reward.weight == 0]
    return f"rewards with weight 0 are logged and decide nothing: {', '.join(names)}" if names else None


def passes(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    if (
        module.evaluation.pass_k is None
        or any(reward.is_correctness for reward in module.rewards)
        or hasattr(module, "models")
    ):
        return None
    return "evaluation.pass_k: no reward judges correctness, so there is no pass@k"


def schedule(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    if module.scheduler_callable is None or plan.steps is None or plan.rollouts is None:
        return None
    import torch

    made: Any = module.scheduler_callable(module.optimizer_callable([torch.nn.Parameter(torch.zeros(1))]))
    total = next(
        (
            int(value)
            for name in ("total_steps", "T_max", "total_iters")
            if (value := getattr(made, name, None)) is not None
        ),
        None,
    )
    steps = plan.steps if module.batch.lr_per == "update" else plan.rollouts
    if total is None or total == steps:
        return None
    what = "ends before its learning rate does" if total > steps else "goes on after its learning rate has ended"
    return f"lr_scheduler: {type(made).__name__} is made for {total:,} steps and the run has {steps:,}, so it {what}"


def intervals(plan: RunPlan, module: OnPolicyModule, trainer: L.Trainer) -> str | None:
    if plan.rollouts is None:
        return None
    late = [
        f"{type(c).__name__}.every_n_rollouts {n}"
        for c in getattr(trainer, "callbacks", [])
        if (n := getattr(c, "every_n_rollouts", 0) or 0) > plan.rollouts
    ]
    late += (
        [f"trainer.val_check_interval {plan.interval}"]
        if plan.interval is not None and plan.interval > plan.rollouts
        else []
    )
    # Defaults that a short run does not reach are nobody's setting.
    late = [text for text in late if not text.startswith(("CompletionsTable", "RolloutProgress"))]
    return f"never reached within {plan.rollouts:,} rollouts: {', '.join(late)}" if late else None


DEAD = (dropout, kl, group, clip, budgets, shaping, weights, passes, schedule, intervals)
