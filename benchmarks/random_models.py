"""Models of random weights, prompts and completions of given lengths, and the passes of an update over them."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from assets.make_untrained import reasoner_tokenizer
from policies import Policy, PolicyParams
from rollouts import RolloutBatch


def random_policy(params: PolicyParams, with_reference: bool = False, **shape: Any) -> Policy:
    """A policy of random weights with the embedded reasoner's tokenizer.

    Args:
        params: settings of the policy; `model` is ignored.
        with_reference: as in `Policy`.
        shape: arguments of `LlamaConfig` except the special tokens.
    """
    tokenizer = reasoner_tokenizer()
    config = LlamaConfig(
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **shape,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Policy(replace(params, model=folder), with_reference=with_reference)


def prompts_of_length(count: int, length: int) -> list[list[int]]:
    """Different prompts of the same number of tokens."""
    return [[7 + (i * j) % 90 for j in range(length)] for i in range(count)]


def completions_of_lengths(policy: Policy, lengths: Sequence[int]) -> list[list[int]]:
    """First tokens for an engine to force, so that completions have these lengths.

    All but the last token are forced. The last one ends the completion, since every token becomes an end token. Forcing
    tokens changes only which ones are chosen; everything else is computed as in ordinary generation.
    """
    if len(set(lengths)) > 1:  # otherwise the maximum number of new tokens ends them
        policy.eos_token_ids = list(range(policy.vocabulary))
    return [[7 + (i + j) % 90 for j in range(length - 1)] for i, length in enumerate(lengths)]


def backward(policy: Policy, batch: RolloutBatch, passes: Sequence[Any]) -> None:
    """One forward and backward pass of the summed log-probs per micro-batch.

    Args:
        passes: micro-batches of `lightning_modules.core.micro_batches.micro_batches`.
    """
    for micro in passes:
        logprobs, _ = policy.logprobs(batch.prompt_groups(micro.rows))
        (logprobs * batch.completion_mask[micro.rows, : micro.width]).sum().backward()
