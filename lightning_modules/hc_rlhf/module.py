"""HC-RLHF: maximise helpfulness under a constraint on the cost that holds with high confidence, or return no policy.

Chittepu et al., 2025 (arXiv 2506.08266). Given a threshold tau and a failure probability delta:
1. reward and cost models from preference pairs (the policy starts from supervised fine-tuning);
2. candidate selection: maximise reward - lambda * (mu + kappa * sigma - tau), a pessimistic constraint, by REINFORCE
   with a leave-one-out baseline, while log lambda ascends lambda * (mu + kappa * sigma - tau);
3. safety test on held-out prompts: SAFE iff the upper confidence bound of the mean cost is at most tau.

    python main.py fit --config configs/hc_rlhf.yaml
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.terms import KLPenalty
from lightning_modules.hc_rlhf.safety_phase import SafetyTestPhase, cost_problem
from lightning_modules.hc_rlhf.safety_test import SafetyTest, Verdict
from lightning_modules.hc_rlhf.score_models import ScoreModels
from lightning_modules.hc_rlhf.scorer_training import ScorerTraining
from lightning_modules.hc_rlhf.settings import Constraint, SupervisedTerm
from objectives import Advantage, Aggregation, Bound, LeaveOneOut, PolicyLoss, Reinforce, SequenceSum
from objectives.constraint import CostWindow, DualVariable, augmented_cost, inflation, pessimistic_bound
from policies import PolicyParams
from policies.supervised import response_loss
from rewards import Reward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Paper
from support.processes import gathered
from support.seeding import derive_seed, run_seed


@dataclass
class Pessimism:
    """The pessimistic constraint of one rollout.

    Fields:
        mean, std: mean and standard deviation of the costs in the window, which includes this rollout.
        kappa: inflation of the deviation.
        multiplier: lambda before this rollout's step.
        bound: U+, which must not exceed the threshold; mean + kappa * std with Student's t.
    """

    mean: float
    std: float
    kappa: float
    multiplier: float
    bound: float


class HCRLHF(SafetyTestPhase):
    """High-confidence safe RLHF; the defaults are the paper's and its official code's.

    The data module provides the prompts, a `safety` split, and preference pairs if models have to be trained. The
    module overrides `score`, `observe`, `returns`, `auxiliary_loss` and `metrics` for the candidate selection, and the
    trainer's hooks for the phases around it: models before training, the safety test at its end, the constraint's
    state in checkpoints.

    Args:
        policy: the supervised fine-tuned model, also the reference.
        rewards: rewards to use instead of a reward model.
        constraint: threshold, confidence, pessimism.
        reward_model, cost_model: folders of trained models; None trains them on the data module's preference pairs.
        scorers: settings of their training.
        cost: a reward to use instead of a cost model, for example a rule or a served classifier.
        monitors: rewards that are logged and never optimised, for example the true cost where a rule can compute it.
        bound: confidence bound of the safety test and of the pessimism. None, the default, is betting
            (objectives.Betting) over the cost's range where it has one, as under cost_scale probability and unsafe, and
            otherwise Student's t, the paper's (objectives.StudentT). The verdict shows the paper's beside it.
        test: allowance, stopping early, ledger, export; `skip` for a baseline without a test.
        supervised: a supervised loss in addition to the policy's, on the data module's demonstrations.
        batch: 64 prompts per rollout, 2 completions per prompt, one update.
        sampling: up to 512 tokens.
        advantage, loss, aggregation: leave-one-out, REINFORCE, sums over tokens. GRPO's clipped objective instead:
            loss: objectives.ClippedSurrogate, aggregation: objectives.SequenceMean.
        kl: 0.1 on k1 in the reward.
        optimizer: AdamW at 5e-6, betas 0.9 and 0.95, weight decay 0.01. The official code's cosine with 3 % warm-up
            needs the number of steps; set it in `lr_scheduler`.
        max_grad_norm: 5.
        reward_clip: returns are clipped to plus and minus this number before the cost is subtracted.
        kwargs: as in OnPolicyModule.
    """

    zero_variance_groups_have_no_gradient = False
    needs_rewards = False  # a reward model may be trained before the policy

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward] = [],
        *,
        constraint: Constraint = Constraint(),
        reward_model: str | None = None,
        cost_model: str | None = None,
        scorers: ScorerTraining = ScorerTraining(),
        cost: Reward | None = None,
        monitors: list[Reward] = [],
        bound: Bound | None = None,
        test: SafetyTest = SafetyTest(),
        supervised: SupervisedTerm | None = None,
        batch: BatchPlan = BatchPlan(prompts_per_rollout=64, group_size=2),
        sampling: SamplingParams = SamplingParams(max_new_tokens=512),
        advantage: Advantage = LeaveOneOut(),
        loss: PolicyLoss = Reinforce(),
        aggregation: Aggregation = SequenceSum(),
        kl: KLPenalty = KLPenalty(coefficient=0.1, estimator="k1", placement="reward"),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-6, betas=(0.9, 0.95), weight_decay=0.01),
        max_grad_norm: float | None = 5.0,
        reward_clip: float = 50.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            advantage=advantage,
            loss=loss,
            aggregation=aggregation,
            kl=kl,
            optimizer=optimizer,
            max_grad_norm=max_grad_norm,
            **kwargs,
        )
        if reward_clip <= 0:
            raise ConfigError(
                f"reward_clip is {reward_clip}, but returns are clipped to plus and minus this number; set "
                "model.reward_clip above 0."
            )
        constraint, bound, test, supervised = copy.deepcopy((constraint, bound, test, supervised))
        self.constraint, self.test_params = constraint, test
        self.models = ScoreModels(
            reward_model, cost_model, list(rewards), cost, copy.deepcopy(scorers), self.constraint.cost_scale
        )
        self.bound = test.bound_for(bound, self.models.cost_range)
        if cost is not None and cost.max_failure_rate is not None:
            raise ConfigError(
                f"model.cost is {type(cost).__name__}, which may fail to score a response, but the constraint and the "
                "safety test need the cost of every response. Set model.cost to a reward that cannot fail."
            )
        self.monitors, self.supervised, self.reward_clip = list(monitors), supervised, reward_clip
        self.window = CostWindow(self.constraint.window)
        options = self.constraint
        self.dual = DualVariable(
            options.lambda_init, options.lambda_lr, options.lambda_max, options.lambda_delay, options.lambda_update
        )
        self.cost: Reward | None = None
        #: the constraint of the current rollout, set by `observe`
        self.pessimism = Pessimism(0.0, 0.0, 0.0, self.dual.value, 0.0)
        self.supervised_loss = 0.0
        #: reward, cost and monitors of the first and the latest validation
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.verdict: Verdict | None = None

    @property
    def all_rewards(self) -> list[Reward]:
        return [*self.rewards, *self.monitors]

    # ---- phases 1 to 3: the models -----------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Train missing models, on one process."""
        self.check_unseen()
        self.models.train_missing(self.policy_params, self._data(), self.trainer)

    def setup(self, stage: str) -> None:
        if self.cost is None:
            self.rewards, self.cost = self.models.load(self.policy_params, self._data(), self.trainer)
        super().setup(stage)
        self.safety_size = len(self._data().rows("safety"))
        self.test_params.check_export()
        if (
            stage == "fit"
            and self.supervised is not None
            and len(self._data().rows("demonstration")) < self.supervised.batch_size
        ):
            raise ConfigError(
                f"model.supervised asks for {self.supervised.batch_size} demonstrations per step, and the data module "
                f"has {len(self._data().rows('demonstration'))}; set data.demonstrations, or remove model.supervised."
            )
        if stage == "fit" and not self.test_params.skip and self.trainer.is_global_zero:
            self.warn_if_spent()
            self.warn_if_unidentified()

    # ---- phase 4: candidate selection --------------------------------------------------------------------------------

    def score(self, batch: RolloutBatch) -> dict[str, Tensor]:
        assert self.cost is not None
        monitors = {monitor.name: monitor(batch) for monitor in self.monitors}
        return super().score(batch) | {"cost": self.cost(batch)} | monitors

    def observe(self, batch: RolloutBatch) -> None:
        """Add this rollout's costs to the window, and take one ascent step of lambda for the next rollout."""
        options, costs = self.constraint, batch.rewards["cost"]
        problems = gathered(cost_problem(costs, batch))
        if any(problems):  # on every process, so that none waits for another
            raise ConfigError(next(problem for problem in problems if problem))
        self.window.extend([cost for part in gathered(costs.tolist()) for cost in part])
        sizes = len(self.window), self.safety_size, options.c1, options.c2
        # The constraint anticipates the test: its bound, and its share of delta.
        facts = self.test_params.level(options.delta), *sizes, self.bound, self.window.mean, self.window.std
        kappa, upper = inflation(*facts), pessimistic_bound(*facts)
        self.pessimism = Pessimism(self.window.mean, self.window.std, kappa, self.dual.value, upper)
        self.dual.step(self.pessimism.bound - options.threshold)

    def returns(self, batch: RolloutBatch) -> Tensor:
        """clip(r - beta * KL) - lambda * augmented cost."""
        return self.constrained(self.clipped_reward(batch), self.augmented_cost(batch))

    def clipped_reward(self, batch: RolloutBatch) -> Tensor:
        """clip(r - beta * KL), (rows,)."""
        return super().returns(batch).clamp(-self.reward_clip, self.reward_clip)

    def augmented_cost(self, batch: RolloutBatch) -> Tensor:
        """The cost per row whose gradient is that of the pessimistic bound; the cost itself without pessimism."""
        now = self.pessimism
        return augmented_cost(batch.rewards["cost"], now.mean, now.std, now.kappa)

    def constrained(self, reward: Tensor, cost: Tensor) -> Tensor:
        """reward - lambda * cost, of returns or of advantages; divided by 1 + lambda where the constraint says so."""
        multiplier = self.pessimism.multiplier
        total = reward - multiplier * cost
        return total / (1 + multiplier) if self.constraint.normalise_multiplier else total

    def auxiliary_loss(self, batch: RolloutBatch, part: slice) -> Tensor | None:
        """The supervised term, on demonstrations drawn for this optimiser step."""
        if self.supervised is None:
            return None
        rows = self._data().rows("demonstration")
        seed = derive_seed("supervised", run_seed(), self.global_rank, self.trainer.global_step)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(rows), (self.supervised.batch_size,), generator=generator).tolist()
        loss = response_loss(self.policy, [rows[i] for i in drawn], self.supervised.max_length)
        self.supervised_loss = float(loss.detach())
        return self.supervised.coefficient * loss

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        pessimism = self.pessimism
        metrics = {
            "cost": float(batch.rewards["cost"].mean()),
            "cost_ucb": pessimism.bound,
            "lambda": pessimism.multiplier,
            "kappa": pessimism.kappa,
        }
        return metrics if self.supervised is None else metrics | {"supervised_loss": self.supervised_loss}

    def metric_name(self, reward: str) -> str:
        return reward if reward == "cost" else super().metric_name(reward)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["constraint"] = {
            "window": self.window.state_dict(),
            "dual": self.dual.state_dict(),
            "before": self.before,
            "after": self.after,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.window.load_state_dict(checkpoint["constraint"]["window"])
        self.dual.load_state_dict(checkpoint["constraint"]["dual"])
        self.before, self.after = checkpoint["constraint"]["before"], checkpoint["constraint"]["after"]

    def on_validation_end(self) -> None:
        names = {"reward": "val/reward", "cost": "val/cost"}
        names |= {monitor.name: f"val/{self.metric_name(monitor.name)}" for monitor in self.monitors}
        logged = self.trainer.callback_metrics
        self.after = {name: float(logged[metric]) for name, metric in names.items() if metric in logged}
        if self.trainer.global_step == 0:
            self.before = self.after


PAPER = Paper(
    name="hc_rlhf",
    title="HC-RLHF",
    arxiv="2506.08266",
    idea="reward and cost models, a pessimistic constraint on the cost, a safety test",
    classes=("lightning_modules.HCRLHF",),
    configs=("hc_rlhf",),
    effect="unsafe answers 25 % → at most 3 % in 18 of 20 seeds, certified; the other two refused",
    comparison={
        "trainer.max_steps": -1,
        "model.test.skip": True,
        "data.seed": 0,
        "trainer.val_check_interval": 20,
    },
)
