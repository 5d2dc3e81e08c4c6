"""The safety test of HC-RLHF: an upper confidence bound on the mean cost, from one response per prompt."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from objectives import Betting, Bound, StudentT
from rewards import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]


@dataclass
class SafetyTest:
    """Settings of the safety test.

    Args:
        skip: train without a test, as baselines do; there is no certificate and nothing is exported.
        allowance: number of tests that this safety split may serve; delta is divided among them.
        sequential: look at the costs after every batch of responses and stop at the first decision, at the same delta
            and with the verdict of the whole test; needs the betting bound.
        batch_size: number of responses between two looks of a sequential test.
        ledger: folder of the record of tests; in the cache by default.
        export: folder for the policy if it passes; <run folder>/policy by default.
    """

    skip: bool = False
    allowance: int = 1
    sequential: bool = False
    batch_size: int = 32
    ledger: str | None = None
    export: str | None = None

    def __post_init__(self) -> None:
        if self.allowance < 1:
            raise ConfigError(f"test.allowance is {self.allowance}; set it to 1 or more.")
        if self.batch_size < 1:
            raise ConfigError(f"test.batch_size is {self.batch_size}; set it to 1 or more responses.")

    def level(self, delta: float) -> float:
        """Failure probability of one test: delta divided among the tests that the split may serve."""
        return delta / self.allowance

    def bound_for(self, bound: Bound | None, span: tuple[float, float, bool]) -> Bound:
        """The bound of the test; without a choice, betting over the cost's range, or Student's t if it has none.

        Args:
            bound: the chosen bound, or None.
            span: smallest cost, largest cost, whether only these two occur.

        Raises:
            ConfigError: the bound does not hold for costs in this range, or a sequential test has another than betting.
        """
        low, high, _ = span
        if bound is None:
            bound = Betting(low, high) if -math.inf < low < high < math.inf else StudentT()
        bound.check(*span)
        if self.sequential and not isinstance(bound, Betting):
            raise ConfigError(
                f"test.sequential looks at the costs several times, for which the bound {bound.name} does not hold; "
                "set model.bound: objectives.Betting with a cost in a stated range (constraint.cost_scale: probability "
                "or unsafe), or test.sequential: false."
            )
        return bound

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
    """Outcome of one test: upper bound `ucb` of the mean cost at confidence 1 - delta, and the threshold.

    Fields:
        samples: number of responses that the verdict used.
        prompts: number of safety prompts; more than `samples` if the test stopped early.
        student_t_ucb: the paper's bound on the same costs, beside the chosen one; None for fewer than two costs.
        student_t_verdict: what the paper's test says of them.
    """

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
    prompts: int | None = None
    student_t_ucb: float | None = None
    student_t_verdict: str = ""

    @property
    def text(self) -> str:
        return _text(self.safe)

    @property
    def details(self) -> list[str]:
        """Lines for the terminal: the paper's bound where another one decided, and what stopping early saved."""
        lines = []
        if self.student_t_ucb is not None and self.bound != StudentT().name:
            lines.append(
                f"  paper's test {self.student_t_verdict}: Student's t {self.student_t_ucb:.4f} on the same costs, "
                "which does not decide"
            )
        if self.prompts is not None and self.prompts > self.samples:
            lines.append(
                f"  stopped      after {self.samples} of {self.prompts} responses, {self.prompts - self.samples} saved"
            )
        return lines


def _text(safe: bool) -> str:
    return "SAFE" if safe else "NO SOLUTION FOUND"


def judge(
    costs: Float[Tensor, "samples"],
    threshold: float,
    delta: float,
    bound: Bound,
    ucb: float | None = None,
    prompts: int | None = None,
) -> Verdict:
    """SAFE iff the bound on the mean is at most the threshold (arXiv 2506.08266).

    Args:
        costs: one per response.
        threshold: largest mean cost allowed.
        delta: failure probability of this test.
        bound: bound of the test.
        ucb: the bound's value, where a sequential test has computed it; None computes it from the costs.
        prompts: number of safety prompts; that of the costs if None.

    Raises:
        ValueError: for costs that the bound cannot use.
    """
    ucb = bound(costs, delta) if ucb is None else ucb
    costs = costs.double()
    std = float((costs - costs[0]).std()) if len(costs) > 1 else 0.0
    note = (
        "all costs are equal, so the bound is their mean" if std == 0 and math.isclose(ucb, float(costs.mean())) else ""
    )
    paper = StudentT()(costs, delta) if len(costs) > 1 else None
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
        prompts or len(costs),
        paper,
        "" if paper is None else _text(paper <= threshold),
    )


def run_test(
    rows: Rows,
    sample: Callable[[Rows], RolloutBatch],
    cost: Callable[[RolloutBatch], Float[Tensor, "rows"]],
    monitors: Sequence[Reward],
    threshold: float,
    delta: float,
    bound: Bound,
    settings: SafetyTest,
) -> dict[str, Any]:
    """Sample one response per safety prompt, all at once or in batches until the test is decided, and judge them.

    Responses depend on the run's seed and the prompt only, so an interrupted test that starts again repeats itself, and
    a sequential test sees the costs of the whole test, in the order of the bound.

    Args:
        rows: rows of the safety split.
        sample: one response to each of these rows, drawn by each row's id (`rollouts.engine.uniforms`); an engine that
            draws otherwise would repeat its draws in every batch.
        cost: the cost of every response of a batch.
        monitors: further rewards, whose means are reported.
        threshold, delta, bound: as in `judge`.
        settings: whether the test is sequential, and its batches.

    Returns:
        {"delta", "verdict": fields of a Verdict, "truth": mean of each monitor, "costs": in the order of sampling}
    """
    if len({str(row["id"]) for row in rows}) < len(rows):  # rows with one id would be answered with the same numbers
        rows = [row | {"id": f"{place}"} for place, row in enumerate(rows)]
    sequence, size = None, len(rows)
    if settings.sequential:
        assert isinstance(bound, Betting)
        rows = [rows[place] for place in bound.order(len(rows)).tolist()]
        sequence, size = bound.sequence(delta, horizon=len(rows)), settings.batch_size
    costs = torch.zeros(0)
    scores: dict[str, list[Tensor]] = {monitor.name: [] for monitor in monitors}
    for start in range(0, len(rows), size):
        with isolated_rng("safety test", run_seed()):
            batch = sample(rows[start : start + size])
        part = cost(batch).cpu()
        costs = torch.cat([costs, part])
        for monitor in monitors:
            scores[monitor.name].append(monitor(batch))
        if sequence is not None:
            sequence.update(part)
            if sequence.decide(threshold) is not None:
                break
    ucb = None if sequence is None else sequence.upper
    if sequence is not None and sequence.below(threshold):
        ucb = min(sequence.upper, threshold)  # `upper` is rounded up
    verdict = judge(costs, threshold, delta, bound, ucb, len(rows))
    if sequence is not None:
        verdict.assumption += f"; looked at after every {size} responses, which the bound allows"
    return {
        "delta": delta,
        "verdict": asdict(verdict),
        "truth": {name: float(torch.cat(parts).nanmean()) for name, parts in scores.items()},
        "costs": costs.tolist(),
    }
