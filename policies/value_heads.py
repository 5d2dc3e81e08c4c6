"""A critic that shares the policy's body: value heads on its last hidden states."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies.logprobs import packed_states
from policies.packing import PromptGroups
from policies.policy import Policy
from policies.start_checks import agree_on_scoring
from policies.values import decoder_outputs, token_values, zero_head


def add_value_heads(policy: Policy, number: int) -> None:
    """Give a policy so many values of every state, all zero at first. Exported folders do not hold the heads."""
    policy.value_head = zero_head(policy.bare.config, number).to(policy.device)


def logprobs_and_values(
    policy: Policy, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor, Float[Tensor, "rows time heads"]]:
    """(log-probs, entropies, values of the state before each token) by one forward pass, as in `Policy.logprobs`."""
    policy.check(groups)
    agree_on_scoring(policy, in_shards=not policy.is_whole)
    result: tuple[Tensor, Tensor, Tensor] = policy(_with_values, policy, groups, temperature, entropy_gradient)
    return result


@torch.no_grad()
def shared_values(policy: Policy, groups: PromptGroups) -> Float[Tensor, "rows time heads"]:
    """The values of the state before each completion token; arbitrary outside the completion mask."""
    policy.check(groups)
    agree_on_scoring(policy, in_shards=not policy.is_whole)
    result: Tensor = policy(_values, policy, groups)
    return result


def _with_values(policy: Policy, groups: PromptGroups, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    assert policy.value_head is not None and policy.scoring is not None
    with decoder_outputs(policy.bare) as outputs:
        logprobs, entropies = policy._logprobs(policy.model, groups, *options)
    return logprobs, entropies, token_values(policy.value_head, policy.scoring, groups, outputs)


def _values(policy: Policy, groups: PromptGroups) -> Tensor:
    if policy.scoring != "packed":
        return _with_values(policy, groups, 1.0)[2]
    assert policy.value_head is not None
    with decoder_outputs(policy.bare) as outputs:
        packed_states(policy.bare, groups)  # without the logits
    return token_values(policy.value_head, policy.scoring, groups, outputs)
