"""The export of a certified policy: its sampling settings, and the checks that it is what was tested."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lightning_modules.core.micro_batches import batch_logprobs
from lightning_modules.core.sampling_module import Rows, SamplingModule
from policies import Policy, PolicyParams
from policies.adapters import acting_weights
from policies.locate import load_pretrained
from rollouts import SamplingParams
from support.errors import ConfigError
from support.files import weights_fingerprint
from support.seeding import isolated_rng, run_seed

#: number of safety prompts on which an exported policy is compared with the tested one
COMPARED = 16


def generation_words(sampling: SamplingParams) -> str:
    """The sampling settings in words, for the sentence of a certificate."""
    how = (
        "greedily"
        if sampling.temperature == 0
        else f"at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, "
        + (f"top-k {sampling.top_k}" if sampling.top_k else "no top-k")
    )
    stop = f", ended by {', '.join(map(repr, sampling.stop))}" if sampling.stop else ""
    return f"{how}, at most {sampling.max_new_tokens} new tokens{stop}"


def write_generation_config(folder: Path, sampling: SamplingParams) -> None:
    """Write the sampling settings of the test into an exported folder, so that `generate` uses them."""
    settings: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens, "do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    if sampling.stop:
        settings["stop_strings"] = list(sampling.stop)
    config = GenerationConfig.from_pretrained(folder)
    config.update(**settings)
    config.save_pretrained(folder)


def folder_weights(folder: Path) -> str:
    """The fingerprint of the weights in an exported folder, as `core.generator` computes it for the tested policy."""
    model = load_pretrained(AutoModelForCausalLM, str(folder), dtype="auto")
    return weights_fingerprint(acting_weights(model))


@torch.no_grad()
def check_export(module: SamplingModule, folder: Path, rows: Rows) -> dict[str, float]:
    """Compare the log-probs of an exported policy with those of the tested one, on completions of the tested one.

    Args:
        module: the module that was tested.
        folder: the exported policy.
        rows: safety prompts; the first `COMPARED` are used.

    Returns:
        the mean and the largest absolute difference of the log-probs per token.

    Raises:
        ConfigError: they differ by more than rounding, so the export is not what was tested.
    """
    with isolated_rng("export", run_seed()):
        batch = module.sample(rows[:COMPARED], 1, module.sampling)
    tested = batch.behaviour_logprobs if module.plain_sampling else module.sampled_logprobs(batch)
    params = module.policy.params
    exported = Policy(
        PolicyParams(
            str(folder),
            dtype=params.dtype,
            packing=False,
            chat_template_args=params.chat_template_args,
            compute=module.policy.compute,
        )
    )
    exported.to(module.policy.device).eval()
    other_prompts = any(exported.encode(row["prompt"]) != module.prompt_tokens(row) for row in batch.rows)
    tokens = batch.completion_ids, batch.completion_mask
    if other_prompts or exported.decode(*tokens) != module.policy.decode(*tokens):
        raise ConfigError(
            f"the tokenizer in {folder} {'encodes safety prompts' if other_prompts else 'decodes responses'} "
            "differently from the tested one, so the export is not what was tested. The verdict is in the ledger; the "
            "tokenizer's settings do not survive saving, so set them in the model's folder before training."
        )
    logprobs = batch_logprobs(exported, batch, module.temperature, module.update_token_budget)
    gaps = (logprobs - tested)[batch.action_mask].abs()
    gap = {"mean": float(gaps.mean()), "largest": float(gaps.max())}
    full = module.engine.matches(module.policy) and "16" not in module.precision
    tolerance = 1e-3 if full else 0.1
    if not gap["mean"] <= tolerance:
        raise ConfigError(
            f"the exported policy differs from the tested one by {gap['mean']:.3g} in the mean log-prob per token on "
            f"{len(rows[:COMPARED])} safety prompts (at most {tolerance:g} allowed), so it is not what was tested and "
            f"is not exported. The verdict is in the ledger. Set model.policy.dtype: float32, in which merged adapters "
            "keep their values, and train and test with a fresh safety split."
        )
    return gap
