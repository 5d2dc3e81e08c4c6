"""The six arrows: prompts -> rollouts -> rewards -> advantages -> loss -> update, each a method to override.

One batch of the trainer is one rollout. Optimisation is manual, so a rollout may serve several optimiser steps; everything random
in rollout n derives from (seed, rank, n), so a resumed run repeats an uninterrupted one.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.base import PosttrainModule, adamw
from lightning_modules.evaluation import Evaluation, evaluate
from lightning_modules.overlap import overlapped_rollout
from lightning_modules.telemetry import log_rollout
from lightning_modules.thinking_stats import ThinkingStats
from lightning_modules.updates import micro_batches, update_slices
from objectives import Advantage, Aggregation, PolicyLoss
from objectives.kl import Estimator, kl_estimate
from policies import PolicyParams
from rewards import Reward, total_reward
from rollouts import BatchPlan, EmbeddedEngine, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.memory import keep_freed_memory
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]


@dataclass
class KLPenalty:
    """How the policy is held near its reference.

    Args:
        coefficient: beta; 0 needs no reference. A callback may change it between rollouts.
        estimator: k1, k2 or k3.
        placement: a term of every token's loss, or a deduction from every completion's reward (summed over its tokens).
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    placement: Literal["loss", "reward"] = "loss"

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ConfigError(f"kl.coefficient is {self.coefficient}; it must be 0 or above.")
        if self.placement == "loss" and self.estimator == "k1" and self.coefficient:
            raise ConfigError("kl.estimator k1 in the loss has zero expected gradient; choose k2 or k3, or kl.placement: reward.")


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
    """

    batch: BatchPlan
    kl: KLPenalty

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
        self.automatic_optimization = False
        self.batch, self.sampling, self.rewards, self.kl = batch, sampling, rewards, kl
        self.advantage, self.policy_loss, self.aggregation = advantage, loss, aggregation
        self.evaluation = evaluation or Evaluation()
        if importance_cap is not None and importance_cap < 1:
            raise ConfigError(f"importance_cap is {importance_cap}; it must be 1 or above, or null for none.")
        self.max_grad_norm, self.importance_cap = max_grad_norm, importance_cap
        self.with_reference = kl.coefficient > 0
        self.engine = engine or EmbeddedEngine()
        self.last_rollout: RolloutBatch | None = None
        self.last_validation: list[RolloutBatch] = []
        self.thinking_stats: ThinkingStats | None = None

    # ---- the six arrows -----------------------------------------------------------------------------------------------------

    def training_step(self, rows: Rows, batch_idx: int) -> None:
        """One rollout and its updates."""
        with isolated_rng("rollout", run_seed(), self.global_rank, self.rollouts_done):
            started = time.perf_counter()
            batch = overlapped_rollout(self.rollout, rows, self.rewards, self._prompts_at_once)
            sampled = time.perf_counter()
            batch.rewards = self.score(batch)
            batch.advantages = self.advantages(batch)
            scored = time.perf_counter()
            metrics = self.update(batch)
            seconds = (sampled - started, time.perf_counter() - scored)
        self.last_rollout = batch
        log_rollout(self, batch, metrics, *seconds)

    def rollout(self, rows: Rows) -> RolloutBatch:
        """Prompts to completions."""
        return self.sample(rows, self.batch.group_size, self.sampling)

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        """Completions to rewards, by name."""
        return {reward.name: batch.rewards[reward.name] if reward.name in batch.rewards else reward(batch) for reward in self.rewards}

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The one number a completion that is maximised: the weighted rewards, less the KL penalty if it is placed there."""
        total = total_reward(self.rewards, batch.rewards)
        if self.kl.placement == "reward" and self.kl.coefficient:
            total = total - self.kl.coefficient * self.sequence_kl(batch)
        return total

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        """Returns to advantages."""
        return self.advantage(self.returns(batch), batch.groups, batch.completion_ids, batch.action_mask)

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
                loss = loss + self.kl.coefficient * kl_estimate(difference, reference, self.kl.estimator)
            sums["kl"] = (kl_estimate(difference.detach(), reference, "k3") * mask).sum()
        return loss, sums

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        """The optimiser steps of one rollout. Returns means over the tokens of what the loss reports."""
        assert batch.advantages is not None
        advantages = batch.advantages if batch.advantages.dim() == 2 else batch.advantages[:, None].expand(batch.completion_ids.shape)
        reference = self._reference(batch) if self.kl.coefficient else None
        # With one update the policy is still the one that sampled, and its own log-probs give a ratio of exactly one.
        behaviour = self.sampled_logprobs(batch) if self.batch.updates_per_rollout > 1 else None
        correct = self.importance_cap is not None and self._plain_sampling and not self.engine.matches(self.policy)
        sums: dict[str, Tensor] = {}
        norms: list[float] = []
        optimizer = self.optimizers()
        for part in update_slices(batch, self.batch.updates_per_rollout):
            weights = self.row_weights(batch.action_mask[part])
            for micro in micro_batches(batch, part, self.batch.update_token_budget, self.trainer):
                rows, width = micro.rows, micro.width
                mask = batch.action_mask[rows, :width] & micro.counted[:, None]
                logprobs, entropy = self.policy.logprobs(batch.prompt_groups(rows), self._temperature)
                old = self.behaviour(batch, rows, logprobs.detach() if behaviour is None else behaviour[rows, :width])
                given = None if reference is None else reference[rows, :width]
                loss, found = self.token_loss(logprobs, old, given, advantages[rows, :width], mask)
                if correct:
                    importance = (old - batch.behaviour_logprobs[rows, :width]).exp().clamp(max=self.importance_cap)
                    loss, found["importance"] = loss * torch.where(mask, importance, 0.0), (importance * mask).sum()
                found["entropy"] = (entropy * mask).sum()
                found["behaviour_gap"] = ((logprobs.detach() - batch.behaviour_logprobs[rows, :width]).abs() * mask).sum()
                found["loss"] = (torch.where(mask, loss, 0.0) * weights[rows - part.start, None]).sum()
                # The ranks' gradients are averaged, the row weights already count all ranks' rows.
                self.manual_backward(found["loss"] * self.trainer.world_size)
                for name, value in found.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach()
            norms.append(self._step(optimizer))
        loss_sum = sums.pop("loss")
        tokens = batch.action_mask.sum().clamp(min=1)
        means = {name: float(value / tokens) for name, value in sums.items()}
        return means | {
            "loss": float(loss_sum) * self.trainer.world_size / self.batch.updates_per_rollout,
            "grad_norm": sum(norms) / len(norms),
        }

    # ---- parts of the arrows ------------------------------------------------------------------------------------------------

    @property
    def rollouts_done(self) -> int:
        """Rollouts before this one, over the whole training, resumed parts included."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    @property
    def _plain_sampling(self) -> bool:
        """Whether completions are drawn from the distribution whose log-probs the loss is about."""
        return self.sampling.top_p == 1 and self.sampling.top_k == 0 and self.sampling.temperature > 0

    @property
    def _prompts_at_once(self) -> int:
        rows = self.batch.rollout_micro_batch or self.batch.prompts_per_rollout * self.batch.group_size
        return max(1, rows // self.batch.group_size)

    @property
    def _temperature(self) -> float:
        return self.sampling.temperature or 1.0

    def sample(self, rows: Rows, group_size: int, sampling: SamplingParams) -> RolloutBatch:
        """`group_size` completions for each row's prompt."""
        prompts = [self.prompt_tokens(row) for row in rows]
        return self.engine.generate(self.policy, prompts, rows, group_size, sampling, rows_at_once=self.batch.rollout_micro_batch)

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        """The token ids of a data row's prompt."""
        return self.policy.encode(row["prompt"])

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
        own = torch.stack([(mask.sum(1) > 0).sum().float(), mask.sum().float()])
        total = self.trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(total, Tensor)
        return self.aggregation(mask, float(total[0]), float(total[1]))

    def sampled_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Log-probs under the policy that sampled: the engine's if they are just that, else by a forward pass."""
        given = self._plain_sampling and self.engine.matches(self.policy)
        return batch.behaviour_logprobs if given else self._forward_all(batch, reference=False)

    def sequence_kl(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The penalty's estimate of KL(policy || reference), summed over each completion's tokens."""
        return (kl_estimate(self.sampled_logprobs(batch), self._reference(batch), self.kl.estimator) * batch.action_mask).sum(1)

    def _reference(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        if batch.reference_logprobs is None:
            batch.reference_logprobs = self._forward_all(batch, reference=True)
        return batch.reference_logprobs

    @torch.no_grad()
    def _forward_all(self, batch: RolloutBatch, reference: bool) -> Float[Tensor, "rows time"]:
        """Log-probs of every completion token under the policy or the reference; 0 outside the action mask."""
        values = torch.zeros(batch.completion_ids.shape, device=self.device)
        for micro in micro_batches(batch, slice(0, len(values)), self.batch.update_token_budget, None):
            rows, width = micro.rows, micro.width
            groups, temperature = batch.prompt_groups(rows), self._temperature
            values[rows, :width] = (
                self.policy.reference_logprobs(groups, temperature) if reference else self.policy.logprobs(groups, temperature)[0]
            )
        return values.masked_fill(~batch.action_mask, 0.0)

    def _step(self, optimizer: Any) -> float:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters])) if parameters else 0.0
        if self.max_grad_norm is not None:
            self.clip_gradients(optimizer, self.max_grad_norm, "norm")
        optimizer.step()
        optimizer.zero_grad()
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()  # type: ignore[union-attr,call-arg]
        return norm

    # ---- what is shown ------------------------------------------------------------------------------------------------------

    def metric_name(self, reward: str) -> str:
        """What follows train/ or val/ in the metric of a reward."""
        return f"reward/{reward}"

    # ---- the trainer's other stages -----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.batch.check_processes(self.trainer.world_size)
        data = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "rows"):
            used = {"fit": ("train", "val", "safety"), "validate": ("val",), "test": ("test", "safety"), "predict": ("val",)}[stage]
            splits = {split: data.rows(split) for split in used}
            for row in [row for split, rows in splits.items() if split != "safety" and stage != "predict" for row in rows]:
                for reward in self.rewards:
                    reward.check_columns(row)
            self._check_lengths(splits)

    def _check_lengths(self, splits: dict[str, Rows]) -> None:
        """Refuse prompts that leave no room for a completion, before anything is sampled."""
        self.configure_model()
        context = self.policy.context
        if context is None:
            return
        room = context - self.sampling.max_new_tokens
        for split, rows in splits.items():
            for row in rows:
                # A token has at least one byte, so most prompts need not be encoded to know that they fit.
                if len(str(row["prompt"]).encode()) + 256 > room and (length := len(self.prompt_tokens(row))) > room:
                    raise ConfigError(
                        f"prompt {row.get('id')!r} of the {split} split has {length} tokens; with sampling.max_new_tokens={self.sampling.max_new_tokens} it exceeds the "
                        f"model's context of {context} tokens. Drop or shorten it, or lower sampling.max_new_tokens."
                    )

    def on_fit_start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.trainer.is_global_zero:
            print(f"Batch plan: {self.batch.describe(self.trainer.world_size)}")

    def on_validation_epoch_start(self) -> None:
        self.last_validation = []
        self.thinking_stats = ThinkingStats.of(self.policy)

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        self.last_validation.append(evaluate(self, rows, batch_idx, "val"))

    def on_validation_epoch_end(self) -> None:
        if self.thinking_stats is not None:
            self.thinking_stats.log(self, "val")

    def on_test_epoch_start(self) -> None:
        self.thinking_stats = ThinkingStats.of(self.policy)

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        evaluate(self, rows, batch_idx, "test")

    def on_test_epoch_end(self) -> None:
        if self.thinking_stats is not None:
            self.thinking_stats.log(self, "test")

    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """Prompts with their sampled completions."""
        with isolated_rng("predict", run_seed(), self.global_rank, batch_idx):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation.sampling or self.sampling)
        return [
            {"id": i, "prompt": prompt, "completion": text}
            for i, prompt, text in zip(batch.column("id"), batch.column("prompt"), batch.completions, strict=True)
        ]
