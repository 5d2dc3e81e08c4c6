"""The six arrows: prompts -> rollouts -> rewards -> advantages -> loss -> update, each a method to override.

One batch of the trainer is one rollout. Optimisation is manual, so a rollout may serve several optimiser steps; everything random
in rollout n derives from (seed, n) and the prompts, so a resumed run repeats an uninterrupted one, and two processes draw what one would.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.base import PosttrainModule, adamw
from lightning_modules.checks import check_data
from lightning_modules.dynamic_sampling import exactly, refilled
from lightning_modules.evaluation import Evaluation, applicable_scores, evaluate
from lightning_modules.failure_counts import FailureCounts
from lightning_modules.overlap import overlapped_rollout
from lightning_modules.policy_update import all_logprobs, policy_update
from lightning_modules.problem_counts import ProblemCounts
from lightning_modules.telemetry import log_rollout
from lightning_modules.terms import KLPenalty, Shaping
from lightning_modules.thinking_stats import ThinkingStats
from objectives import Advantage, Aggregation, PolicyLoss
from objectives.global_norm import at_last_token, normalised_sum
from objectives.kl import kl_estimate
from objectives.policy_losses import log_ratios
from policies import PolicyParams
from rewards import Reward, correct_rows, total_reward, without_failed
from rollouts import BatchPlan, EmbeddedEngine, Engine, RolloutBatch, SamplingParams, completion_records
from support.errors import ConfigError
from support.memory import keep_freed_memory
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]


class OnPolicyModule(PosttrainModule):
    """A method that learns from its own samples. Subclasses choose the parts and override at most a few arrows.

    Args:
        policy: the model. batch: every batch size. sampling: how completions are drawn in training.
        rewards: what a completion earns, as a weighted sum.
        advantage, loss, aggregation: the objective's three parts.
        kl: penalty for leaving the reference.
        evaluation: how validation and test sample.
        engine: what generates; the embedded one if None.
        importance_cap: where the engine's log-probs are not the policy's own (another precision, another program), every token's loss is
            multiplied by min(policy / engine, cap): truncated importance sampling. None leaves it out.
        optimizer, lr_scheduler: as in every module.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        shaping: truncated completions, several rewards, entropy bonus; nothing of these if None.
    """

    batch: BatchPlan
    kl: KLPenalty
    #: whether groups whose rewards are all equal give no gradient, so that `batch.refill` may replace them
    equal_rewards_teach_nothing = False

    def __init__(
        self,
        policy: PolicyParams,
        batch: BatchPlan,
        sampling: SamplingParams,
        rewards: list[Reward],
        advantage: Advantage,
        loss: PolicyLoss,
        aggregation: Aggregation,
        kl: KLPenalty,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler)
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"two rewards share a name among {names}; give each its own with `name`.")
        if sampling.temperature == 0:
            raise ConfigError(
                "sampling.temperature is 0: all completions of a prompt would be equal and nothing could be learned; set it above 0."
            )
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"max_grad_norm is {max_grad_norm}; it must be above 0, or null to leave gradients as they are.")
        if kl.placement == "token_reward" and not advantage.token_rewards:
            raise ConfigError(
                f"kl.placement is token_reward, but {type(advantage).__name__} takes one reward a completion; set kl.placement: reward, or choose "
                "objectives.ReinforcePlusPlus (baseline: none)."
            )
        if batch.refill and not (self.equal_rewards_teach_nothing and advantage.needs_group):
            who = type(self).__name__ if not self.equal_rewards_teach_nothing else type(advantage).__name__
            raise ConfigError(f"batch.refill is {batch.refill}, but {who} learns from groups of equal rewards too; leave it at 0 there.")
        if batch.group_size == 1 and (advantage.needs_group or (shaping is not None and shaping.normalise_rewards)):
            raise ConfigError(
                f"batch.group_size is 1, but {type(advantage).__name__ if advantage.needs_group else 'shaping.normalise_rewards'} judges a completion against the "
                "others of its prompt; set it to 2 or more, or choose an advantage without a group, such as objectives.RunningMean."
            )
        self.automatic_optimization = False
        self.batch, self.sampling, self.rewards, self.kl = batch, sampling, rewards, kl
        self.advantage, self.policy_loss, self.aggregation = advantage, loss, aggregation
        self.evaluation, self.shaping = evaluation or Evaluation(), shaping or Shaping()
        if importance_cap is not None and importance_cap < 1:
            raise ConfigError(f"importance_cap is {importance_cap}; it must be 1 or above, or null for none.")
        self.max_grad_norm, self.importance_cap = max_grad_norm, importance_cap
        self.update_token_budget, self.update_budget_halved = batch.update_token_budget, False  # by a pass that did not fit
        self.with_reference = kl.coefficient > 0
        self.engine = engine or EmbeddedEngine()
        self.last_rollout: RolloutBatch | None = None  # that was learned from
        self.last_sampled: RolloutBatch | None = None  # with the groups that dynamic sampling left out
        self.last_validation: list[RolloutBatch] = []
        self.generated_tokens = 0  # by the training so far, over all processes and resumed parts
        self.thinking_stats: ThinkingStats | None = None
        self.problem_counts, self.failure_counts = ProblemCounts(), FailureCounts()
        #: how many further prompts dynamic sampling takes at once, see `refilled`; callbacks may set it
        self.refill_size: Callable[[int, float], int] = exactly

    # ---- the six arrows -----------------------------------------------------------------------------------------------------

    def training_step(self, rows: Rows, batch_idx: int) -> None:
        """One rollout and its updates."""
        with isolated_rng("rollout", run_seed(), self.rollouts_done):
            started = time.perf_counter()
            with self.whole_weights():
                batch = overlapped_rollout(self.rollout, rows, self.rewards, self._prompts_at_once)
                sampled = time.perf_counter()
                batch.rewards = self.score(batch)
                drawn = everything = batch
                filling: dict[str, float] = {}
                if self.batch.refill:
                    batch, everything, filling = self.refill(batch)
                    sampled = time.perf_counter()
            filling |= FailureCounts().add(everything).metrics(self, "this rollout")
            for reward in self.rewards:
                filling |= reward.metrics(drawn)
                reward.observe(everything)
            batch.advantages = self.advantages(batch)
            scored = time.perf_counter()
            metrics = self.update(batch)
            seconds = (sampled - started, time.perf_counter() - scored)
        self.last_rollout, self.last_sampled = batch, everything
        self.generated_tokens += int(self.summed(everything.lengths.sum()))
        # Rewards and lengths of the prompts as they were drawn: those that are left after a selection compare with no other run.
        log_rollout(self, drawn, metrics | filling | self.advantage.metrics, *seconds)

    def rollout(self, rows: Rows) -> RolloutBatch:
        """Prompts to completions."""
        return self.sample(rows, self.batch.group_size, self.sampling)

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        """Completions to rewards, by name, in the order of the list: each finds those before it in `batch.rewards`."""
        for reward in self.rewards:
            if reward.name not in batch.rewards:
                batch.rewards[reward.name] = reward(batch)
        return {reward.name: batch.rewards[reward.name] for reward in self.rewards}

    def refill(self, batch: RolloutBatch) -> tuple[RolloutBatch, RolloutBatch, dict[str, float]]:
        """Dynamic sampling: groups without signal are replaced by those of further prompts. Also returns all that was sampled, and metrics."""
        loader: Any = self.trainer.train_dataloader
        if not hasattr(loader, "spare_rows"):
            raise ConfigError(
                "batch.refill needs a training loader that hands out further rows, as datamodules.PromptLoader does with `spare_rows`."
            )

        def sample(rows: Rows) -> RolloutBatch:
            part = self.rollout(rows)
            part.rewards = self.score(part)
            return part

        budget = self.batch.further_prompts(self.trainer.world_size)
        with isolated_rng("refill", run_seed(), self.global_rank, self.rollouts_done):
            return refilled(batch, loader.spare_rows(self.rollouts_done), budget, sample, self.totals, self.refill_size)

    def totals(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The weighted rewards of every completion, after `shaping`."""
        if self.shaping.normalise_rewards:
            weights = torch.tensor([reward.weight for reward in self.rewards])
            total = normalised_sum(torch.stack([batch.rewards[reward.name] for reward in self.rewards]), weights, batch.groups)
            total = without_failed(total, self.rewards, batch.failures)
        else:
            total = total_reward(self.rewards, batch.rewards, batch.failures)
        if self.shaping.truncated_scale < 1:
            total = torch.where(batch.truncated, self.shaping.truncated_scale * total, total)
        return total

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The one number a completion that is maximised: the weighted rewards, less the KL penalty if it is placed there."""
        total = self.totals(batch)
        if self.kl.placement == "reward" and self.kl.coefficient:
            total = total - self.kl.coefficient * self.sequence_kl(batch)
        return total

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        """Returns to advantages."""
        returns = self.returns(batch)
        if self.kl.placement == "token_reward" and self.kl.coefficient:
            returns = at_last_token(returns, batch.action_mask) - self.kl.coefficient * self.token_kl(batch)
        self.advantage.correct = correct_rows(self.rewards, batch)
        return self.advantage(returns, batch.groups, batch.completion_ids, batch.action_mask)

    def token_loss(
        self,
        logprobs: Float[Tensor, "rows time"],
        behaviour: Float[Tensor, "rows time"],
        reference: Float[Tensor, "rows time"] | None,
        advantages: Float[Tensor, "rows time"],
        mask: Tensor,
    ) -> tuple[Float[Tensor, "rows time"], dict[str, Tensor]]:
        """Advantages to the loss of every token, and sums over the masked tokens of what is logged."""
        loss, sums = self.policy_loss(logprobs, behaviour, advantages, mask)
        if reference is not None:
            difference = torch.where(mask, logprobs, reference.detach())
            if self.kl.placement == "loss":
                penalty = self.kl.estimate(difference, reference)
                if self.kl.importance_weighted:
                    penalty = penalty * log_ratios(logprobs, behaviour, mask).exp()
                loss = loss + self.kl.coefficient * penalty
            sums["kl"] = (kl_estimate(difference.detach(), reference, "k3") * mask).sum()
        return loss, sums

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        """The optimiser steps of one rollout. Returns means over the tokens of what the loss reports."""
        return policy_update(self, batch)

    def auxiliary_loss(self) -> Tensor | None:
        """A loss beside the policy's, added once an optimiser step; none by default."""
        return None

    # ---- parts of the arrows ------------------------------------------------------------------------------------------------

    @property
    def all_rewards(self) -> list[Reward]:
        """All that scores a completion, optimised or not."""
        return self.rewards

    @property
    def rollouts_done(self) -> int:
        """Rollouts before this one, over the whole training, resumed parts included."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    @property
    def plain_sampling(self) -> bool:
        """Whether completions are drawn from the distribution whose log-probs the loss is about."""
        return self.sampling.top_p == 1 and self.sampling.top_k == 0 and self.sampling.temperature > 0

    @property
    def _prompts_at_once(self) -> int:
        rows = self.batch.rollout_micro_batch or self.batch.prompts_per_rollout * self.batch.group_size
        return max(1, rows // self.batch.group_size)

    @property
    def temperature(self) -> float:
        return self.sampling.temperature or 1.0

    def sample(self, rows: Rows, group_size: int, sampling: SamplingParams) -> RolloutBatch:
        """`group_size` completions for each row's prompt."""
        prompts = [self.prompt_tokens(row) for row in rows]
        with self.policy.whole():
            return self.engine.generate(self.policy, prompts, rows, group_size, sampling, rows_at_once=self.batch.rollout_micro_batch)

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        """The token ids of a data row's prompt."""
        ids: list[int] = self.policy.encode(row["prompt"])
        return ids

    def behaviour(self, batch: RolloutBatch, rows: Tensor, own: Float[Tensor, "some time"]) -> Float[Tensor, "some time"]:
        """Log-probs of the distribution that drew these rows' tokens; a method that draws some of them itself puts theirs in.

        Args:
            own: under the policy that sampled.
        """
        return own

    def row_weights(self, mask: Tensor) -> Float[Tensor, "rows"]:
        """Weights of the rows of one optimiser step, counting the rows and tokens of all processes."""
        if self.trainer.world_size == 1:
            return self.aggregation(mask)
        total = self.summed(torch.stack([(mask.sum(1) > 0).sum().float(), mask.sum().float()]))
        return self.aggregation(mask, float(total[0]), float(total[1]))

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        """The tokens that carry loss: all that the policy chose, but for truncated completions if these are filtered."""
        return batch.action_mask & ~batch.truncated[:, None] if self.shaping.mask_truncated else batch.action_mask

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.trainer.world_size == 1:
            return values
        total = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.to(values.device)

    def sampled_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Log-probs under the policy that sampled: the engine's if they are just that, else by a forward pass."""
        given = self.plain_sampling and self.engine.matches(self.policy)
        return batch.behaviour_logprobs if given else all_logprobs(self, batch, reference=False)

    def sequence_kl(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The penalty's estimate of KL(policy || reference), summed over each completion's tokens."""
        return self.token_kl(batch).sum(1)

    def token_kl(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """The penalty's estimate at every token, 0 outside the action mask."""
        return self.kl.estimate(self.sampled_logprobs(batch), self.reference_logprobs(batch)) * batch.action_mask

    def reference_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Log-probs under the reference, computed when first asked for."""
        if batch.reference_logprobs is None:
            batch.reference_logprobs = all_logprobs(self, batch, reference=True)
        return batch.reference_logprobs

    # ---- what is shown ------------------------------------------------------------------------------------------------------

    def metric_name(self, reward: str) -> str:
        """What follows train/ or val/ in the metric of a reward."""
        return f"reward/{reward}"

    # ---- the trainer's other stages -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.batch.check_processes(self.trainer.world_size)
            self.advantage.reduce = self.summed
        check_data(self, stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["generated_tokens"] = self.generated_tokens
        checkpoint["advantage"] = self.advantage.state_dict()
        checkpoint["rewards"] = {reward.name: reward.state_dict() for reward in self.rewards}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.generated_tokens = checkpoint.get("generated_tokens", 0)
        self.advantage.load_state_dict(checkpoint.get("advantage", {}))
        for reward in self.rewards:
            reward.load_state_dict(checkpoint.get("rewards", {}).get(reward.name, {}))

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        self.advantage.end_tokens = [*self.policy.eos_token_ids, self.policy.pad_token_id]
        if self.trainer.is_global_zero:
            print(f"Batch plan: {self.batch.describe(self.trainer.world_size)}")

    def on_validation_epoch_start(self) -> None:
        self.gather_weights()
        self.last_validation = []
        self.thinking_stats, self.problem_counts, self.failure_counts = ThinkingStats.of(self.policy), ProblemCounts(), FailureCounts()

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        self.last_validation.append(evaluate(self, rows, batch_idx, "val"))

    def on_validation_epoch_end(self) -> None:
        self.scatter_weights()
        self.problem_counts.log(self, "val")
        self.failure_counts.log(self, "val")
        if self.thinking_stats is not None:
            self.thinking_stats.log(self, "val")

    def on_test_epoch_start(self) -> None:
        self.gather_weights()
        self.thinking_stats, self.problem_counts, self.failure_counts = ThinkingStats.of(self.policy), ProblemCounts(), FailureCounts()

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        evaluate(self, rows, batch_idx, "test")

    def on_test_epoch_end(self) -> None:
        self.scatter_weights()
        self.problem_counts.log(self, "test")
        self.failure_counts.log(self, "test")
        if self.thinking_stats is not None:
            self.thinking_stats.log(self, "test")

    def on_predict_epoch_start(self) -> None:
        self.gather_weights()

    def on_predict_epoch_end(self) -> None:
        self.scatter_weights()

    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """A record of every sampled completion (rollouts/records.py), with the rewards whose columns the rows have."""
        with isolated_rng("predict", run_seed()):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation.sampling or self.sampling)
            batch.rewards = applicable_scores(self, batch)
            if self.with_reference:
                self.reference_logprobs(batch)
        return completion_records(batch)
