"""Settings of validation, test and prediction."""

from dataclasses import dataclass, field

from rollouts import SamplingOverrides
from support.errors import ConfigError


@dataclass
class Evaluation:
    """Settings of validation and test.

    Args:
        samples: completions per prompt.
        pass_k: the k of pass@k, at most `samples`. One number is logged as `pass@k`, a list such as [1, 4, 16] as
            `pass@1`, `pass@4`, `pass@16`.
        sampling: sampling settings that differ from the training's.
        seed: seed of the samples, the same for every run by default, so that differences between runs with other seeds
            are differences of their training. None takes the run's seed.
        val_intervals: log 95 % bootstrap intervals over the problems in validation too; the test stage always has them.
    """

    samples: int = 1
    pass_k: int | list[int] | None = None
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    val_intervals: bool = False
    seed: int | None = 0

    def __post_init__(self) -> None:
        ks = list(self.pass_ks.values())
        if self.samples < 1 or not all(1 <= k <= self.samples for k in ks) or self.pass_k == []:
            raise ConfigError(
                f"evaluation.samples is {self.samples} and evaluation.pass_k is {self.pass_k}; set samples >= 1 and "
                "1 <= pass_k <= samples."
            )

    @property
    def pass_ks(self) -> dict[str, int]:
        """The configured k by the metric's name."""
        if isinstance(self.pass_k, int):
            return {"pass@k": self.pass_k}
        return {f"pass@{k}": k for k in self.pass_k or []}

    def with_intervals(self, stage: str) -> bool:
        """Whether a stage logs intervals."""
        return stage == "test" or self.val_intervals
