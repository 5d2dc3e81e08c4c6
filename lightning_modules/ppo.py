"""PPO: a clipped policy gradient with a critic, whose values are the baseline of every token.

Schulman et al. (arXiv 1707.06347), for language models as in InstructGPT (arXiv 2203.02155):
J = E[ min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t) ] - c 1/2 E[ (V_t - R_t)^2 ], with GAE's A_t and R_t
(objectives/gae.py) of the rewards r_t = R(completion) at its last token - beta log(pi / reference) at every token.

    python main.py fit --config configs/ppo.yaml
"""

from typing import Any

from lightning_modules.core.critic import Critic, CriticMethod
from lightning_modules.core.terms import KLPenalty
from objectives import GAE, Aggregation, TokenMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, SamplingParams
from support.papers import Claim, Experiment, Paper


class PPO(CriticMethod):
    """Proximal policy optimisation with a critic; the defaults are InstructGPT's where it states them.

    Its base class overrides five hooks: `advantages` and `value_term`, since advantages and part of the loss come from
    the critic, `trained_parameters` and `parameter_groups` for the critic's weights and learning rate, and `metrics`.

    Args:
        policy: the model.
        rewards: rewards of a completion, summed with their weights; at least one.
        critic: a model of its own that starts like the policy, learning rate 9e-6, values clipped at 0.2.
        batch: 512 prompts per rollout, one completion per prompt, eight updates of 64.
        sampling: up to 1,024 tokens.
        advantage: gamma 1, lambda 0.95, normalised over the batch.
        aggregation: the mean over all tokens of an update.
        kl: beta 0.02 on k1 in every token's reward. `placement: loss` puts it into the loss instead.
        kwargs: clip 0.2 and the rest as in OnPolicyModule.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        critic: Critic = Critic(),
        batch: BatchPlan = BatchPlan(prompts_per_rollout=512, group_size=1, updates_per_rollout=8),
        sampling: SamplingParams = SamplingParams(max_new_tokens=1024),
        advantage: GAE = GAE(),
        aggregation: Aggregation = TokenMean(),
        kl: KLPenalty = KLPenalty(coefficient=0.02, estimator="k1", placement="token_reward"),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            advantage=advantage,
            aggregation=aggregation,
            kl=kl,
            **kwargs,
        )
        self.set_critic(critic)


PAPER = Paper(
    name="ppo",
    title="PPO",
    arxiv="1707.06347",
    idea="a clipped policy gradient whose baseline is a critic's value of every token",
    classes=("lightning_modules.PPO", "lightning_modules.Critic", "objectives.GAE"),
    configs=("ppo",),
    experiment=Experiment(
        rollouts=30,
        validate_every=10,
        arms={
            "ppo": {},
            "ppo, shared body": {"model.critic.body": "shared", "model.critic.coefficient": 0.1},
            "grpo": {"config": ["grpo"]},
        },
        columns={
            "val pass@1": "val/pass1",
            "explained variance": "train/explained_variance",
            "value loss": "train/value_loss",
        },
        expect="GRPO's pass@1 from the same rollouts; the critic explains a part of the returns' variance.",
        claims=(
            Claim(text="pass@1 rises", column="val pass@1", sign=1, against="start"),
            Claim(text="a critic serves as well as the group's mean", column="val pass@1", sign=0, margin=0.03),
        ),
    ),
)
