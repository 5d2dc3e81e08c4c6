"""Scores of the options of multiple-choice rows under a policy: log-probs of their labels, or of their texts.

The label is scored at the position that emits it. Where a tokenizer begins all labels with the same tokens (such as a
space of its own), that position is the first at which they differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.distributions import Distributions, distributions
from policies.packing import PromptGroups
from policies.policy import Policy
from policies.prompt_encoding import Prompt, begun_turn, encode_content
from support.errors import ConfigError

#: tokens of prompts and completions in one forward pass
TOKENS = 8192


@dataclass
class LabelScores:
    """The distributions of the answers of several rows at the position that emits the label.

    Fields:
        logprobs: (options,) per row, log-probs of the labels under the full vocabulary.
        entropy: of the full vocabulary, in nats.
        is_label: whether the most probable token is a label.
    """

    logprobs: list[Float[Tensor, "options"]]
    entropy: Float[Tensor, "rows"]
    is_label: Bool[Tensor, "rows"]

    def option_entropy(self) -> Float[Tensor, "rows"]:
        """Entropy in nats of the labels alone, renormalised."""
        renormalised = [logprobs.log_softmax(0) for logprobs in self.logprobs]
        return torch.stack([-(logprobs.exp() * logprobs).sum() for logprobs in renormalised])


def continuation(policy: Policy, prompt: Prompt, text: str) -> list[int]:
    """Token ids of a text that goes on behind a prompt, with a space between two words."""
    tokenizer = policy.tokenizer
    before = begun_turn(prompt) if tokenizer.chat_template or not isinstance(prompt, str) else prompt
    gap = " " if before and (before[-1].isalnum() or before[-1] in ".,:;?!") else ""
    return encode_content(tokenizer, gap + text)


def label_tokens(policy: Policy, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """(what all labels begin with, the token of each label behind it).

    Raises:
        ConfigError: two labels begin with the same token there, so one position cannot tell them apart.
    """
    encoded = [continuation(policy, row["prompt"], label) for label in row["labels"]]
    shared = list(commonprefix(encoded))
    tokens = [ids[len(shared)] if len(ids) > len(shared) else None for ids in encoded]
    if None in tokens or len(set(tokens)) < len(tokens):
        place = next(place for place, token in enumerate(tokens) if token is None or token in tokens[:place])
        raise ConfigError(
            f"the labels of row {row.get('id')!r} are {[str(label)[:20] for label in row['labels']]}, and under the "
            f"tokenizer of {policy.params.model} {row['labels'][place]!r} begins with the same token as another one, "
            "so one position cannot tell them apart; set data.labels to letters."
        )
    return shared, [token for token in tokens if token is not None]


@torch.no_grad()
def label_scores(policy: Policy, rows: list[dict[str, Any]]) -> LabelScores:
    """The answers' distributions for rows with `prompt` and `labels`; weights must be whole."""
    prompts: list[list[int]] = []
    tokens: list[list[int]] = []
    for row in rows:
        shared, labels = label_tokens(policy, row)
        prompts.append([*policy.encode(row["prompt"]), *shared])
        tokens.append(labels)
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    greedy: list[int] = []
    for part in _parts([len(ids) for ids in prompts]):
        groups = PromptGroups.of(
            prompts[part], [labels[:1] for labels in tokens[part]], policy.pad_token_id, policy.device
        )
        of_part = _logprobs(policy(distributions, policy, groups))
        entropies.append(-(of_part.exp() * of_part).sum(1))
        greedy += of_part.argmax(1).tolist()
        logprobs += [line[labels] for line, labels in zip(of_part, tokens[part], strict=True)]
    is_label = [token in labels for token, labels in zip(greedy, tokens, strict=True)]
    return LabelScores(logprobs, torch.cat(entropies), torch.tensor(is_label, device=policy.device))


def _logprobs(given_tokens: Distributions) -> Float[Tensor, "rows vocabulary"]:
    """Log-probs of the full vocabulary in float32: in bfloat16, logits of different labels would be equal."""
    states, weight = given_tokens.states.float(), given_tokens.weight
    return (states if weight is None else states @ weight.float().T).log_softmax(1)


@torch.no_grad()
def text_scores(policy: Policy, prompts: list[Prompt], texts: list[list[str]]) -> list[Float[Tensor, "options"]]:
    """Mean log-prob per token of every text behind its prompt.

    Args:
        texts: several per prompt.
    """
    encoded = [policy.encode(prompt) for prompt in prompts]
    completions = [
        [continuation(policy, prompt, text) for text in options] for prompt, options in zip(prompts, texts, strict=True)
    ]
    sizes = [len(ids) + sum(map(len, options)) for ids, options in zip(encoded, completions, strict=True)]
    scores: list[Tensor] = []
    for part in _parts(sizes):
        counts = [len(options) for options in completions[part]]
        owner = [place for place, count in enumerate(counts) for _ in range(count)]
        flat = [ids for options in completions[part] for ids in options]
        groups = PromptGroups.of(encoded[part], flat, policy.pad_token_id, policy.device, owner)
        logprobs, _ = policy.logprobs(groups)
        mask = groups.completion_mask
        means = logprobs.float().masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        scores += means.split(counts)
    return scores


def _parts(sizes: list[int]) -> Iterator[slice]:
    """Consecutive parts of at most `TOKENS`, at least one row each."""
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and total + size > TOKENS:
            yield slice(start, place)
            start, total = place, 0
        total += size
    yield slice(start, len(sizes))
