"""The base class of modules that sample and score completions: validation, test and prediction of every method."""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.core.data_checks import (
    check_columns,
    check_golds,
    check_prompts,
    data_splits,
    has_columns,
    rows_of,
)
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.failure_counts import FailureCounts
from lightning_modules.core.loader_metrics import loader_means, loader_pass_rates
from lightning_modules.core.micro_batches import batch_logprobs
from lightning_modules.core.part_types import check_part
from lightning_modules.core.posttrain_module import PosttrainModule
from lightning_modules.core.problem_counts import ProblemCounts
from lightning_modules.core.thinking_stats import ThinkingStats
from policies import PolicyParams
from policies.config_checks import context_of
from rewards import Reward, as_reward, total_reward
from rollouts import (
    BatchPlan,
    EmbeddedEngine,
    Engine,
    Environment,
    RolloutBatch,
    SamplingParams,
    completion_records,
    overridden,
)
from rollouts.environment import add_template_arguments
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]


class SamplingModule(PosttrainModule):
    """Samples completions and scores them.

    Args:
        policy: the model.
        rewards: rewards of a completion; a plain function becomes a `rewards.FunctionReward`.
        batch: sizes of a rollout; this class uses `rollout_micro_batch` only.
        sampling: sampling settings in training.
        evaluation: settings of validation, test and prediction.
        engine: the engine that generates; the embedded engine if None.
        environment: what follows each turn of a completion; None for completions of one turn.
        optimizer, lr_scheduler: as in every module.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan,
        sampling: SamplingParams,
        evaluation: Evaluation,
        engine: Engine | None,
        environment: Environment | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, lr_scheduler=lr_scheduler)
        check_part(self, "batch", batch, BatchPlan, "BatchPlan(prompts_per_rollout=16, group_size=8)")
        check_part(self, "sampling", sampling, SamplingParams, "SamplingParams(max_new_tokens=512)")
        check_part(self, "evaluation", evaluation, Evaluation, "Evaluation(samples=4)")
        if engine is not None:
            check_part(self, "engine", engine, Engine, "EmbeddedEngine()")
        if environment is not None:
            check_part(self, "environment", environment, Environment, "ToolEnvironment(tools=[search])")
        rewards = [as_reward(reward) for reward in rewards]
        names = [reward.name for reward in rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"two rewards share a name among {names}; give each a different name in model.rewards.")
        self.rewards: list[Reward] = rewards
        self.batch, self.sampling, self.evaluation = batch, sampling, evaluation
        overridden(sampling, evaluation.sampling)  # raises for values out of range now, not at the first validation
        self.engine, self.environment = engine or EmbeddedEngine(), environment
        #: maximum number of tokens per forward pass over a rollout
        self.update_token_budget = batch.update_token_budget
        #: batches of the latest validation
        self.last_validation: list[RolloutBatch] = []
        #: whether the data module's rows were checked; rows of a plain loader are checked batch by batch
        self.rows_checked = False
        self.thinking_stats: ThinkingStats | None = None
        #: counts of correct samples by the number of the evaluation loader
        self.problem_counts: dict[int, ProblemCounts] = {}
        self.failure_counts = FailureCounts()
        #: values of the current evaluation's rows by loader and metric; NaN does not apply
        self.row_values: defaultdict[tuple[int, str], list[Tensor]] = defaultdict(list)

    # ---- prompts to scored completions -------------------------------------------------------------------------------

    @property
    def all_rewards(self) -> list[Reward]:
        """All rewards that score a completion, optimised or not."""
        return self.rewards

    def correctness_reward(self) -> Reward | None:
        """The first reward that judges correctness."""
        return next((reward for reward in self.rewards if reward.is_correctness), None)

    @property
    def evaluation_sampling(self) -> SamplingParams:
        """Sampling settings of validation, test and prediction."""
        return overridden(self.sampling, self.evaluation.sampling)

    @property
    def evaluation_seed(self) -> int:
        """Seed of the samples of validation, test and prediction."""
        return run_seed() if self.evaluation.seed is None else self.evaluation.seed

    @property
    def temperature(self) -> float:
        """Divisor of the logits in sampling and log-probs; 1 for greedy sampling."""
        return self.sampling.temperature or 1.0

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        """The token ids of a data row's prompt."""
        ids: list[int] = self.policy.encode(row["prompt"])
        return ids

    def sample(
        self, rows: Rows, group_size: int, sampling: SamplingParams, forced: list[list[int]] | None = None
    ) -> RolloutBatch:
        """`group_size` completions of each row's prompt, prompt-major.

        Args:
            forced: fixed first tokens of every completion, which are not sampled; lists may be empty.
        """
        prompts, at_once = [self.prompt_tokens(row) for row in rows], self.batch.rollout_micro_batch
        with self.policy.whole():
            self.policy.check(prompts)
            talks = () if self.environment is None else (self.environment,)  # a user's engine may know one turn only
            batch = self.engine.generate(self.policy, prompts, rows, group_size, sampling, forced, at_once, *talks)
        if bool(batch.behaviour_logprobs.isnan().any()):
            logprobs = batch_logprobs(self.policy, batch, sampling.temperature or 1.0, self.update_token_budget)
            batch.behaviour_logprobs = logprobs.masked_fill(~batch.action_mask, 0.0)
        return batch

    @property
    def plain_sampling(self) -> bool:
        """Whether completions are sampled from the distribution whose log-probs the loss uses."""
        return self.sampling.top_p == 1 and self.sampling.top_k == 0 and self.sampling.temperature > 0

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        """Rewards by name, in the order of the list: each reward finds those before it in `batch.rewards`."""
        for reward in self.rewards:
            if reward.name not in batch.rewards:
                batch.rewards[reward.name] = reward(batch)
        return {reward.name: batch.rewards[reward.name] for reward in self.rewards}

    def sampled_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Log-probs under the policy that sampled: the engine's if they match the policy's, else by a forward pass."""
        # For tokens that the method drew itself, the batch has log-probs under the method's own distribution.
        if self.plain_sampling and self.engine.matches(self.policy) and batch.own_first is None:
            return batch.behaviour_logprobs
        return batch_logprobs(self.policy, batch, self.temperature, self.update_token_budget)

    def reference_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Log-probs under the reference, computed at the first call for a batch."""
        if batch.reference_logprobs is None:
            batch.reference_logprobs = batch_logprobs(
                self.policy, batch, self.temperature, self.update_token_budget, reference=True
            )
        return batch.reference_logprobs

    def metric_name(self, reward: str) -> str:
        """The metric of a reward, behind train/ or val/."""
        return f"reward/{reward}"

    # ---- evaluation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, rows: Rows, stage: str, loader: int = 0) -> RolloutBatch:
        """Sample, score and log one batch.

        Samples depend on `evaluation.seed` and the prompt only, so evaluations are comparable.

        Args:
            loader: number of the loader that the batch comes from.
        """
        rows = rows_of(rows, self.rewards, self.rows_checked)
        with isolated_rng(stage, self.evaluation_seed):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation_sampling)
            batch.rewards = self.score(batch)
        self.failure_counts.add(batch)
        values = {self.metric_name(name): scores for name, scores in batch.rewards.items()}
        if self.rewards:
            values["reward"] = total_reward(self.rewards, batch.rewards, batch.failures)
        values |= {} if batch.turns is None else batch.turns.metrics(batch.completion_mask)
        for name, of_rows in (values | {"length": batch.lengths, "truncated": batch.truncated}).items():
            self.row_values[loader, name].append(of_rows)
        judge = self.correctness_reward()
        grades = None if judge is None else judge.unscaled(batch.rewards[judge.name], batch)
        if self.thinking_stats is not None:
            correct = None if grades is None else torch.where(grades.isnan(), torch.nan, (grades >= 1).float())
            self.thinking_stats.add(batch, correct)
        if grades is not None:
            judged = ~grades.isnan().view(len(rows), -1).any(1)
            judged_rows = [row for row, is_judged in zip(rows, judged.tolist(), strict=True) if is_judged]
            self.problem_counts.setdefault(loader, ProblemCounts()).add(
                judged_rows, (grades >= 1).view(len(rows), -1)[judged]
            )
        return batch

    def begin_evaluation(self) -> None:
        """Gather the weights and reset the counts of a validation or test."""
        self.gather_weights()
        self.thinking_stats = ThinkingStats.of(self.policy)
        self.problem_counts, self.failure_counts = {}, FailureCounts()
        self.row_values.clear()

    def end_evaluation(self, stage: str) -> None:
        """Log the counts under `stage`/."""
        self.scatter_weights()
        where = {"val": "the validation", "test": "the test"}[stage]
        # Lightning's own means over processes round the number of rows down where it is odd.
        metrics = loader_means(self.row_values)
        metrics |= loader_pass_rates(
            self.problem_counts, self.evaluation.pass_ks, self.evaluation.with_intervals(stage)
        )
        metrics |= self.failure_counts.metrics(self.all_rewards, where)
        if self.thinking_stats is not None:
            metrics |= self.thinking_stats.metrics()
        for name, value in metrics.items():
            # Already equal on all processes, but Lightning warns about metrics that are not synchronised.
            self.log(f"{stage}/{name}", value, prog_bar=name == "pass@1", sync_dist=True, add_dataloader_idx=False)

    def on_validation_epoch_start(self) -> None:
        self.begin_evaluation()
        self.last_validation = []

    def validation_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.last_validation.append(self.evaluate(rows, "val", dataloader_idx))

    def on_validation_epoch_end(self) -> None:
        self.end_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.begin_evaluation()

    def test_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(rows, "test", dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self.end_evaluation("test")

    def on_predict_epoch_start(self) -> None:
        self.gather_weights()

    def on_predict_epoch_end(self) -> None:
        self.scatter_weights()

    def predict_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """A record of every sampled completion (rollouts/completion_records.py).

        Prompts to predict need no answers: rewards that read a missing column are skipped.
        """
        rows = rows_of(rows, [], self.rows_checked)
        with isolated_rng("predict", self.evaluation_seed):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation_sampling)
            applicable = [reward for reward in self.rewards if has_columns(reward, rows)]
            if len(applicable) == len(self.rewards):
                batch.rewards = self.score(batch)
            else:
                batch.rewards = {reward.name: reward(batch) for reward in applicable}
            if self.with_reference:
                self.reference_logprobs(batch)
        return completion_records(batch)

    def configure_model(self) -> None:
        is_new = getattr(self, "policy", None) is None
        super().configure_model()
        if is_new and self.environment is not None:
            add_template_arguments(self.policy.tokenizer, self.environment)

    # ---- start of a stage --------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        splits = data_splits(self.trainer, stage)
        self.rows_checked = bool(splits)
        if stage != "predict":
            check_columns(splits, self.rewards)
            check_golds(splits, self.rewards)
        if splits:
            self.configure_model()
            context = context_of(self.policy.bare.config)
            check_prompts(splits, context, self.sampling.max_new_tokens, self.prompt_tokens)
