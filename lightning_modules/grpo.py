"""GRPO: a policy gradient without a critic; the baseline is the group of completions of the same prompt.

DeepSeekMath (arXiv 2402.03300), equation 3:
J = E[ 1/G sum_i 1/|o_i| sum_t min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i) - beta k3_it ], A_i = (R_i - mean) / std of the group.

    python main.py fit --config configs/grpo.yaml
"""

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.posttrain_module import adamw
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, SequenceMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Engine, SamplingParams
from support.errors import ConfigError
from support.papers import Paper


class GRPO(OnPolicyModule):
    """Group relative policy optimisation; the defaults are the paper's (4.1, 4.2): 64 completions a prompt, beta 0.04 in the loss, clip 0.2, lr 1e-6.

    Args:
        policy: the model.
        rewards: what a completion earns, as a weighted sum; at least one.
        batch: prompts a rollout (16 in the paper), completions a prompt (64), micro-batches, updates.
        sampling: how completions are drawn.
        advantage: group z-score; without the division it is Dr. GRPO's.
        loss: the clipped surrogate.
        aggregation: the mean over a completion's tokens, then over completions; TokenMean is DAPO's, ConstantLength Dr. GRPO's. configs/objectives/
            holds the combinations of the papers.
        kl: beta 0.04 on k3 in the loss.
        evaluation: how validation samples.
        engine: what generates; the embedded one if None. importance_cap: correction where its log-probs are not the policy's.
        optimizer, lr_scheduler: AdamW at 1e-6, constant.
        max_grad_norm: gradients are scaled down to this norm.
        shaping: truncated completions, several rewards, entropy bonus.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
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
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        if not rewards:
            raise ConfigError(
                "GRPO has no rewards, so there is nothing to maximise; list at least one under model.rewards."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=16, group_size=64),
            sampling or SamplingParams(max_new_tokens=1024),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(),
            aggregation or SequenceMean(),
            kl or KLPenalty(coefficient=0.04),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping,
        )


PAPER = Paper(
    name="grpo",
    title="GRPO",
    arxiv="2402.03300",
    idea="a policy gradient without a critic; the baseline is the group of completions of the same prompt",
    classes=("lightning_modules.GRPO",),
    configs=("grpo",),
    effect="sums: pass@1 0.65 → 0.91 in 80 rollouts",
)
