"""Probabilities of verdicts for verified voting, and metrics of the votes (self-verification, arXiv 2506.01369)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies import Policy, PromptGroups
from rollouts import RolloutBatch

#: rows of one forward pass
ROWS = 128


def _cut(
    ids: list[int], words: list[tuple[list[int], list[int]]], text: Callable[[list[int]], str]
) -> tuple[list[int], int] | None:
    """(completion up to its last verdict, which is replaced by Yes; number of tokens of Yes). None without a verdict.

    Args:
        words: the tokens of (Yes, No) in each of their forms.
        text: decodes tokens.
    """
    verdicts = [
        (at, len(word), yes)
        for yes, no in words
        for at in range(len(ids))
        for word in (yes, no)
        if ids[at : at + len(word)] == word
    ]
    for at, length, yes in sorted(verdicts, key=lambda place: place[0], reverse=True):
        before, after = text(ids[max(0, at - 1) : at]), text(ids[at + length : at + length + 1])
        inside = text(ids[at : at + length])[:1].isalpha() and before[-1:].isalnum()
        if not inside and not after[:1].isalnum():  # "no" in "nothing" is not a verdict
            return ids[:at] + yes, len(yes)
    return None


@torch.no_grad()
def yes_probability(policy: Policy, batch: RolloutBatch) -> Float[Tensor, "rows"]:
    """pi(Yes | prompt, completion before its verdict) at temperature 1; 0 for completions without a verdict.

    Args:
        batch: completions that end with Yes or No, in any case; pi(Yes) is of the word in the same case.
    """

    def tokens(text: str) -> list[int]:
        ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    cases = (("Yes", "No"), ("yes", "no"), ("YES", "NO"))  # as the reward for verdicts reads them
    words = [(tokens(space + yes), tokens(space + no)) for space in ("", " ") for yes, no in cases]
    rows = [ids[:length] for ids, length in zip(batch.completion_ids.tolist(), batch.lengths.tolist(), strict=True)]
    cuts = {i: cut for i, ids in enumerate(rows) if (cut := _cut(ids, words, policy.tokenizer.decode))}
    device = batch.completion_ids.device
    probabilities = torch.zeros(len(rows), device=device)
    for start in range(0, len(cuts), ROWS):
        places = list(cuts)[start : start + ROWS]
        width = max(len(cuts[i][0]) for i in places)
        ids = torch.tensor(
            [cuts[i][0] + [policy.pad_token_id] * (width - len(cuts[i][0])) for i in places], device=device
        )
        ends, yes = (
            torch.tensor(column, device=device)[:, None]
            for column in zip(*((len(cuts[i][0]), cuts[i][1]) for i in places), strict=True)
        )
        steps = torch.arange(width, device=device)
        prompts, owner = torch.unique(torch.tensor(places, device=device) // batch.group_size, return_inverse=True)
        logprobs, _ = policy.logprobs(
            PromptGroups(batch.prompt_ids[prompts], batch.prompt_mask[prompts], owner, ids, steps < ends)
        )
        probabilities[places] = torch.where((steps < ends) & (steps >= ends - yes), logprobs, 0.0).sum(1).exp()
    return probabilities


def vote_metrics(votes: list[dict[str, Any]]) -> dict[str, float]:
    """Means over problems and over all verdicts; balanced accuracy and F1 (of Yes) only where they are defined.

    Args:
        votes: one per problem: whether the weighted `vote` and the `majority` vote are right, and `pairs` of (verdict
            or None, truth).
    """
    if not votes:
        return {}
    pairs = [pair for vote in votes for pair in vote["pairs"]]
    right, wrong = [said for said, truth in pairs if truth], [said for said, truth in pairs if not truth]
    yes = sum(said is True for said, _ in pairs)
    metrics = {
        "vote": sum(vote["vote"] for vote in votes) / len(votes),
        "majority": sum(vote["majority"] for vote in votes) / len(votes),
        "verify_accuracy": sum(said is truth for said, truth in pairs) / len(pairs),
        "yes_rate": yes / len(pairs),
    }
    if right and wrong:
        metrics["verify_balanced"] = (right.count(True) / len(right) + wrong.count(False) / len(wrong)) / 2
    if right or yes:
        metrics["verify_f1"] = 2 * right.count(True) / (len(right) + yes)
    return metrics
