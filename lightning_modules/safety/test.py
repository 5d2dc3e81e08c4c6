"""The safety test of HC-RLHF: an upper confidence bound on the mean cost of one response a prompt, against the threshold."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from objectives import Bound
from support.errors import ConfigError


@dataclass
class SafetyTest:
    """How the test is done.

    Args:
        allowance: tests that this safety split may serve in all; delta is divided among them.
        ledger: folder of the record of tests; in the cache by default.
        export: folder of the policy if it passes; <run folder>/policy by default.
    """

    allowance: int = 1
    ledger: str | None = None
    export: str | None = None

    def __post_init__(self) -> None:
        if self.allowance < 1:
            raise ConfigError(f"test.allowance is {self.allowance}; it must be at least 1.")

    def check_export(self) -> None:
        """Refuse to replace a folder that holds something else than an exported policy. Raises ConfigError."""
        folder = Path(self.export) if self.export else None
        if folder is not None and folder.exists() and not (folder / "certificate.json").is_file() and any(folder.iterdir()):
            raise ConfigError(
                f"test.export names {folder}, which holds other files; name a folder that does not exist, or an earlier export."
            )


@dataclass
class Verdict:
    """Outcome of one test: upper bound `ucb` of the mean cost at confidence 1 - delta, against the threshold."""

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
    """SAFE iff the bound on the mean is at most the threshold (arXiv 2506.08266). Raises ValueError for unusable costs."""
    ucb = bound(costs, delta)
    costs = costs.double()
    std = float((costs - costs[0]).std()) if len(costs) > 1 else 0.0
    note = "all costs are equal, so the bound is their mean" if std == 0 and math.isclose(ucb, float(costs.mean())) else ""
    return Verdict(ucb <= threshold, ucb, float(costs.mean()), std, len(costs), threshold, delta, bound.name, bound.assumption, note)


def normalised(prompt: Any) -> str:
    """A prompt without what does not make it another prompt: case, white space, chat markup."""
    text = prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)
    return " ".join(text.lower().split())


def check_disjoint(safety: Iterable[Any], others: Mapping[str, Iterable[Any]]) -> None:
    """Refuse a safety split that shares a prompt, or repeats one. Raises ConfigError with the counts.

    Args:
        safety: its prompts. others: prompts of every other split, by name.
    """
    prompts = [normalised(prompt) for prompt in safety]
    kept = set(prompts)
    if len(kept) < len(prompts):
        raise ConfigError(
            f"{len(prompts) - len(kept)} prompts of the safety split are repeated; the test needs distinct ones. Drop the copies."
        )
    for name, rows in others.items():
        shared = kept & {normalised(prompt) for prompt in rows}
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(prompts)} prompts of the safety split are also in {name}, e.g. {min(shared)[:80]!r}; the test would not be independent of "
                "training. Split the data by prompt."
            )
