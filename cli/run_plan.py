"""The numbers of a run, worked out before anything is loaded."""

import math
from dataclasses import dataclass
from typing import Any

import lightning as L

from lightning_modules.core.on_policy import OnPolicyModule
from policies import encode_prompt, load_tokenizer
from rollouts.environment import add_template_arguments

#: number of prompts, the longest in characters, that are encoded to find the longest in tokens
ENCODED = 64


@dataclass
class RunPlan:
    """The numbers of a run.

    Fields:
        rows: completions per rollout.
        prompt: tokens of the longest prompt.
        tokens: maximum number of tokens in a rollout.
        steps: optimiser steps of the run, None without an end.
        rollouts: rollouts of the run, None without an end.
        epoch: rollouts per epoch.
        interval: rollouts from one validation to the next, None without validation.
        validations: validations of the run, including the one before training.
        processes: processes that divide a rollout among them.
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
        """Work out the numbers from the objects of a command line, none of which has loaded a model."""
        batch, train = module.batch, data.rows("train")
        tokenizer = load_tokenizer(module.policy_params.model, module.policy_params.chat_template_args)
        if module.environment is not None:
            add_template_arguments(tokenizer, module.environment)
        longest = sorted((row["prompt"] for row in train), key=lambda prompt: -len(str(prompt)))[:ENCODED]
        prompt_tokens = max(len(encode_prompt(tokenizer, prompt)) for prompt in longest)
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
        tokens = rows * module.sampling.max_new_tokens + batch.prompts_per_rollout * prompt_tokens
        return cls(rows, prompt_tokens, tokens, steps, rollouts, epoch, interval, validations, trainer.world_size)
