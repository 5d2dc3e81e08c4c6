"""Objectives on pairs of responses that need no reference; the notation is that of objectives/preference_objectives.py.

SimPO  -log sigma(beta * (l_w / |y_w| - l_l / |y_l|) - gamma)                               (arXiv 2405.14734, eq. 6)
ORPO   -l_w / |y_w| - beta * log sigma(log odds_w - log odds_l)                             (arXiv 2403.07691, eq. 6)
       with odds = p / (1 - p), p = exp(l / |y|)
REDI   -l_w / |y_w| + alpha * l_l / |y_l|                                                         (arXiv 2505.24850)
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from objectives.preference_objectives import PairLoss, ResponseScores, check_not_negative, check_positive
from objectives.shapes import PerRow
from support.papers import Paper


@dataclass
class SimPO(PairLoss):
    """-log sigma(beta * (l_w / |y_w| - l_l / |y_l|) - gamma) (Meng et al., arXiv 2405.14734, eq. 6).

    Args:
        beta: scale of the mean log-prob per token. gamma: target margin, in units of the scaled log-prob.
    """

    beta: float = 2.5
    gamma: float = 1.375
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, "beta")
        check_not_negative(self, "gamma")

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * scores.mean

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        return -F.logsigmoid(self.reward(chosen) - self.reward(rejected) - self.gamma)


def log_odds(mean: PerRow) -> PerRow:
    """log(p / (1 - p)) of p = e^mean, in float32 or better; finite where p rounds to 1."""
    wide = mean.float() if mean.dtype.itemsize < 4 else mean
    below = wide.clamp(max=-torch.finfo(wide.dtype).eps)
    # Of two forms of log(1 - e^x) each is exact on one side of -log 2 (Maechler 2012).
    near_zero = below > -math.log(2)
    safe_near, safe_far = torch.where(near_zero, below, -1.0), torch.where(near_zero, -1.0, below)
    return below - torch.where(near_zero, (-safe_near.expm1()).log(), (-safe_far.exp()).log1p())


@dataclass
class ORPO(PairLoss):
    """Fine-tuning on the preferred response, and beta times an odds-ratio penalty (arXiv 2403.07691, eq. 6).

    No reference and no earlier fine-tuning.

    Args:
        beta: weight of the odds ratio; lambda in the paper.
        prompt_loss: let the first term also cover the prompt's tokens, as in TRL; the prompts are computed once more
            for it.
    """

    beta: float = 0.1
    prompt_loss: bool = True
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(self, "beta")

    @property
    def needs_prompts(self) -> bool:
        return self.prompt_loss

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * scores.mean

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        likelihood = chosen.mean
        if self.prompt_loss:
            assert chosen.prompt_total is not None and chosen.prompt_tokens is not None
            likelihood = (chosen.total + chosen.prompt_total) / (chosen.tokens + chosen.prompt_tokens)
        return -likelihood - self.beta * F.logsigmoid(log_odds(chosen.mean) - log_odds(rejected.mean))


@dataclass
class REDI(PairLoss):
    """-l_w / |y_w| + alpha * l_l / |y_l| (arXiv 2505.24850).

    Wrong traces are unlearned more weakly than right ones are learned. No reference and no sigmoid: with alpha of 1 the
    second term falls without a bound, and pulls the preferred responses down with it. Starts from a model that was
    fine-tuned on the preferred responses.

    Args:
        alpha: weight of the rejected responses.
        gamma: also weigh each rejected response by e^(gamma * l_l / |y_l|), which fades with its probability; as in the
            official code the weight has a gradient. None for no weight.
    """

    alpha: float = 0.8
    gamma: float | None = None
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_not_negative(self, "alpha")
        if self.gamma is not None:
            check_positive(self, "gamma")

    def reward(self, scores: ResponseScores) -> PerRow:
        return scores.mean

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        negative = rejected.mean if self.gamma is None else rejected.mean * (self.gamma * rejected.mean).exp()
        return -chosen.mean + self.alpha * negative


PAPER_SIMPO = Paper(
    name="simpo",
    title="SimPO",
    arxiv="2405.14734",
    idea="a margin between mean log-probs per token, without a reference",
    classes=("lightning_modules.Preference", "objectives.SimPO"),
    configs=("dpo", "preference/simpo"),
    page="preference",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
PAPER_ORPO = Paper(
    name="orpo",
    title="ORPO",
    arxiv="2403.07691",
    idea="fine-tuning with an odds-ratio penalty, without a reference and without a stage before",
    classes=("lightning_modules.Preference", "objectives.ORPO"),
    configs=("dpo", "preference/orpo"),
    page="preference",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
PAPER_REDI = Paper(
    name="redi",
    title="REDI",
    arxiv="2505.24850",
    idea="right and wrong traces of a teacher: fine-tuning on the right ones, then an asymmetric loss on pairs",
    classes=("lightning_modules.Preference", "objectives.REDI"),
    configs=("redi/3_sft", "redi"),
    page="redi",
    effect="0.80 → 0.86 on held-out sums from SFT on right traces; DPO and SimPO from the same start 0.76 and 0.77",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
