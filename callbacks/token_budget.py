"""A limit on generated tokens, for comparing methods whose completions differ in length."""

from typing import Any

import lightning as L

from support.errors import ConfigError


class TokenBudget(L.Callback):
    """End training after the rollout that reaches `tokens` generated tokens and one last validation.

    All tokens that training generates count, over all processes: also completions that dynamic sampling discards, a
    method's questions to itself, and a monitor's samples. Tokens sampled before the first rollout or in validation do
    not count. The count is the metric `train/tokens` and part of every checkpoint, so a resumed run ends where an
    uninterrupted one does. `trainer.max_steps` may end the run earlier; -1 leaves the end to the budget.

    Args:
        tokens: number of generated tokens after which training ends, at least 1.
    """

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"TokenBudget: tokens is {tokens}; it is a number of tokens and must be at least 1.")
        self.tokens = tokens

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "generated_tokens"):
            raise ConfigError(
                f"TokenBudget counts the tokens that a method generates, but {type(pl_module).__name__} generates "
                "none; remove TokenBudget from trainer.callbacks and set trainer.max_steps."
            )

    def _end(self, trainer: L.Trainer, generated: int) -> None:
        if generated >= self.tokens:
            trainer.should_stop = True

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:  # a resumed run may have nothing left to do
        self._end(trainer, pl_module.generated_tokens)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end(trainer, pl_module.generated_tokens)
