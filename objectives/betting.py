"""Betting upper confidence bound for the mean of costs in a stated range (Waudby-Smith and Ramdas, arXiv 2010.09686).

A bettor starts with capital 1 and bets against the claim "the mean is at least m". With costs x scaled to [0, 1]:
    K_t(m) = product over i <= t of (1 - lambda_i(m) * (x_i - m)),   0 <= lambda_i(m) <= c / (1 - m),   c < 1.
The bet lambda_i may depend on x_1, ..., x_{i-1} only. If the mean is at least m, no bet wins on average, so K_t(m) is a
non-negative supermartingale, and Ville's inequality gives P(K_t(m) >= 1/delta for some t) <= delta. Every m whose
capital has reached 1/delta is rejected. K_t(m) never falls as m grows, so the rejected values are an interval [U, 1],
and U is the bound.

The bets are the paper's predictable plug-in (section 4; theorem 3 with the upper side alone):
    lambda_i = sqrt(2 ln(1/delta) / (pace_i * v_{i-1})), capped at c / (1 - m),
    pace_i = n for a stated number of costs n, else i * ln(1 + i),
    v_t = (1/4 + sum_{i <= t} (x_i - mean_i)^2) / (t + 1),   mean_t = (1/2 + sum_{i <= t} x_i) / (t + 1).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from objectives.bounds import RangedBound, check_delta, checked_costs, costs_in_range
from support.errors import ConfigError

#: c: a bet never risks more than this fraction of the capital
LARGEST_BET = 0.75


def plug_in_bets(
    costs: Float[Tensor, "*rows samples"], delta: float, horizon: int | None
) -> Float[Tensor, "*rows samples"]:
    """lambda_i before the cap, for costs in [0, 1]; entry i uses the costs before i only.

    Args:
        costs: in the order of the bets; leading dimensions are independent repetitions.
        delta: error probability that the bets are tuned to.
        horizon: number of costs that the bets are tuned to; None for no stated number.
    """
    count = torch.arange(1, costs.shape[-1] + 1, dtype=torch.float64, device=costs.device)
    before = torch.cat([torch.full_like(costs[..., :1], 0.25), (_spread(costs) / (count + 1))[..., :-1]], dim=-1)
    pace = count * torch.log1p(count) if horizon is None else torch.full_like(count, horizon)
    return (2 * math.log(1 / delta) / (pace * before)).sqrt()


def log_capital(
    costs: Float[Tensor, "*rows samples"], bets: Float[Tensor, "*rows samples"], mean: float
) -> Float[Tensor, "*rows samples"]:
    """ln K_t(mean) after every cost, for costs and claimed mean in [0, 1] and bets before their cap."""
    return torch.log1p(-bets.clamp(max=_cap(mean)) * (costs - mean)).cumsum(-1)


def _spread(costs: Tensor) -> Tensor:
    """(t + 1) * v_t after every cost."""
    count = torch.arange(1, costs.shape[-1] + 1, dtype=torch.float64, device=costs.device)
    return 0.25 + ((costs - (0.5 + costs.cumsum(-1)) / (count + 1)) ** 2).cumsum(-1)


def _cap(mean: float) -> float:
    return LARGEST_BET / (1 - mean) if mean < 1 else math.inf


@dataclass
class Betting(RangedBound):
    """Betting bound: valid for any number of costs and any distribution on the range, with a width near Student's t.

    The bound depends on the order of the costs. The order is a function of `seed` and the number of costs only, and
    `assumption` states the seed. A seed that is chosen after the costs are known invalidates the bound.

    Args:
        low: smallest cost that can occur.
        high: largest cost that can occur.
        seed: seed of the order.
    """

    seed: int = 0

    kind = "betting, predictable plug-in"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.assumption += f"; the order of the costs was drawn beforehand with seed {self.seed}"

    def order(self, samples: int) -> Int[Tensor, "samples"]:
        """Positions of the costs in the order of the bets; the same on every machine and version."""
        # random() is the only function of Python's generators that is guaranteed never to change.
        generator = random.Random(self.seed)
        keys = [generator.random() for _ in range(samples)]
        return torch.tensor(sorted(range(samples), key=keys.__getitem__), dtype=torch.int64)

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = costs_in_range(checked_costs(costs, delta, 1), self.low, self.high, self.name)
        sequence = self.sequence(delta, horizon=costs.numel())
        sequence.update(costs[self.order(costs.numel()).to(costs.device)])
        return sequence.upper

    def sequence(self, delta: float, horizon: int | None = None) -> "ConfidenceSequence":
        """The same bound, batch by batch; see `ConfidenceSequence`."""
        return ConfidenceSequence(self.low, self.high, delta, horizon)

    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        """Expected width for costs with this mean and deviation, where the deviation comes from rare costs at `high`.

        Of all distributions on the range with these two moments, this one has the smallest expected log capital.
        """
        self.check_moments(mean, std)
        scale = self.high - self.low
        centre = min(max((mean - self.low) / scale, 0.0), 1.0)
        # The Bessel-corrected deviation of few costs can exceed what the range allows.
        variance = min((std / scale) ** 2, centre * (1 - centre))
        if centre == 1.0:
            return 0.0
        lower_point = centre - variance / (1 - centre)
        probability = variance / (variance + (1 - centre) ** 2)
        count = torch.arange(1, samples + 1, dtype=torch.float64)
        expected = variance * (count**2 + count - 1) / (count + 1) ** 2 + (0.5 - centre) ** 2 / (count + 1) ** 2
        spread = 0.25 + torch.cat([torch.zeros(1, dtype=torch.float64), expected.cumsum(0)[:-1]])
        goal = math.log(1 / delta)
        bets = (2 * goal * count / (samples * spread)).sqrt()

        def reached(claim: float) -> bool:
            size = bets.clamp(max=_cap(claim))
            rare, usual = torch.log1p(-size * (1 - claim)), torch.log1p(-size * (lower_point - claim))
            end = float((probability * rare + (1 - probability) * usual).sum())
            noise = probability * (1 - probability) * float(((rare - usual) ** 2).sum())
            # The maximum over time is larger than the end: a Brownian bridge from 0 to `end` with this variance has
            # passed `goal` on its way with probability exp(-2 goal (goal - end) / noise); the median counts.
            return end >= goal - noise * math.log(2) / (2 * goal)

        return scale * (_smallest(reached, centre) - centre)


def _smallest(holds: Callable[[float], bool], low: float = 0.0) -> float:
    """Smallest claim in [low, 1] for which `holds` is true, rounded up; 1 without such a claim. It must be monotone."""
    if not holds(1 - 1e-12):
        return 1.0
    high = 1 - 1e-12
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class ConfidenceSequence:
    """Upper bounds on the mean that hold at all times at once: look after every batch, stop at any time.

    P(the true mean exceeds `upper` at any time) <= delta, for independent costs in [low, high] (arXiv 2010.09686,
    theorem 3). With `horizon` equal to the number of costs of a fixed test, and the costs in the order of
    `Betting.order`, the decision equals that of the fixed test: `below` is true at some time if and only if the fixed
    bound is at most the threshold.

    Args:
        low: smallest cost that can occur.
        high: largest cost that can occur.
        delta: error probability over all times.
        horizon: largest number of costs that will be seen, to which the bets are tuned; None if it is not known.
    """

    def __init__(self, low: float, high: float, delta: float, horizon: int | None = None) -> None:
        check_delta(delta)
        if horizon is not None and horizon < 1:
            raise ConfigError(
                f"the horizon of a confidence sequence is {horizon}; set it to 1 or more, or to None for no stated end."
            )
        self.low, self.high, self.delta, self.horizon = low, high, delta, horizon
        self._costs = torch.zeros(0, dtype=torch.float64)

    def __len__(self) -> int:
        """Number of costs so far."""
        return self._costs.numel()

    def update(self, costs: Float[Tensor, "batch"]) -> None:
        """Take the next costs, in order. Raises ValueError for costs that are NaN, out of range or past the horizon."""
        costs = costs_in_range(checked_costs(costs, self.delta, 0), self.low, self.high, Betting.__name__).cpu()
        if self.horizon is not None and len(self) + costs.numel() > self.horizon:
            raise ValueError(
                f"the confidence sequence was set up for {self.horizon} costs and would hold "
                f"{len(self) + costs.numel()}; its bets were tuned to {self.horizon}. Start a sequence with a larger "
                "horizon, on fresh costs."
            )
        self._costs = torch.cat([self._costs, costs])

    @property
    def upper(self) -> float:
        """The smallest threshold below which the mean has been shown to lie so far; `high` before anything is shown."""
        costs, bets = self._bets()
        smallest = _smallest(lambda claim: self._rejected(claim, costs, bets))
        return self.low + (self.high - self.low) * smallest

    def below(self, threshold: float) -> bool:
        """Whether the mean has been shown to lie below the threshold: the capital against it has reached 1/delta."""
        claim = self._scaled(threshold)
        return claim >= 1 or (claim > 0 and self._rejected(claim, *self._bets()))

    def decide(self, threshold: float) -> bool | None:
        """True once the mean is below the threshold, False once this cannot be shown any more, None while it is open.

        False needs a horizon. It costs no error probability: the capital could not reach 1/delta even if all remaining
        costs were `low`.
        """
        if self.below(threshold):
            return True
        claim = self._scaled(threshold)
        if claim <= 0:
            return False
        if self.horizon is None:
            return None
        costs, bets = self._bets()
        capital = float(log_capital(costs, bets, claim)[-1]) if len(self) else 0.0
        reachable = capital + float(largest_gain(costs, self.delta, self.horizon, claim)) >= math.log(1 / self.delta)
        return None if reachable else False

    def state_dict(self) -> dict[str, object]:
        """Settings and costs as plain data, from which another sequence with the same settings continues."""
        settings = {name: getattr(self, name) for name in ("low", "high", "delta", "horizon")}
        return {**settings, "costs": self._costs.tolist()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue where the other sequence stood. Raises ValueError if the settings differ: bets would change."""
        for name in ("low", "high", "delta", "horizon"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the saved confidence sequence has {name} {state[name]}, this one {getattr(self, name)}; a "
                    "sequence that continues with other settings does not keep its error probability. "
                    f"Set {name} to {state[name]}, or start on fresh costs."
                )
        self._costs = torch.zeros(0, dtype=torch.float64)
        self.update(torch.tensor(state["costs"], dtype=torch.float64))

    def _scaled(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def _bets(self) -> tuple[Tensor, Tensor]:
        """Costs in [0, 1] and the bets on them."""
        costs = ((self._costs - self.low) / (self.high - self.low)).clamp(0, 1)
        return costs, plug_in_bets(costs, self.delta, self.horizon)

    def _rejected(self, claim: float, costs: Tensor, bets: Tensor) -> bool:
        return bool((log_capital(costs, bets, claim) >= math.log(1 / self.delta)).any())


def largest_gain(
    costs: Float[Tensor, "*rows samples"], delta: float, horizon: int, mean: float
) -> Float[Tensor, "*rows"]:
    """The most that ln K(mean) can still grow after these costs in [0, 1], until `horizon` costs are seen.

    A cost wins at most lambda * mean, and v_{j-1} is at least (spread so far) / j, which bounds every lambda_j to come.
    """
    seen = costs.shape[-1]
    spread = _spread(costs)[..., -1:] if seen else torch.full_like(costs.sum(-1, keepdim=True), 0.25)
    to_come = torch.arange(seen + 1, horizon + 1, dtype=torch.float64, device=costs.device)
    bets = (2 * math.log(1 / delta) * to_come / (horizon * spread)).sqrt().clamp(max=_cap(mean))
    return torch.log1p(bets * mean).sum(-1)
