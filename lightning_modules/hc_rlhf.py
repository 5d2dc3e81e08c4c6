"""HC-RLHF: as helpful as possible, under a constraint on cost that holds with high confidence, or no policy at all.

Chittepu et al., 2025 (arXiv 2506.08266). Given a threshold tau and a failure probability delta:
1. reward and cost models from preference pairs (the policy's start is supervised fine-tuning);
2. candidate selection: maximise reward - lambda * (mu + kappa * sigma - tau), a pessimistic constraint, by REINFORCE with a
   leave-one-out baseline, while log lambda ascends lambda * (mu + kappa * sigma - tau);
3. safety test on prompts that nothing has seen: SAFE iff the upper confidence bound of the mean cost is at most tau.

    python main.py fit --config configs/hc_rlhf.yaml
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.base import adamw
from lightning_modules.evaluation import Evaluation
from lightning_modules.on_policy import KLPenalty, OnPolicyModule
from lightning_modules.safety import Ledger, SafetyTest, Verdict, check_disjoint, judge, publish
from lightning_modules.scorer_training import ScorerTraining, trained_scorer
from objectives import Advantage, Aggregation, Bound, LeaveOneOut, PolicyLoss, Reinforce, SequenceSum, StudentT
from objectives.constraint import CostWindow, DualVariable, augmented_cost, inflation
from policies import PolicyParams
from policies.scorer import load_scorer
from rewards import Reward, total_reward
from rewards.models import ModelScore
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.files import fingerprint, weights_fingerprint
from support.seeding import isolated_rng, run_seed

#: (smallest cost, largest cost, whether nothing lies between them)
COST_RANGES = {"raw": (-math.inf, math.inf, False), "probability": (0.0, 1.0, False), "unsafe": (0.0, 1.0, True)}


@dataclass
class Constraint:
    """The pessimistic constraint and its multiplier.

    Args:
        threshold: tau, the largest mean cost allowed. delta: the failure probability of the promise.
        cost_scale: raw cost-model scores; probability: their sigmoid, so that tau is an expected share of unsafe responses; unsafe: 1 for a
            score above zero and 0 otherwise, so that tau is the share of responses that the model calls unsafe.
        c1: pessimism about the cost's estimate from the window. c2: about the coming safety test.
        window: most recent costs that mean and deviation are taken from.
        lambda_init, lambda_lr, lambda_max, lambda_delay: start, step on log lambda, cap, rollouts before the first step.
        normalise_multiplier: divide the objective by 1 + lambda, which bounds its scale (safe-RLHF does, HC-RLHF's code does not).
    """

    threshold: float = 0.0
    delta: float = 0.1
    cost_scale: Literal["raw", "probability", "unsafe"] = "raw"
    c1: float = 1.0
    c2: float = 1.0
    window: int = 256
    lambda_init: float = 1.0
    lambda_lr: float = 0.01
    lambda_max: float = 1e6
    lambda_delay: int = 0
    normalise_multiplier: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ConfigError(f"constraint.delta is {self.delta}; it is a probability strictly between 0 and 1.")
        if self.cost_scale != "raw" and not 0 < self.threshold < 1:
            raise ConfigError(
                f"constraint.threshold is {self.threshold}; with cost_scale: {self.cost_scale} it must lie strictly between 0 and 1."
            )
        if self.c1 < 0 or self.c2 < 0 or self.window < 2:
            raise ConfigError(f"constraint needs c1 >= 0, c2 >= 0 and window >= 2, got {self.c1}, {self.c2} and {self.window}.")


class HCRLHF(OnPolicyModule):
    """High-confidence safe RLHF. The data module brings the prompts, a `safety` split, and preference pairs if models are to be trained.

    Args:
        policy: the supervised start, also the reference.
        constraint: threshold, confidence, pessimism.
        reward_model, cost_model: folders of trained models; trained from the data module's preference pairs when None.
        scorers: how they are trained.
        monitors: rewards that are logged and never optimised, e.g. the truth where a rule knows it.
        bound: of the safety test; Hoeffding and others need costs in a stated range.
        test: ledger, allowance, export.
        batch, sampling, advantage, loss, aggregation, kl, evaluation, engine, importance_cap, optimizer, lr_scheduler, max_grad_norm: as in every on-policy
            method; the paper's defaults: 2 completions a prompt, KL 0.1 on k1 in the reward, RLOO, clip of gradients at 5.
        reward_clip: returns are clipped to this range before the cost is subtracted.
    """

    def __init__(
        self,
        policy: PolicyParams,
        constraint: Constraint | None = None,
        reward_model: str | None = None,
        cost_model: str | None = None,
        scorers: ScorerTraining | None = None,
        monitors: list[Reward] | None = None,
        bound: Bound | None = None,
        test: SafetyTest | None = None,
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        aggregation: Aggregation | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 5.0,
        reward_clip: float = 50.0,
    ) -> None:
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=64, group_size=2),
            sampling or SamplingParams(max_new_tokens=512),
            [],
            advantage or LeaveOneOut(),
            loss or Reinforce(),
            aggregation or SequenceSum(),
            kl or KLPenalty(coefficient=0.1, estimator="k1", placement="reward"),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
        )
        if reward_clip <= 0:
            raise ConfigError(f"reward_clip is {reward_clip}; it must be above 0, since returns are clipped to plus and minus this number.")
        self.constraint, self.bound, self.test_params = constraint or Constraint(), bound or StudentT(), test or SafetyTest()
        self.bound.check(*COST_RANGES[self.constraint.cost_scale])
        self.scorer_folders: dict[str, str | None] = {"reward": reward_model, "cost": cost_model}
        self.scorer_training, self.monitors, self.reward_clip = scorers or ScorerTraining(), monitors or [], reward_clip
        self.window = CostWindow(self.constraint.window)
        self.dual = DualVariable(
            self.constraint.lambda_init, self.constraint.lambda_lr, self.constraint.lambda_max, self.constraint.lambda_delay
        )
        self.cost: ModelScore | None = None
        self.facts: dict[str, Any] = {}
        self.step_metrics: dict[str, float] = {}
        self.before: dict[str, float] = {}

    # ---- phases 1 to 3: the models ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Train what is missing, on one process."""
        self._check_splits()
        for kind, folder in self.scorer_folders.items():
            if folder is None:
                trained_scorer(kind, self.policy_params, self._data().preferences.rows(), self.scorer_training, self.trainer)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        if self.cost is None:
            self._load_scorers()
        super().setup(stage)
        self.safety_size = len(self._data().rows("safety"))
        self.test_params.check_export()
        if stage == "fit":
            spent = len(self._ledger().tests())
            if spent >= self.test_params.allowance and self.trainer.is_global_zero:
                print(
                    f"Note: this safety split has served {spent} test(s) of {self.test_params.allowance} allowed. Unless this run ends at the very policy that "
                    "was tested, its test will be refused; draw a fresh split (another --seed_everything) or raise model.test.allowance."
                )

    def _load_scorers(self) -> None:
        loaded: dict[str, ModelScore] = {}
        for kind, folder in self.scorer_folders.items():
            if folder is None:
                rows = self._data().preferences.rows()
                folder = trained_scorer(kind, self.policy_params, rows, self.scorer_training, self.trainer)  # type: ignore[arg-type]
            scorer, facts = load_scorer(folder)
            identity = facts.get("id") or weights_fingerprint(scorer.state_dict())
            self.facts[f"{kind}_model"] = {"id": identity, "held_out": facts.get("held_out", "unknown")}
            scale = self.constraint.cost_scale if kind == "cost" else "raw"
            loaded[kind] = ModelScore(scorer, scale, name=f"{kind}_model" if kind == "reward" else "cost")
        self.rewards, self.cost = [loaded["reward"]], loaded["cost"]

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "rows"):
            raise ConfigError(
                "HCRLHF needs a data module with a safety split: datamodules.RecordsPrompts, datamodules.FilePrompts or another PromptData."
            )
        if any(folder is None for folder in self.scorer_folders.values()) and data.preferences is None:
            raise ConfigError(
                "HCRLHF has no reward or cost model and the data module no preference pairs to train them on; set data.preferences, or "
                "model.reward_model and model.cost_model."
            )
        return data

    def _check_splits(self) -> None:
        data = self._data()
        safety = [row["prompt"] for row in data.rows("safety")]
        if len(safety) < 2:
            raise ConfigError(
                f"the safety split of {type(data).__name__} has {len(safety)} prompts; the test needs at least 2. Set data.safety_size."
            )
        others = {f"the {name} split": [row["prompt"] for row in data.rows(name)] for name in ("train", "val")}
        if data.preferences is not None:
            others["the preference pairs"] = [row["prompt"] for row in data.preferences.rows()]
        check_disjoint(safety, others)

    # ---- phase 4: candidate selection ---------------------------------------------------------------------------------------

    def score(self, batch: RolloutBatch) -> dict[str, Tensor]:
        assert self.cost is not None
        return super().score(batch) | {"cost": self.cost(batch)} | {monitor.name: monitor(batch) for monitor in self.monitors}

    def returns(self, batch: RolloutBatch) -> Tensor:
        """clip(r - beta * KL) - lambda * augmented cost, and one ascent step of lambda."""
        options, costs = self.constraint, batch.rewards["cost"]
        reward = total_reward(self.rewards, batch.rewards)
        if self.kl.placement == "reward" and self.kl.coefficient:
            reward = reward - self.kl.coefficient * self.sequence_kl(batch)
        reward = reward.clamp(-self.reward_clip, self.reward_clip)
        gathered = costs if self.trainer.world_size == 1 else self.all_gather(costs)
        assert isinstance(gathered, Tensor)
        self.window.extend(gathered.flatten().tolist())
        mean, std, multiplier = self.window.mean, self.window.std, self.dual.value
        kappa = inflation(options.delta, len(self.window), self.safety_size, options.c1, options.c2)
        bound = mean + kappa * std
        self.dual.step(bound - options.threshold)
        self.step_metrics = {"cost": float(costs.mean()), "cost_ucb": bound, "lambda": multiplier, "kappa": kappa}
        total = reward - multiplier * augmented_cost(costs, mean, std, kappa)
        return total / (1 + multiplier) if options.normalise_multiplier else total

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        return super().update(batch) | self.step_metrics

    def metric_name(self, reward: str) -> str:
        return reward if reward == "cost" else super().metric_name(reward)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["constraint"] = {"window": self.window.state_dict(), "dual": self.dual.state_dict(), "before": self.before}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.window.load_state_dict(checkpoint["constraint"]["window"])
        self.dual.load_state_dict(checkpoint["constraint"]["dual"])
        self.before = checkpoint["constraint"]["before"]

    # ---- phase 5: the safety test -------------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        if not self.trainer.fast_dev_run and not self.trainer.interrupted:  # type: ignore[attr-defined]
            self.safety_test()

    def on_test_end(self) -> None:
        self.safety_test()

    def _ledger(self) -> Ledger:
        return Ledger([row["prompt"] for row in self._data().rows("safety")], self.test_params.ledger)

    def _validation(self) -> dict[str, float]:
        """What the last validation measured: the reward model's reward, and the monitors."""
        names = {"reward": "val/reward"} | {monitor.name: f"val/{self.metric_name(monitor.name)}" for monitor in self.monitors}
        found = self.trainer.callback_metrics
        return {name: float(found[metric]) for name, metric in names.items() if metric in found}

    def on_validation_end(self) -> None:
        if self.trainer.global_step == 0:
            self.before = self._validation()

    @torch.no_grad()
    def safety_test(self) -> Verdict | None:
        """Test the policy on the safety split once, print the verdict, write the certificate, and export the policy if it passed.

        Returns None on all processes but the first. Raises ConfigError when this split's allowance is used up.
        """
        if not self.trainer.is_global_zero:
            return None
        options = self.constraint
        candidate = weights_fingerprint(self.policy.model.state_dict())
        # All that decides the verdict beside the weights and the prompts: with other settings it is another test.
        bound = [self.bound.name, self.bound.assumption]
        asked = [
            self.facts["cost_model"]["id"],
            options.threshold,
            options.delta,
            options.cost_scale,
            *bound,
            asdict(self.sampling),
            run_seed(),
        ]
        question = fingerprint(asked)
        ledger = self._ledger()
        with ledger.locked():
            recorded = ledger.find(candidate, question)
            if recorded is None:
                delta = ledger.begin(candidate, question, options.delta, self.test_params.allowance)
                recorded = ledger.record(candidate, question, self._test(delta))
            tests = ledger.tests()
        facts = {
            "cost_scale": options.cost_scale,
            "safety_split": ledger.split,
            "allowance": self.test_params.allowance,
            "seed": run_seed(),
            **self.facts,
            "validation": {
                name: {"before": self.before.get(name), "after": after} for name, after in self._validation().items() if name in self.before
            },
            "config": {name: asdict(getattr(self, name)) for name in ("constraint", "kl", "batch", "sampling")},
        }
        return publish(self.trainer, recorded, tests, facts, self.test_params.export, self.policy.save)

    def _test(self, delta: float) -> dict[str, Any]:
        """One response for every safety prompt, its cost, and the bound."""
        with isolated_rng("safety test", run_seed()):
            batch = self.sample(self._data().rows("safety"), 1, self.sampling)
        assert self.cost is not None
        costs = self.cost(batch).cpu()
        return {
            "delta": delta,
            "verdict": asdict(judge(costs, self.constraint.threshold, delta, self.bound)),
            "truth": {monitor.name: float(monitor(batch).nanmean()) for monitor in self.monitors},
            "costs": costs.tolist(),
        }
