"""HC-RLHF: as helpful as possible, under a constraint on cost that holds with high confidence, or no policy at all.

Chittepu et al., 2025 (arXiv 2506.08266). Given a threshold tau and a failure probability delta:
1. reward and cost models from preference pairs (the policy's start is supervised fine-tuning);
2. candidate selection: maximise reward - lambda * (mu + kappa * sigma - tau), a pessimistic constraint, by REINFORCE with a
   leave-one-out baseline, while log lambda ascends lambda * (mu + kappa * sigma - tau);
3. safety test on prompts that nothing has seen: SAFE iff the upper confidence bound of the mean cost is at most tau.

    python main.py fit --config configs/hc_rlhf.yaml
"""

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.posttrain_module import adamw
from lightning_modules.core.terms import KLPenalty
from lightning_modules.hc_rlhf.ledger import Ledger
from lightning_modules.hc_rlhf.publish import publish
from lightning_modules.hc_rlhf.safety_test import SafetyTest, Verdict, judge
from lightning_modules.hc_rlhf.score_models import ScoreModels
from lightning_modules.hc_rlhf.scorer_training import ScorerTraining
from lightning_modules.hc_rlhf.settings import Constraint, SupervisedTerm
from lightning_modules.hc_rlhf.splits import check_splits, safety_data
from objectives import Advantage, Aggregation, Bound, LeaveOneOut, PolicyLoss, Reinforce, SequenceSum, StudentT
from objectives.constraint import CostWindow, DualVariable, augmented_cost, inflation
from policies import PolicyParams
from policies.supervised import response_loss
from rewards import Reward, total_reward
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.files import fingerprint, weights_fingerprint
from support.papers import Paper
from support.prompt_identity import split_fingerprint
from support.seeding import derive_seed, isolated_rng, run_seed


class HCRLHF(OnPolicyModule):
    """High-confidence safe RLHF. The data module brings the prompts, a `safety` split, and preference pairs if models are to be trained.

    Args:
        policy: the supervised start, also the reference.
        constraint: threshold, confidence, pessimism.
        reward_model, cost_model: folders of trained models; trained from the data module's preference pairs when None.
        scorers: how they are trained.
        rewards, cost: parts to use instead of a reward model and of a cost model, e.g. a rule or a served classifier.
        monitors: rewards that are logged and never optimised, e.g. the truth where a rule knows it.
        bound: of the safety test; Hoeffding and others need costs in a stated range.
        test: ledger, allowance, export; or none, for a baseline.
        supervised: a supervised loss beside the policy's, on the data module's demonstrations.
        batch, sampling, advantage, loss, aggregation, kl, evaluation, engine, importance_cap, optimizer, lr_scheduler, max_grad_norm: as in every on-policy
            method; the paper's defaults: 2 completions a prompt, KL 0.1 on k1 in the reward, RLOO, clip of gradients at 5. GRPO's clipped objective
            instead of REINFORCE: loss: objectives.ClippedSurrogate, aggregation: objectives.SequenceMean.
        reward_clip: returns are clipped to this range before the cost is subtracted.
    """

    def __init__(
        self,
        policy: PolicyParams,
        constraint: Constraint | None = None,
        reward_model: str | None = None,
        cost_model: str | None = None,
        scorers: ScorerTraining | None = None,
        rewards: list[Reward] | None = None,
        cost: Reward | None = None,
        monitors: list[Reward] | None = None,
        bound: Bound | None = None,
        test: SafetyTest | None = None,
        supervised: SupervisedTerm | None = None,
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
            rewards or [],
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
            raise ConfigError(
                f"reward_clip is {reward_clip}; it must be above 0, since returns are clipped to plus and minus this number."
            )
        self.constraint, self.bound, self.test_params = (
            constraint or Constraint(),
            bound or StudentT(),
            test or SafetyTest(),
        )
        self.models = ScoreModels(
            reward_model, cost_model, rewards or [], cost, scorers or ScorerTraining(), self.constraint.cost_scale
        )
        self.bound.check(*self.models.cost_range)
        if cost is not None and cost.max_failure_rate is not None:
            raise ConfigError(
                f"model.cost is {type(cost).__name__}, which may fail to score a response; neither the constraint nor the safety test can leave responses out. Give a cost "
                "that always answers."
            )
        self.monitors, self.supervised, self.reward_clip = monitors or [], supervised, reward_clip
        self.window = CostWindow(self.constraint.window)
        options = self.constraint
        self.dual = DualVariable(
            options.lambda_init, options.lambda_lr, options.lambda_max, options.lambda_delay, options.lambda_update
        )
        self.cost: Reward | None = None
        self.step_metrics: dict[str, float] = {}
        #: reward, cost and monitors of the first and the latest validation
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.verdict: Verdict | None = None

    @property
    def all_rewards(self) -> list[Reward]:
        return [*self.rewards, *self.monitors]

    # ---- phases 1 to 3: the models ------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Train what is missing, on one process."""
        check_splits(self._data(), self.models.seen_prompts())
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
                f"model.supervised asks for {self.supervised.batch_size} demonstrations a step, and the data module has {len(self._data().rows('demonstration'))}; set "
                "data.demonstrations, or leave model.supervised out."
            )
        if stage == "fit" and not self.test_params.skip:
            spent = len(self._ledger().tests())
            if spent >= self.test_params.allowance and self.trainer.is_global_zero:
                print(
                    f"Note: this safety split has served {spent} test(s) of {self.test_params.allowance} allowed. Unless this run ends at the very policy that "
                    "was tested, its test will be refused; draw a fresh split (another --seed_everything) or raise model.test.allowance."
                )

    def _data(self) -> Any:
        return safety_data(self.trainer, needs_pairs=self.models.incomplete)

    # ---- phase 4: candidate selection ---------------------------------------------------------------------------------------

    def score(self, batch: RolloutBatch) -> dict[str, Tensor]:
        assert self.cost is not None
        return (
            super().score(batch)
            | {"cost": self.cost(batch)}
            | {monitor.name: monitor(batch) for monitor in self.monitors}
        )

    def returns(self, batch: RolloutBatch) -> Tensor:
        """clip(r - beta * KL) - lambda * augmented cost, and one ascent step of lambda."""
        options, costs = self.constraint, batch.rewards["cost"]
        reward = total_reward(self.rewards, batch.rewards, batch.failures)
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

    def auxiliary_loss(self) -> Tensor | None:
        """The supervised term, on demonstrations drawn for this optimiser step."""
        if self.supervised is None:
            return None
        rows = self._data().rows("demonstration")
        own = torch.Generator().manual_seed(
            derive_seed("supervised", run_seed(), self.global_rank, self.trainer.global_step)
        )
        drawn = torch.randint(len(rows), (self.supervised.batch_size,), generator=own).tolist()
        loss = response_loss(self.policy, [rows[i] for i in drawn], self.supervised.max_length)
        self.step_metrics["supervised_loss"] = float(loss.detach())
        return self.supervised.coefficient * loss

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        return super().update(batch) | self.step_metrics

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

    # ---- phase 5: the safety test -------------------------------------------------------------------------------------------

    def on_train_end(self) -> None:
        if self.test_params.skip and self.trainer.is_global_zero:
            print("NOT TESTED: model.test.skip is set, so nothing is certified and nothing is exported.")
        if not (self.trainer.fast_dev_run or self.trainer.interrupted or self.test_params.skip):  # type: ignore[attr-defined]
            self.safety_test()

    def on_fit_end(self) -> None:
        """A run that was killed in its test has nothing left to train, so no training ends; its test is still to be done."""
        unfinished = self.verdict is None and not self.test_params.skip and self.trainer.is_global_zero
        if unfinished and not (self.trainer.fast_dev_run or self.trainer.interrupted):  # type: ignore[attr-defined]
            self.to(self.trainer.strategy.root_device)
            self.safety_test()

    def on_test_end(self) -> None:
        self.safety_test()

    def _ledger(self) -> Ledger:
        return Ledger([row["prompt"] for row in self._data().rows("safety")], self.test_params.ledger)

    def on_validation_end(self) -> None:
        names = {"reward": "val/reward", "cost": "val/cost"}
        names |= {monitor.name: f"val/{self.metric_name(monitor.name)}" for monitor in self.monitors}
        found = self.trainer.callback_metrics
        self.after = {name: float(found[metric]) for name, metric in names.items() if metric in found}
        if self.trainer.global_step == 0:
            self.before = self.after

    @torch.no_grad()
    def safety_test(self) -> Verdict | None:
        """Test the policy on the safety split once, print the verdict, write the certificate, and export the policy if it passed.

        Returns None on all processes but the first. Raises ConfigError when this split's allowance is used up.
        """
        with self.whole_weights():
            return self._safety_test() if self.trainer.is_global_zero else None

    def _safety_test(self) -> Verdict:
        options, models = self.constraint, self.models.facts
        candidate = weights_fingerprint(dict(self.policy.model.named_parameters()))
        # All that decides the verdict beside the weights and the prompts: with other settings it is another test.
        limits = [options.threshold, options.delta, options.cost_scale, self.bound.name, self.bound.assumption]
        question = fingerprint([models["cost_model"]["id"], *limits, asdict(self.sampling), run_seed()])
        ledger = self._ledger()
        with ledger.locked():
            recorded = ledger.find(candidate, question)
            if recorded is None:
                delta = ledger.begin(candidate, question, options.delta, self.test_params.allowance)
                recorded = ledger.record(candidate, question, self._test(delta))
            tests = ledger.tests()
        validation = {
            name: {"before": self.before[name], "after": value}
            for name, value in self.after.items()
            if name in self.before
        }
        facts = {
            "cost_scale": options.cost_scale,
            "safety_split": ledger.split,
            "other_splits": {
                name: split_fingerprint(row["prompt"] for row in self._data().rows(name)) for name in ("train", "val")
            },
            "allowance": self.test_params.allowance,
            "seed": run_seed(),
            **models,
            "validation": validation,
            "config": {name: asdict(getattr(self, name)) for name in ("constraint", "kl", "batch", "sampling")},
        }
        self.verdict = publish(self.trainer, recorded, tests, facts, self.test_params.export, self.policy.save)
        return self.verdict

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


PAPER = Paper(
    name="hc_rlhf",
    title="HC-RLHF",
    arxiv="2506.08266",
    idea="reward and cost models, a pessimistic constraint on the cost, a safety test",
    classes=("lightning_modules.HCRLHF",),
    configs=("hc_rlhf",),
    effect="unsafe answers 25 % → under 1 %; nine of ten seeds certified, the tenth refused",
    comparison={
        "trainer.max_steps": -1,
        "model.test.skip": True,
        "data.seed": 0,
        "trainer.val_check_interval": 20,
    },
)
