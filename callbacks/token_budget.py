"""Training that ends when so many tokens have been generated, so that methods whose completions differ in length compare."""

from typing import Any

import lightning as L

from support.errors import ConfigError


class TokenBudget(L.Callback):
    """Ends the training after the rollout with which `tokens` are reached, and a last validation.

    All that training generates counts, over all processes: completions that dynamic sampling leaves out, questions of a method to itself, a monitor's samples;
    what a method samples before the first rollout and what validation samples do not. The count is the metric `train/tokens` and part of every checkpoint, so a
    resumed run ends where an uninterrupted one does. `trainer.max_steps` may end it before; -1 leaves the end to the budget.

    Args:
        tokens: to be generated at least.
    """

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"TokenBudget: tokens is {tokens}; it must be at least 1.")
        self.tokens = tokens

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "generated_tokens"):
            raise ConfigError(
                f"TokenBudget counts the tokens that a method generates, and {type(pl_module).__name__} generates none; bound it with trainer.max_steps."
            )

    def _end(self, trainer: L.Trainer, generated: int) -> None:
        if generated >= self.tokens:
            trainer.should_stop = True

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:  # a resumed run may have nothing left to do
        self._end(trainer, pl_module.generated_tokens)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end(trainer, pl_module.generated_tokens)
