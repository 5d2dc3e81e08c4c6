"""Distributions of costs in [0, 1] with known means, for simulated safety tests."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

#: costs of the 1,000 safety prompts of `main.py fit --config configs/hc_rlhf.yaml` (seed 0): quantiles in steps of
#: 5 % of the 998 low ones, and the two high ones
LOW_COSTS = (
    *(0.0697, 0.0706, 0.0708, 0.0710, 0.0711, 0.0713, 0.0715, 0.0718, 0.0722, 0.0727, 0.0770),
    *(0.0776, 0.0779, 0.0783, 0.0786, 0.0789, 0.0792, 0.0795, 0.0799, 0.0805, 0.0820),
)
HIGH_COSTS = (0.6877, 0.6978)
#: tail index and scale of the heavy-tailed costs: min(1, scale * Pareto(index)), most of them tiny
INDEX, SCALE = 1.2, 0.01


def shipped(high_share: float) -> tuple[Draw, float]:
    """Draws from the costs of the shipped run with this share of high ones, and their true mean."""
    levels = np.linspace(0, 1, len(LOW_COSTS))

    def draw(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        low = np.interp(generator.random(size), levels, LOW_COSTS)
        return np.where(generator.random(size) < high_share, generator.choice(HIGH_COSTS, size), low)

    return draw, float((1 - high_share) * np.trapezoid(LOW_COSTS, levels) + high_share * np.mean(HIGH_COSTS))


#: name -> (draws, true mean)
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda generator, size: np.clip(generator.normal(0.5, 0.1, size), 0, 1), 0.5),
    "skewed": (lambda generator, size: generator.beta(0.3, 5.7, size), 0.05),
    "two-point": (lambda generator, size: (generator.random(size) < 0.05).astype(float), 0.05),
    "heavy-tailed": (
        lambda generator, size: np.minimum(1.0, SCALE * (1 + generator.pareto(INDEX, size))),
        # E[min(1, s X)] = s a / (a - 1) * (1 - s^(a-1)) + s^a for X Pareto(a) on [1, inf)
        SCALE * INDEX / (INDEX - 1) * (1 - SCALE ** (INDEX - 1)) + SCALE**INDEX,
    ),
    "shipped, 0.2 % high": shipped(0.002),
    "shipped, 1 % high": shipped(0.01),
}


def draws(shape: str, size: int, repetitions: int) -> tuple[Tensor, float]:
    """(costs, repetitions by size; their true mean)."""
    draw, mean = SHAPES[shape]
    generator = np.random.default_rng([size, list(SHAPES).index(shape)])
    return torch.from_numpy(draw(generator, (repetitions, size))), mean
