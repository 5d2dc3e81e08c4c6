"""Next-token distributions of a model at the tokens of completions, without a tensor of tokens x vocabulary entries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies.adapters import without_wrapper
from policies.logprobs import by_length_logits, packed_states, padded_logits
from policies.packing import PromptGroups
from policies.policy import Policy

TILE = 2**22  # logits of each model that are held at once: 16 MiB in float32


@dataclass
class Distributions:
    """The distributions at the completion tokens, row after row.

    Fields:
        states: hidden states; without `weight`, logits (for models that cannot be packed).
        weight: the matrix of the output layer.
    """

    states: Float[Tensor, "tokens size"]
    weight: Float[Tensor, "vocabulary size"] | None

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.states.shape[1] if self.weight is None else self.weight.shape[0]

    def logits(self, part: slice, vocabulary: int) -> Float[Tensor, "part vocabulary"]:
        """Logits of the first `vocabulary` token ids at some of the tokens, in float32."""
        states = self.states[part]
        logits = states[:, :vocabulary] if self.weight is None else states @ self.weight[:vocabulary].T
        return logits.float()


def distributions(policy: Policy, groups: PromptGroups) -> Distributions:
    """The policy's distributions at all completion tokens; not for weights in shards."""
    return _distributions(policy, policy.model, groups)


@torch.no_grad()
def reference_distributions(policy: Policy, groups: PromptGroups) -> Distributions:
    """The distributions of the policy's reference at all completion tokens; not for weights in shards."""
    with policy.as_reference() as model:
        return _distributions(policy, model, groups)


def _distributions(policy: Policy, model: nn.Module, groups: PromptGroups) -> Distributions:
    policy.check(groups)
    if policy.scoring == "packed":
        bare = without_wrapper(model)
        return Distributions(packed_states(bare, groups), bare.get_output_embeddings().weight)
    logits = padded_logits if policy.scoring == "padded" else by_length_logits
    return Distributions(logits(model, groups)[groups.completion_mask], None)


def compared(
    compute: Callable[..., Float[Tensor, "part"]], first: Distributions, *others: Distributions
) -> Float[Tensor, "tokens"]:
    """A value per token of the logits of several models, over few tokens at a time.

    The backward pass computes the logits again, so that memory does not grow with the vocabulary. Models may pad their
    vocabulary differently; token ids that one of them lacks are left out.

    Args:
        compute: (logits of the first model, logits of the others) -> a value per token.
    """
    vocabulary = min(one.vocabulary for one in (first, *others))
    tokens, rows = len(first.states), max(1, TILE // vocabulary)

    def piece(start: int) -> Tensor:
        part = slice(start, start + rows)
        return compute(*(one.logits(part, vocabulary) for one in (first, *others)))

    if tokens <= rows:
        return piece(0)
    starts = range(0, tokens, rows)
    return torch.cat([checkpoint(piece, start, use_reentrant=False, preserve_rng_state=False) for start in starts])
