"""Percentile bootstrap of a mean over problems (Efron & Tibshirani, An Introduction to the Bootstrap, ch. 13).

It measures the uncertainty from the choice of problems of the same kind. If all problems have the same value, the
interval has zero width: this sample shows no spread, but the population may have some.
"""

import numpy as np

from support.errors import ConfigError
from support.seeding import derive_seed

#: maximum number of entries of one draw, which bounds the memory for many problems
CHUNK = 4_000_000


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """(low, high) around the mean of `values`.

    A resample of n problems is a multinomial draw of the counts of each distinct value, so the interval does not depend
    on the order of the problems or on their distribution over processes.

    Args:
        values: (problems,), one number per problem, e.g. its pass@k.
        level: fraction of repetitions whose interval should contain the true mean.
        resamples: number of resamples of the problems, with replacement.
        seed: seed of the resamples.

    Raises:
        ConfigError: for no problems, a level outside (0, 1) or no resamples.
    """
    if len(values) == 0 or not 0 < level < 1 or resamples < 1:
        raise ConfigError(
            "bootstrap_interval: needs problems, 0 < level < 1 and resamples >= 1; got "
            f"{len(values)} problems, {level}, {resamples}."
        )
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    rng = np.random.default_rng(derive_seed("bootstrap", seed))
    rows = max(1, CHUNK // len(distinct))
    means = [
        rng.multinomial(len(values), counts / len(values), size=min(rows, resamples - first)) @ distinct / len(values)
        for first in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
