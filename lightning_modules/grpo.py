"""GRPO: a policy gradient without a critic; the baseline is the mean of the completions of the same prompt.

DeepSeekMath (arXiv 2402.03300), equation 3:
J = E[ 1/G sum_i 1/|o_i| sum_t min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i) - beta k3_it ],
A_i = (R_i - mean) / std of the group.

    python main.py fit --config configs/grpo.yaml
"""

from typing import Any

from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, SamplingParams
from support.papers import Paper


class GRPO(OnPolicyModule):
    """Group relative policy optimisation; the defaults are the paper's (4.1, 4.2).

    configs/objectives/ contains the variants of later papers (Dr. GRPO, DAPO, RLOO, GSPO, CISPO and others).

    Args:
        policy: the model.
        rewards: rewards of a completion, summed with their weights; at least one.
        batch: 16 prompts per rollout, 64 completions per prompt, one update.
        sampling: up to 1,024 tokens.
        kl: beta 0.04 on k3 in the loss.
        kwargs: group z-score, clip 0.2, the mean over a completion's tokens and then over completions, AdamW at 1e-6;
            see OnPolicyModule.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan = BatchPlan(prompts_per_rollout=16, group_size=64),
        sampling: SamplingParams = SamplingParams(max_new_tokens=1024),
        kl: KLPenalty = KLPenalty(coefficient=0.04),
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, rewards, batch=batch, sampling=sampling, kl=kl, **kwargs)


PAPER = Paper(
    name="grpo",
    title="GRPO",
    arxiv="2402.03300",
    idea="a policy gradient without a critic; the baseline is the group of completions of the same prompt",
    classes=("lightning_modules.GRPO",),
    configs=("grpo",),
    effect="sums: pass@1 0.65 → 0.91 in 80 rollouts",
)
