"""The update of the policy: passes over a rollout's tokens, and optimiser steps."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_modules.core.micro_batches import MicroBatch, micro_batches, update_slices
from lightning_modules.core.optimizer_steps import Steps
from lightning_modules.core.signal import rows_with_signal
from objectives import Aggregation
from objectives.kl import kl_estimate
from policies import Policy, PromptGroups
from policies.compute import computing
from rollouts import BatchPlan, RolloutBatch
from support.errors import ConfigError
from support.processes import process_count, summed

#: sums over the masked tokens, or (sum, count) if the mean is not over tokens
Sums = dict[str, Tensor | tuple[Tensor, Tensor]]


class ValueTerm(Protocol):
    """The critic's part of the update: values from the same pass, and a loss of every token.

    Fields:
        coefficient: weight of its loss.
        policy_frozen: whether this rollout trains the critic alone.
    """

    coefficient: float
    policy_frozen: bool

    def forward(
        self, groups: PromptGroups, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor, Float[Tensor, "rows time critics"]]:
        """(log-probs, entropies, values) of the rows' tokens."""

    def loss(
        self, values: Float[Tensor, "rows time critics"], batch: RolloutBatch, rows: Tensor, mask: Tensor
    ) -> tuple[Float[Tensor, "rows time"], Sums]:
        """The loss of every token, 0 outside the mask, and sums over the masked tokens to log."""


@dataclass
class Objective:
    """The parts of a method's objective that the update calls.

    Fields:
        token_loss: (logprobs, behaviour, reference or None, advantages, mask) -> (per-token loss, sums to log).
        behaviour: (batch, rows, log-probs under the policy that sampled) -> log-probs of the rows' behaviour policy.
        auxiliary_loss: (batch, rows of the optimiser step) -> a loss in addition to the policy's, or None.
        aggregation: weights of the rows of an optimiser step.
        temperature: divisor of the logits.
        entropy_bonus: coefficient of the entropy that is subtracted from each token's loss.
        importance_cap: maximum importance weight of policy over engine; None for engines that need no correction.
        needs_all_rows: compute also rows whose advantages are all 0. Every term that acts on such rows needs it.
        value_term: the critic's part; None without a critic.
    """

    token_loss: Callable[..., tuple[Float[Tensor, "rows time"], Sums]]
    behaviour: Callable[[RolloutBatch, Tensor, Tensor], Tensor]
    auxiliary_loss: Callable[[RolloutBatch, slice], Tensor | None]
    aggregation: Aggregation
    temperature: float
    entropy_bonus: float
    importance_cap: float | None
    needs_all_rows: bool = True
    value_term: ValueTerm | None = None


def without_idle_tokens(batch: RolloutBatch, mask: Bool[Tensor, "rows time"]) -> RolloutBatch:
    """The batch without the tokens after each row's last one that carries loss; every row keeps at least one token.

    The loss does not depend on the removed tokens, so they need not be computed.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, 0).amax(1, keepdim=True)
    kept = batch.completion_mask & (steps <= last)
    return replace(batch, completion_mask=kept, action_mask=batch.action_mask & kept)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a GPU or a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


class PolicyUpdate:
    """The optimiser steps of one rollout.

    Args:
        batch: the rollout, with advantages.
        mask: tokens that carry loss.
        sampled_logprobs: log-probs under the policy that sampled; None if the policy has not changed since, so that
            its own log-probs give a ratio of exactly 1.
        reference_logprobs: log-probs under the reference; None without a KL term.
        token_budget: maximum number of tokens per pass; None takes all rows at once. A pass that does not fit into
            memory halves it, once per run.
        may_halve: whether the budget has not been halved in this run yet.
    """

    def __init__(
        self,
        batch: RolloutBatch,
        mask: Bool[Tensor, "rows time"],
        *,
        policy: Policy,
        plan: BatchPlan,
        objective: Objective,
        steps: Steps,
        sampled_logprobs: Float[Tensor, "rows time"] | None,
        reference_logprobs: Float[Tensor, "rows time"] | None,
        token_budget: int | None,
        may_halve: bool,
    ) -> None:
        assert batch.advantages is not None
        per_token = batch.advantages.dim() == 2
        self.advantages = batch.advantages if per_token else batch.advantages[:, None].expand(mask.shape)
        self.batch, self.mask = without_idle_tokens(batch, mask), mask
        self.computed = rows_with_signal(mask, None if objective.needs_all_rows else self.advantages)
        self.policy, self.plan, self.objective, self.steps = policy, plan, objective, steps
        self.sampled_logprobs, self.reference_logprobs = sampled_logprobs, reference_logprobs
        self.token_budget, self.may_halve = token_budget, may_halve
        self.sums: dict[str, Tensor] = {}  # (sum, count) by name
        self.drift = torch.zeros((), device=policy.device)
        self.updated = False

    def run(self) -> dict[str, float]:
        """Take the steps. Returns the loss's metrics, as means over the tokens of all processes."""
        norms: list[dict[str, float]] = []
        parts = 0
        for part in update_slices(self.batch, self.plan.updates_per_rollout) * self.plan.epochs:
            mask, parts = self.mask[part], parts + 1
            totals = summed(torch.stack([(mask.sum(1) > 0).sum(), mask.sum()]).double())
            # A step without any token that carries loss still counts, but changes neither weights nor moments.
            if totals[1] > 0:
                # The weights count all rows with loss, also those that are not computed.
                self._accumulate(part, self.objective.aggregation(mask, *totals.tolist()))
                self._count_left_out(part)
                self.updated = True
                if self._drifted(float(totals[1])):
                    self.steps.optimizer.zero_grad()
                    break
                if (auxiliary := self.objective.auxiliary_loss(self.batch, part)) is not None:
                    self.steps.backward(auxiliary)
            norms.append(self.steps.step())
            if self.plan.lr_per == "update":
                self.steps.step_scheduler()
        if self.plan.lr_per == "rollout":
            self.steps.step_scheduler()
        return self._metrics(norms, parts)

    def _metrics(self, norms: list[dict[str, float]], parts: int) -> dict[str, float]:
        finite = [of_step for of_step in norms if all(map(math.isfinite, of_step.values()))]
        metrics: dict[str, float] = {}
        if self.sums:
            totals = summed(torch.stack(list(self.sums.values())).double())
            metrics = {name: float(s / n) for name, (s, n) in zip(self.sums, totals, strict=True) if n}
        metrics["loss"] = float(totals[list(self.sums).index("loss")][0]) / parts if self.sums else 0.0
        if self.plan.kl_stop is not None:
            metrics["updates"] = float(len(finite))
        metrics["skipped_updates"] = float(len(norms) - len(finite))
        means = {name: sum(one[name] for one in finite) / max(len(finite), 1) for name in norms[0]} if norms else {}
        return metrics | (means or {"grad_norm": 0.0})

    def _accumulate(self, part: slice, weights: Float[Tensor, "rows"]) -> None:
        """Add the gradient of one optimiser step; passes that do not fit into memory are halved, once per run."""
        sums = dict(self.sums)
        self.drift.zero_()
        micros = micro_batches(self.batch, part, self.token_budget, equalise=True, computed=self.computed)
        try:
            with computing(self.policy):  # all passes of a step cast the weights once
                for micro in micros:
                    # The processes' gradients are averaged, the row weights already count all processes' rows.
                    loss = self._loss(micro, weights[micro.rows - part.start].to(self.policy.device))
                    self.steps.backward(loss * process_count())
            return
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            largest = max(int(self.batch.lengths[micro.rows].sum()) for micro in micros)
            if not self.may_halve or process_count() > 1:
                raise ConfigError(
                    f"a pass over {largest} completion tokens does not fit into memory "
                    f"({str(error).splitlines()[0]}); set batch.update_token_budget to {largest // 2} or less, or "
                    "policy.gradient_checkpointing: true."
                ) from error
        # Outside the handler, whose traceback would keep the failed pass in memory. Gradients so far are discarded.
        self.steps.optimizer.zero_grad()
        self.token_budget, self.may_halve, self.sums = largest // 2, False, sums
        warnings.warn(
            f"a pass over {largest} completion tokens did not fit into memory; from here on passes have "
            f"{largest // 2} tokens. Set batch.update_token_budget.",
            stacklevel=2,
        )
        if self.policy.device.type == "cuda":
            torch.cuda.empty_cache()
        self._accumulate(part, weights)

    def _loss(self, micro: MicroBatch, weights: Float[Tensor, "some"]) -> Float[Tensor, ""]:
        """The weighted loss of one pass, with a gradient."""
        objective, batch, rows, width = self.objective, self.batch, micro.rows, micro.width
        mask, bonus = self.mask[rows, :width] & micro.counted[:, None], objective.entropy_bonus
        groups = batch.prompt_groups(rows)
        if (term := objective.value_term) is None:
            logprobs, entropy = self.policy.logprobs(groups, objective.temperature, entropy_gradient=bonus > 0)
        else:
            logprobs, entropy, values = term.forward(groups, objective.temperature, bonus > 0)
        detached, engine_logprobs = logprobs.detach(), batch.behaviour_logprobs[rows, :width]
        sampled = detached if self.sampled_logprobs is None else self.sampled_logprobs[rows, :width]
        behaviour = objective.behaviour(batch, rows, sampled)
        reference = None if self.reference_logprobs is None else self.reference_logprobs[rows, :width]
        loss, sums = objective.token_loss(logprobs, behaviour, reference, self.advantages[rows, :width], mask)
        if objective.importance_cap is not None:
            importance = (behaviour - engine_logprobs).exp().clamp(max=objective.importance_cap)
            loss, sums["importance"] = loss * torch.where(mask, importance, 0.0), (importance * mask).sum()
        if bonus:
            loss = loss - bonus * entropy
        if term is not None:
            of_critic, critic_sums = term.loss(values, batch, rows, mask)
            loss = loss + term.coefficient * of_critic
            sums |= critic_sums
        sums["entropy"] = (entropy.detach() * mask).sum()
        if not self.updated:  # later the policy is another one
            sums["behaviour_gap"] = ((behaviour.detach() - engine_logprobs).abs() * mask).sum()
        if self.plan.kl_stop is not None:
            self.drift += torch.where(mask, kl_estimate(sampled, detached, "k3"), 0.0).sum()
        total = (torch.where(mask, loss, 0.0) * weights[:, None]).sum()
        for name, value in (sums | {"loss": total}).items():
            self._add(name, *(value if isinstance(value, tuple) else (value, mask.sum())))
        return total

    def _add(self, name: str, total: Tensor, count: Tensor) -> None:
        sum_and_count = torch.stack([total.detach().double(), count.double()])
        self.sums[name] = self.sums[name] + sum_and_count if name in self.sums else sum_and_count

    def _count_left_out(self, part: slice) -> None:
        """Complete the metrics of one optimiser step by the rows that were not computed.

        The mean of -log p over sampled tokens estimates the entropy, so that `entropy` also shows a policy whose
        completions are all equal, and therefore all without signal.
        """
        computed = self.computed[part]
        left_out = self.mask[part] & ~computed[:, None]
        self._add("entropy", torch.where(left_out, -self.batch.behaviour_logprobs[part], 0.0).sum(), left_out.sum())
        self._add("computed_rows", computed.sum(), torch.tensor(len(computed), device=computed.device))

    def _drifted(self, tokens: float) -> bool:
        """Whether the policy left the one that sampled by more than `kl_stop` nats per token, over all processes."""
        if self.plan.kl_stop is None:
            return False
        return float(summed(self.drift)) / max(tokens, 1.0) > self.plan.kl_stop
