"""The on-policy loop: prompts -> rollouts -> rewards -> advantages -> loss -> update, each step a method to override.

One batch of the trainer is one rollout. Optimisation is manual, so a rollout may serve several optimiser steps. All
randomness of rollout n derives from (seed, n) and the prompts, so a resumed run repeats an uninterrupted one, and two
processes draw the same samples as one. docs/architecture.md has the contract of every hook: when it is called, how
often, and what it may change.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_modules.core.data_checks import check_prompt_count, rows_of
from lightning_modules.core.dynamic_sampling import exactly, refilled
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.failure_counts import FailureCounts
from lightning_modules.core.objective_checks import check_objective
from lightning_modules.core.optimizer_steps import Steps
from lightning_modules.core.overlap import overlapped_rollout
from lightning_modules.core.policy_update import Objective, PolicyUpdate, Sums, ValueTerm
from lightning_modules.core.sampling_module import Rows, SamplingModule
from lightning_modules.core.signal import declares_no_gradient
from lightning_modules.core.telemetry import SHOWN, forget_earlier_steps, rollout_metrics, throughput
from lightning_modules.core.terms import KLPenalty, Shaping
from lightning_modules.core.turn_credit import turn_advantages, turn_returns
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, SequenceMean
from objectives.global_norm import at_last_token, normalised_sum
from objectives.kl import kl_estimate
from objectives.policy_losses import log_ratios
from policies import PolicyParams
from rewards import Reward, correct_rows, total_reward, without_failed
from rollouts import BatchPlan, Engine, Environment, RolloutBatch, SamplingParams
from rollouts.engine import with_copy_numbers
from support.allocator import keep_freed_memory
from support.errors import ConfigError
from support.processes import summed
from support.seeding import isolated_rng, run_seed


class OnPolicyModule(SamplingModule):
    """Base class of methods that learn from their own samples. Subclasses choose the parts and override a few hooks.

    Args:
        policy: the model.
        rewards: rewards of a completion, summed with their weights.
        batch: all batch sizes.
        sampling: sampling settings in training.
        advantage, loss, aggregation: the three parts of the objective.
        kl: penalty for the distance from the reference.
        evaluation: settings of validation, test and prediction.
        engine: the engine that generates; the embedded engine if None.
        environment: what follows each turn of a completion; None for completions of one turn.
        importance_cap: if the engine's log-probs differ from the policy's (another precision, another program), each
            token's loss is multiplied by min(policy / engine, cap): truncated importance sampling. None omits the
            factor.
        optimizer, lr_scheduler: as in every module.
        max_grad_norm: maximum norm of the gradients, which are scaled down to it; None for no clipping.
        shaping: truncated completions, several rewards, entropy bonus.
    """

    #: whether groups whose rewards are all equal have no gradient, so that `batch.refill` may replace them
    zero_variance_groups_have_no_gradient = True
    #: whether `token_loss` has no gradient, apart from the KL penalty's, where a row's advantages are all 0; a class
    #: that overrides `token_loss` declares it anew, else the update computes all rows
    zero_advantage_has_no_gradient = True
    #: whether `rewards` must not be empty, and whether one of them must judge correctness
    needs_rewards, needs_correctness = True, False
    #: whether it has a critic, whose values `objectives.GAE` needs
    has_critic = False

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan,
        sampling: SamplingParams = SamplingParams(),
        advantage: Advantage = GroupNorm(),
        loss: PolicyLoss = ClippedSurrogate(),
        aggregation: Aggregation = SequenceMean(),
        kl: KLPenalty = KLPenalty(),
        evaluation: Evaluation = Evaluation(),
        engine: Engine | None = None,
        environment: Environment | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping = Shaping(),
    ) -> None:
        # Callbacks change parts between rollouts, and defaults are shared by all modules of a class.
        super().__init__(
            policy,
            rewards,
            batch=copy.deepcopy(batch),
            sampling=copy.deepcopy(sampling),
            evaluation=copy.deepcopy(evaluation),
            engine=engine,
            environment=environment,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
        )
        self.automatic_optimization = False
        self.advantage, self.policy_loss, self.aggregation = copy.deepcopy((advantage, loss, aggregation))
        self.kl, self.shaping = copy.deepcopy((kl, shaping))
        self.importance_cap, self.max_grad_norm = importance_cap, max_grad_norm
        check_objective(self)
        self.with_reference = self.kl.coefficient > 0
        #: whether a pass that did not fit into memory has halved `update_token_budget`
        self.update_budget_halved = False
        #: the rows that the latest update learned from, and all that were sampled for them
        self.last_rollout: RolloutBatch | None = None
        self.last_sampled: RolloutBatch | None = None
        #: tokens generated by the training so far, over all processes and resumed parts
        self.generated_tokens = 0
        #: consecutive rollouts so far with an update whose gradient was infinite or NaN, and how many end the training
        self.non_finite_rollouts, self.non_finite_patience = 0, 3
        #: number of steps of the learning-rate scheduler so far, counted without one too
        self.scheduler_steps = 0
        #: number of further prompts that dynamic sampling draws at once, see `refilled`; callbacks may set it
        self.refill_size: Callable[[int, float], int] = exactly

    # ---- the six arrows ----------------------------------------------------------------------------------------------

    def training_step(self, rows: Rows, batch_idx: int) -> None:
        """One rollout and its updates."""
        self.require_hooks("setup", "on_fit_start", *(["on_train_batch_end"] if self.last_rollout is not None else []))
        forget_earlier_steps(self.trainer)
        rows = rows_of(rows, self.rewards, self.rows_checked)
        check_prompt_count(rows, self.batch.prompts_per_rollout, self.trainer.world_size)
        with isolated_rng("rollout", run_seed(), self.rollouts_done):
            started = time.perf_counter()
            with self.whole_weights():
                rows = with_copy_numbers(self.prompts(rows), self.global_rank, self.batch.updates_per_rollout)
                batch = overlapped_rollout(self.rollout, rows, self.rewards, self._prompts_at_once)
                sampled = time.perf_counter()
                batch.rewards = self.score(batch)
                drawn = all_sampled = batch
                metrics: dict[str, float] = {}
                if self.batch.refill:
                    batch, all_sampled, metrics = self.refill(batch)
                    sampled = time.perf_counter()
            metrics |= FailureCounts().add(all_sampled).metrics(self.all_rewards, "this rollout")
            for reward in self.rewards:
                metrics |= reward.metrics(drawn)
                reward.observe(all_sampled)
            self.count_tokens(all_sampled)
            self.observe(batch)
            batch.advantages = self.advantages(batch)
            batch = self.learned_from(batch)
            scored = time.perf_counter()
            metrics |= self.update(batch)
            updated = time.perf_counter()
        self.last_rollout, self.last_sampled = batch, all_sampled
        metrics |= self.metrics(batch) | self.advantage.metrics
        # Here, and not after the callbacks: one of them may save this rollout's state.
        self.non_finite_rollouts = self.non_finite_rollouts + 1 if metrics.get("skipped_updates") else 0
        # Rewards and lengths of all drawn prompts: those of a selection would not be comparable between runs.
        names = {name: self.metric_name(name) for name in drawn.rewards}
        values = rollout_metrics(self.rewards, names, drawn, metrics)
        values |= throughput(drawn, batch, metrics, sampled - started, updated - scored)
        values |= {"train/kl_coefficient": self.kl.coefficient, "train/tokens": float(self.generated_tokens)}
        several = self.trainer.world_size > 1
        for name, value in values.items():
            self.log(name, value, prog_bar=name in SHOWN, batch_size=len(drawn.rows), sync_dist=several)

    def prompts(self, rows: Rows) -> Rows:
        """The data rows to roll out: as many as the loader gave. Called once per rollout."""
        return rows

    def rollout(self, rows: Rows) -> RolloutBatch:
        """Sample completions for some prompts. Called once or more per rollout, each time for a part of the prompts."""
        return self.sample(rows, self.batch.group_size, self.sampling)

    def count_tokens(self, batch: RolloutBatch) -> None:
        """Add the tokens that the policy sampled in a batch to `generated_tokens`, over all processes."""
        self.generated_tokens += int(summed(batch.action_mask.sum()))

    def refill(self, batch: RolloutBatch) -> tuple[RolloutBatch, RolloutBatch, dict[str, float]]:
        """Dynamic sampling: replace groups without signal by groups of further prompts.

        Returns:
            (the batch, everything that was sampled, metrics).
        """
        loader: Any = self.trainer.train_dataloader
        if not hasattr(loader, "spare_rows"):
            raise ConfigError(
                "batch.refill needs a training loader that provides further rows; use datamodules.PromptLoader, which "
                "has `spare_rows`, or set batch.refill to 0."
            )

        def sample(rows: Rows) -> RolloutBatch:
            part = self.rollout(rows)
            part.rewards = self.score(part)
            return part

        budget = self.batch.further_prompts(self.trainer.world_size)
        with isolated_rng("refill", run_seed(), self.global_rank, self.rollouts_done):
            spare = loader.spare_rows(self.rollouts_done)
            return refilled(batch, spare, budget, sample, self.totals, self.refill_size)

    def observe(self, batch: RolloutBatch) -> None:
        """Update the method's state from a scored rollout. Called once, before the advantages.

        The state must be saved in the checkpoint.
        """

    def totals(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The weighted rewards of every completion, after `shaping`. Pure."""
        if self.shaping.normalise_rewards:
            scores = torch.stack([batch.rewards[reward.name] for reward in self.rewards])
            weights = torch.tensor([reward.weight for reward in self.rewards], device=scores.device)
            total = without_failed(normalised_sum(scores, weights, batch.groups), self.rewards, batch.failures)
        else:
            total = total_reward(self.rewards, batch.rewards, batch.failures)
        if self.shaping.truncated_scale < 1:
            total = torch.where(batch.truncated, self.shaping.truncated_scale * total, total)
        return total

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The objective, one number per completion: the weighted rewards, less a KL penalty in the reward. Pure."""
        total = self.totals(batch)
        if self.kl.placement == "reward" and self.kl.coefficient:
            total = total - self.kl.coefficient * self.sequence_kl(batch)
        return total

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        """Advantages from the returns. Pure, except for an advantage's own state (`Advantage.state_dict`)."""
        returns = self.returns(batch)
        if self.kl.placement == "token_reward" and self.kl.coefficient:
            returns = at_last_token(returns, batch.action_mask) - self.kl.coefficient * self.token_kl(batch)
        correct = correct_rows(self.rewards, batch)
        if self.shaping.credit == "turn":
            by_turn = turn_returns(batch, returns, self.rewards)
            return turn_advantages(batch, by_turn, self.advantage, correct)
        return self.advantage.with_correctness(returns, batch.groups, batch.completion_ids, batch.action_mask, correct)

    def learned_from(self, batch: RolloutBatch) -> RolloutBatch:
        """The rows that the update learns from, with advantages: the rollout itself, some of its rows, or more rows.

        Called once per rollout. The result becomes `last_rollout`, which recorders and tables show.
        """
        return batch

    def token_loss(
        self,
        logprobs: Float[Tensor, "rows time"],
        behaviour: Float[Tensor, "rows time"],
        reference: Float[Tensor, "rows time"] | None,
        advantages: Float[Tensor, "rows time"],
        mask: Tensor,
    ) -> tuple[Float[Tensor, "rows time"], Sums]:
        """The loss of every token, and sums over the masked tokens to log. Pure; called once per pass."""
        loss, policy_sums = self.policy_loss(logprobs, behaviour, advantages, mask)
        sums: Sums = dict(policy_sums)
        if reference is not None:
            difference = torch.where(mask, logprobs, reference.detach())
            if self.kl.placement == "loss":
                penalty = self.kl.estimate(difference, reference)
                if self.kl.importance_weighted:
                    penalty = penalty * log_ratios(logprobs, behaviour, mask).exp()
                loss = loss + self.kl.coefficient * penalty
            sums["kl"] = (kl_estimate(difference.detach(), reference, "k3") * mask).sum()
        return loss, sums

    def auxiliary_loss(self, batch: RolloutBatch, part: slice) -> Tensor | None:
        """A loss in addition to the policy's, once per optimiser step; None by default.

        Args:
            batch: the rows that the update learns from.
            part: the rows of this optimiser step.
        """
        return None

    def value_term(self) -> ValueTerm | None:
        """The part of the update that trains a critic; None without a critic. Called once per rollout."""
        return None

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        """Run the optimiser steps of one rollout. Returns the loss's metrics, as means over the tokens."""
        engine_matches = self.plain_sampling and self.engine.matches(self.policy)
        corrects = self.importance_cap is not None and self.plain_sampling and not engine_matches
        term = self.value_term()
        update = PolicyUpdate(
            batch,
            self.loss_mask(batch),
            policy=self.policy,
            plan=self.batch,
            objective=Objective(
                self.token_loss,
                self.behaviour,
                self.auxiliary_loss,
                self.aggregation,
                self.temperature,
                self.shaping.entropy_bonus,
                self.importance_cap if corrects else None,
                self.needs_all_rows or term is not None,  # critics learn from every row
                term,
            ),
            steps=Steps(
                self.optimizers(),
                self.lr_schedulers(),
                self.manual_backward,
                self.max_grad_norm,
                term is not None and term.policy_frozen,
            ),
            sampled_logprobs=self.sampled_logprobs(batch) if self.batch.updates > 1 else None,
            reference_logprobs=self.reference_logprobs(batch) if self.kl.coefficient else None,
            token_budget=self.update_token_budget,
            may_halve=not self.update_budget_halved,
        )
        metrics = update.run()
        self.scheduler_steps += update.steps.scheduler_steps
        self.update_token_budget, self.update_budget_halved = update.token_budget, not update.may_halve
        return metrics

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        """The method's own metrics of a rollout, logged under train/. Pure; called once, after the update.

        Args:
            batch: the rows that the update learned from.
        """
        return {}

    # ---- parts of the arrows -----------------------------------------------------------------------------------------

    @property
    def needs_all_rows(self) -> bool:
        """Whether the update must compute rows whose advantages are all 0: for a term that acts on them, or `kl_stop`.

        `auxiliary_loss` computes its own rows.
        """
        terms = self.kl.coefficient or self.shaping.entropy_bonus or self.batch.kl_stop is not None
        declared = declares_no_gradient(self, "token_loss") and declares_no_gradient(self.policy_loss, "__call__")
        return bool(terms) or not declared

    @property
    def rollouts_done(self) -> int:
        """Number of rollouts before this one over the whole training, including the part before a resume."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    @property
    def _prompts_at_once(self) -> int:
        rows = self.batch.rollout_micro_batch or self.batch.prompts_per_rollout * self.batch.group_size
        return max(1, rows // self.batch.group_size)

    def behaviour(
        self, batch: RolloutBatch, rows: Tensor, sampled: Float[Tensor, "some time"]
    ) -> Float[Tensor, "some time"]:
        """Log-probs of the distribution that drew these rows' tokens, for importance ratios. Pure; once per pass.

        Args:
            rows: indices into the batch.
            sampled: log-probs under the policy that sampled, cut to the length of the longest of these rows.
        """
        return sampled

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        """The tokens that carry loss: all that the policy sampled, without truncated completions if these are masked.

        Pure: a random mask must be the same at every call within a rollout.
        """
        return batch.action_mask & ~batch.truncated[:, None] if self.shaping.mask_truncated else batch.action_mask

    def sequence_kl(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The penalty's estimate of KL(policy || reference), summed over each completion's tokens."""
        return self.token_kl(batch).sum(1)

    def token_kl(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """The penalty's estimate at every token, 0 outside the action mask."""
        return self.kl.estimate(self.sampled_logprobs(batch), self.reference_logprobs(batch)) * batch.action_mask

    # ---- the trainer's stages ----------------------------------------------------------------------------------------

    def scheduler_steps_so_far(self) -> int:
        return self.scheduler_steps

    def setup(self, stage: str) -> None:
        self.hooks_run.add("setup")
        if stage == "fit":
            self.batch.check_processes(self.trainer.world_size)
        super().setup(stage)

    def on_fit_start(self) -> None:
        self.hooks_run.add("on_fit_start")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.advantage.prepare(summed, [*self.policy.eos_token_ids, self.policy.pad_token_id])
        if self.trainer.is_global_zero:
            print(f"Batch plan: {self.batch.describe(self.trainer.world_size)}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Warn about gradients that are infinite or NaN, and end a training that repeats them.

        Such updates are skipped and do not count as steps, so `max_steps` would never be reached.

        Raises:
            ConfigError: after `non_finite_patience` consecutive rollouts.
        """
        self.hooks_run.add("on_train_batch_end")
        if self.non_finite_rollouts == 1:
            rank_zero_warn(
                "the gradient of this rollout was infinite or NaN, so its update was skipped. callbacks."
                "NonFiniteGradients saves such rollouts."
            )
        if self.non_finite_rollouts >= self.non_finite_patience:
            raise ConfigError(
                f"the gradient was infinite or NaN in {self.non_finite_rollouts} consecutive rollouts. Lower the "
                "learning rate, set model.max_grad_norm, or look for extreme rewards or log-probs: callbacks."
                "NonFiniteGradients saves these rollouts. Then continue from the last checkpoint with --ckpt_path."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["non_finite_rollouts"] = self.non_finite_rollouts
        checkpoint["generated_tokens"] = self.generated_tokens
        checkpoint["scheduler_steps"] = self.scheduler_steps
        checkpoint["advantage"] = self.advantage.state_dict()
        checkpoint["rewards"] = {reward.name: reward.state_dict() for reward in self.rewards}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.non_finite_rollouts = checkpoint.get("non_finite_rollouts", 0)
        self.generated_tokens = checkpoint.get("generated_tokens", 0)
        self.scheduler_steps = checkpoint.get("scheduler_steps", 0)
        self.advantage.load_state_dict(checkpoint.get("advantage", {}))
        states = checkpoint.get("rewards", {})
        for reward in self.rewards:
            reward.load_state_dict(states.get(reward.name, {}))
        names = {reward.name for reward in self.rewards}
        if dropped := [name for name, state in states.items() if state and name not in names]:
            rank_zero_warn(
                f"the checkpoint holds the state of {dropped}, rewards that this run does not have; it is dropped. A "
                "reward keeps its state by its name: set `name` where it was renamed."
            )
