"""Settings of the sampling of completions."""

from dataclasses import dataclass, field, replace

from support.errors import ConfigError


@dataclass
class SamplingParams:
    """Sampling of completions.

    Args:
        max_new_tokens: longest completion, in tokens, its end token included.
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with at least this probability; 1 keeps all.
        top_k: number of likeliest tokens kept; 0 keeps all.
        stop: texts that also end a completion, which keeps them.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or above"),
            "stop": (all(self.stop), "a list of non-empty texts"),
        }
        for name, (holds, rule) in checks.items():
            if not holds:
                raise ConfigError(f"sampling.{name} is {getattr(self, name)}; it must be {rule}.")


@dataclass
class SamplingOverrides:
    """Settings of `SamplingParams` that replace those of the training; None keeps the training's.

    Args:
        max_new_tokens, temperature, top_p, top_k, stop: as in `SamplingParams`.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: list[str] | None = None


def overridden(sampling: SamplingParams, overrides: SamplingOverrides | SamplingParams) -> SamplingParams:
    """`sampling` with all that `overrides` sets. Raises ConfigError for a value out of range."""
    values = {name: value for name, value in vars(overrides).items() if value is not None}
    return replace(sampling, **values)
