"""The safety test of HC-RLHF: an upper confidence bound on the mean cost, from one response per prompt."""

import math
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from objectives import Bound
from support.errors import ConfigError


@dataclass
class SafetyTest:
    """Settings of the safety test.

    Args:
        skip: train without a test, as baselines do; there is no certificate and nothing is exported.
        allowance: number of tests that this safety split may serve; delta is divided among them.
        ledger: folder of the record of tests; in the cache by default.
        export: folder for the policy if it passes; <run folder>/policy by default.
    """

    skip: bool = False
    allowance: int = 1
    ledger: str | None = None
    export: str | None = None

    def __post_init__(self) -> None:
        if self.allowance < 1:
            raise ConfigError(f"test.allowance is {self.allowance}; set it to 1 or more.")

    def check_export(self) -> None:
        """Refuse to replace a folder that is not an exported policy. Raises ConfigError."""
        folder = Path(self.export) if self.export else None
        if (
            folder is not None
            and folder.exists()
            and not (folder / "certificate.json").is_file()
            and any(folder.iterdir())
        ):
            raise ConfigError(
                f"test.export is {folder}, which holds other files; set it to a folder that does not exist, or to an "
                "earlier export."
            )


@dataclass
class Verdict:
    """Outcome of one test: upper bound `ucb` of the mean cost at confidence 1 - delta, and the threshold."""

    safe: bool
    ucb: float
    mean: float
    std: float
    samples: int
    threshold: float
    delta: float
    bound: str
    assumption: str
    note: str = ""

    @property
    def text(self) -> str:
        return "SAFE" if self.safe else "NO SOLUTION FOUND"


def judge(costs: Float[Tensor, "samples"], threshold: float, delta: float, bound: Bound) -> Verdict:
    """SAFE iff the bound on the mean is at most the threshold (arXiv 2506.08266).

    Raises:
        ValueError: for costs that the bound cannot use.
    """
    ucb = bound(costs, delta)
    costs = costs.double()
    std = float((costs - costs[0]).std()) if len(costs) > 1 else 0.0
    note = (
        "all costs are equal, so the bound is their mean" if std == 0 and math.isclose(ucb, float(costs.mean())) else ""
    )
    return Verdict(
        ucb <= threshold,
        ucb,
        float(costs.mean()),
        std,
        len(costs),
        threshold,
        delta,
        bound.name,
        bound.assumption,
        note,
    )
