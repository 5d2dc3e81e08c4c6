"""Objectives that learn from preferred and rejected responses, without a reward model.

l is the summed log-prob of a response y to a prompt x, |y| its number of tokens, l_ref the same under the reference;
w is the preferred response, l the rejected one.

    r = l - l_ref                                                      (the implicit reward, without its factor beta)
    DPO    -log sigma(beta * (r_w - r_l))                                                        (arXiv 2305.18290, eq. 7)
    IPO    (r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2                                         (arXiv 2310.12036, eq. 17)
    SimPO  -log sigma(beta * (l_w / |y_w| - l_l / |y_l|) - gamma)                                (arXiv 2405.14734, eq. 6)
    ORPO   -l_w / |y_w| - beta * log sigma(log odds_w - log odds_l), odds = p / (1 - p), p = e^(l / |y|)  (2403.07691)
    KTO    lambda_D * (1 - sigma(beta * (r - z))) or lambda_U * (1 - sigma(beta * (z - r)))      (arXiv 2402.01306, eq. 8)
    REDI   -l_w / |y_w| + alpha * l_l / |y_l|                                                          (arXiv 2505.24850)
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


def _check_positive(loss: object, *names: str) -> None:
    """Refuse options that are not finite numbers above 0. Raises ConfigError."""
    for name in names:
        value = getattr(loss, name)
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(
                f"{type(loss).__name__}: {name} is {value}; set model.loss.{name} to a finite number above 0."
            )


def _check_not_negative(loss: object, *names: str) -> None:
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
        _check_positive(self, "beta")

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
        _check_positive(self, "beta")

    def reward(self, scores: ResponseScores) -> PerRow:
        return self.beta * scores.mean_ratio

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        return (chosen.mean_ratio - rejected.mean_ratio - 1 / (2 * self.beta)) ** 2


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
        _check_positive(self, "beta")
        _check_not_negative(self, "gamma")

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
    """Fine-tuning on the preferred response, and beta times an odds-ratio penalty (Hong et al., arXiv 2403.07691, eq. 6).

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
        _check_not_negative(self, "beta")

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
    """-l_w / |y_w| + alpha * l_l / |y_l| (arXiv 2505.24850): wrong traces are unlearned more weakly than right ones learned.

    No reference and no sigmoid: with alpha of 1 the second term falls without a bound, and pulls the preferred
    responses down with it. Starts from a model that was fine-tuned on the preferred responses.

    Args:
        alpha: weight of the rejected responses.
        gamma: also weigh each rejected response by e^(gamma * l_l / |y_l|), which fades with its probability; as in the
            official code the weight has a gradient. None for no weight.
    """

    alpha: float = 0.8
    gamma: float | None = None
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_not_negative(self, "alpha")
        if self.gamma is not None:
            _check_positive(self, "gamma")

    def reward(self, scores: ResponseScores) -> PerRow:
        return scores.mean

    def __call__(self, chosen: ResponseScores, rejected: ResponseScores) -> PerRow:
        negative = rejected.mean if self.gamma is None else rejected.mean * (self.gamma * rejected.mean).exp()
        return -chosen.mean + self.alpha * negative


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
        _check_positive(self, "beta")
        _check_not_negative(self, "desirable_weight", "undesirable_weight")

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
