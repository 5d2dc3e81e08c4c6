"""Objectives that learn from preferred and rejected responses, without a reward model, compared with a reference.

l is the summed log-prob of a response y to a prompt x, |y| its number of tokens, l_ref the same under the reference;
w is the preferred response, l the rejected one, r = l - l_ref the implicit reward without its factor beta.

    DPO  -log sigma(beta * (r_w - r_l))                                                    (arXiv 2305.18290, eq. 7)
    IPO  (r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2                                     (arXiv 2310.12036, eq. 17)
    KTO  lambda_D * (1 - sigma(beta * (r - z))) or lambda_U * (1 - sigma(beta * (z - r)))  (arXiv 2402.01306, eq. 8)

objectives/reference_free.py has those without a reference.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from objectives.shapes import PerRow
from support.errors import ConfigError
from support.papers import Paper


@dataclass
class ResponseScores:
    """Log-probs of responses, one entry per row.

    Fields:
        total: sum over the response's tokens of their log-probs under the policy; it has the gradient.
        tokens: number of the response's tokens, with the end token; at least 1.
        reference: the same sum under the reference; None without one.
        prompt_total, prompt_tokens: sum and number of the log-probs of the prompt's tokens from the second on; None
            where the objective does not use them.
    """

    total: PerRow
    tokens: PerRow
    reference: PerRow | None = None
    prompt_total: PerRow | None = None
    prompt_tokens: PerRow | None = None

    @property
    def mean(self) -> PerRow:
        """Mean log-prob per token."""
        return self.total / self.tokens

    @property
    def ratio(self) -> PerRow:
        """log pi(y | x) - log pi_ref(y | x)."""
        assert self.reference is not None
        return self.total - self.reference

    @property
    def mean_ratio(self) -> PerRow:
        """The ratio's mean per token."""
        return self.ratio / self.tokens


class PreferenceLoss(ABC):
    """An objective on preferred and rejected responses."""

    #: whether the loss compares with a reference
    needs_reference: ClassVar[bool] = True

    @property
    def needs_prompts(self) -> bool:
        """Whether the loss uses the log-probs of the prompt's own tokens."""
        return False

    @abstractmethod
    def reward(self, scores: ResponseScores) -> PerRow:
        """The implicit reward by which the loss orders responses."""


class PairLoss(PreferenceLoss):
    """An objective on pairs of responses to the same prompt."""

    @abstractmethod
    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        """The loss of each pair."""


def check_positive(loss: object, *names: str) -> None:
    """Refuse options that are not finite numbers above 0. Raises ConfigError."""
    for name in names:
        value = getattr(loss, name)
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(
                f"{type(loss).__name__}: {name} is {value}; set model.loss.{name} to a finite number above 0."
            )


def check_not_negative(loss: object, *names: str) -> None:
    """Refuse options below 0 or not finite. Raises ConfigError."""
    for name in names:
        value = getattr(loss, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(
                f"{type(loss).__name__}: {name} is {value}; set model.loss.{name} to a finite number from 0 on."
            )


@dataclass
class DPO(PairLoss):
    """-log sigma(beta * (r_w - r_l)) (Rafailov et al., arXiv 2305.18290, eq. 7).

    Where policy and reference are equal it is log 2.

    Args:
        beta: weight of the KL divergence from the reference that the implicit reward is regularised with.
        length_normalised: divide r by the response's number of tokens (TRL's sigmoid_norm); beta then weighs a mean per
            token, and long responses no longer have larger gradients.
    """

    beta: float = 0.1
    length_normalised: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "beta")

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * (scores.mean_ratio if self.length_normalised else scores.ratio)

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        return -F.logsigmoid(self.reward(chosen) - self.reward(rejected))


@dataclass
class IPO(PairLoss):
    """(r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2 (Azar et al., arXiv 2310.12036, eq. 17).

    The margin is pulled to a finite value, so that certain preferences do not overrule the reference. Per token as in
    TRL, whose authors confirmed this form with those of the paper.

    Args:
        beta: weight of the KL divergence; tau in the paper.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "beta")

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * scores.mean_ratio

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        return (chosen.mean_ratio - rejected.mean_ratio - 1 / (2 * self.beta)) ** 2


@dataclass
class KTO(PreferenceLoss):
    """Single responses that are desirable or not (Ethayarajh et al., arXiv 2402.01306, eq. 8).

    lambda_D * (1 - sigma(beta * (r - z))) for a desirable response, lambda_U * (1 - sigma(beta * (z - r))) for another.
    z = max(0, mean of r over prompts with other prompts' responses) estimates the KL divergence from the reference.

    Args:
        beta: weight of the KL divergence. desirable_weight, undesirable_weight: lambda_D and lambda_U; the paper keeps
            lambda_D n_D / (lambda_U n_U) within 1 and 4/3 where the numbers n of responses differ.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "beta")
        check_not_negative(self, "desirable_weight", "undesirable_weight")

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * scores.ratio

    def __call__(self, scores: ResponseScores, desirable: Bool[Tensor, "rows"], baseline: Float[Tensor, ""]) -> PerRow:
        """The loss of each response.

        Args:
            desirable: the responses' labels.
            baseline: z, without a gradient.
        """
        gain = self.beta * (scores.ratio - baseline)
        return torch.where(
            desirable,
            self.desirable_weight * (1 - gain.sigmoid()),
            self.undesirable_weight * (1 - (-gain).sigmoid()),
        )


PAPER_DPO = Paper(
    name="dpo",
    title="DPO",
    arxiv="2305.18290",
    idea="preferred responses become likelier than rejected ones, relative to a reference",
    classes=("lightning_modules.Preference", "objectives.DPO"),
    configs=("dpo",),
    page="preference",
    effect="89 % of held-out pairs in order after 100 steps; 0.69 → 0.35 in loss",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
PAPER_IPO = Paper(
    name="ipo",
    title="IPO",
    arxiv="2310.12036",
    idea="DPO with a finite target for the margin",
    classes=("lightning_modules.Preference", "objectives.IPO"),
    configs=("dpo", "preference/ipo"),
    page="preference",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
PAPER_KTO = Paper(
    name="kto",
    title="KTO",
    arxiv="2402.01306",
    idea="single responses that are labelled desirable or not",
    classes=("lightning_modules.Preference", "objectives.KTO", "datamodules.LabelledResponses"),
    configs=("dpo", "preference/kto"),
    page="preference",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
