"""S-GRPO: GRPO that learns from few tokens, for LoRA on one small card (arXiv 2504.20834).

It keeps the first tokens of every completion and a random part of the rest, T_i:
J = 1/G sum_i 1/|T_i| sum_{t in T_i} A_i log pi(y_it).

    python main.py fit --config configs/s_grpo.yaml
"""

from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.on_policy import OnPolicyModule
from objectives import SequenceMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from rollouts.engine import uniforms
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import summed
from support.seeding import isolated_rng, run_seed


class SGRPO(OnPolicyModule):
    """GRPO on the first tokens of every completion and a random fraction of the others.

    Args:
        policy: the model; the paper trains LoRA adapters.
        rewards: rewards of a completion; 1 for the exact answer in the paper.
        cutoff: number of tokens at the beginning that always carry loss.
        share: probability that a later token carries loss; in the paper 30 to 50 % of all tokens do.
        most: maximum number of tokens per completion that carry loss, the earliest of the chosen ones; None sets no
            maximum.
        batch: 8 prompts per rollout, 8 completions per prompt.
        sampling: up to 300 tokens.
        optimizer: AdamW at 1e-4.
        kwargs: group z-score and no KL. With one update per rollout the clipped surrogate has the gradient of
            A log pi. See OnPolicyModule.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        cutoff: int = 100,
        share: float = 0.25,
        most: int | None = None,
        batch: BatchPlan = BatchPlan(prompts_per_rollout=8, group_size=8),
        sampling: SamplingParams = SamplingParams(max_new_tokens=300),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        **kwargs: Any,
    ) -> None:
        if cutoff < 0 or not 0 <= share <= 1 or cutoff + share == 0 or (most is not None and most < 1):
            raise ConfigError(
                f"SGRPO: cutoff is {cutoff}, share is {share} and most is {most}; set cutoff >= 0 and 0 <= share <= 1, "
                "not both 0, and most >= 1 or null."
            )
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            aggregation=SequenceMean(),  # 1/G sum_i 1/|T_i|
            optimizer=optimizer,
            **kwargs,
        )
        self.cutoff, self.share, self.most = cutoff, share, most

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        mask = super().loss_mask(batch)
        with isolated_rng("s-grpo", run_seed(), self.rollouts_done):
            uniform = uniforms(batch.rows, batch.group_size, self.sampling.max_new_tokens, mask.device)
        uniform = uniform[:, : mask.shape[1]]
        chosen = mask & ((uniform < self.share) | (mask.cumsum(1) <= self.cutoff))
        return chosen if self.most is None else chosen & (chosen.cumsum(1) <= self.most)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        learned, sampled = summed(torch.stack([self.loss_mask(batch).sum(), batch.action_mask.sum()])).tolist()
        return {"loss_tokens": learned / max(sampled, 1)}


PAPER = Paper(
    name="s_grpo",
    title="S-GRPO (LoRA)",
    arxiv="2504.20834",
    idea="only a part of the tokens carries loss, for one small card",
    classes=("lightning_modules.SGRPO",),
    configs=("s_grpo",),
    effect="0.63 → 0.88 with loss on 47 % of the tokens; 0.89 with all",
    experiment=Experiment(
        rollouts=40,
        arms={"s_grpo": {}, "grpo": {"model.share": 1.0}},
        columns={"val pass@1": "val/pass1", "tokens with loss": "train/loss_tokens"},
        expect="Better than the start with less than 60 % of the tokens; in the paper full-token GRPO under LoRA does "
        "not improve.",
        claims=(
            Claim(text="pass@1 rises with loss on half of the tokens", column="val pass@1", sign=1, against="start"),
            Claim(text="at no loss against loss on all tokens", column="val pass@1", sign=0, margin=0.02),
        ),
    ),
)
