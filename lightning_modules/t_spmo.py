"""T-SPMO: single tokens weighted by what they changed among completions that had begun alike (arXiv 2504.20834).

It keeps the edges of the prefix tree whose token changed the mean reward, U:
J = 1/|U| sum_{(p, v) in U} pi(v | p) A(v | p) - lambda |theta|^2.

    python main.py fit --config configs/t_spmo.yaml
"""

from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty
from objectives import PrefixTree, Probability, TokenMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Experiment, Paper


class TSPMO(OnPolicyModule):
    """The plain probability of single tokens, weighted by their effect on the mean reward.

    Such tokens stand mostly near the beginning. `replay` therefore cuts one completion of every prompt, of the best or
    of the worst, at a random place and lets the policy continue from there; the policy also learns from the tokens
    where these completions diverge.

    Args:
        policy: the model; the paper trains LoRA adapters.
        rewards: 1 for the exact answer in the paper.
        weight_penalty: lambda, times the squared norm of the adapters; 0 where all weights are trained.
        replay: continue from cut completions, as many as there are others.
        batch: 4 prompts per rollout, 50 completions per prompt.
        sampling: up to 300 tokens.
        optimizer: AdamW at 1e-4.
        kwargs: as in OnPolicyModule; there is no KL.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        weight_penalty: float = 0.01,
        replay: bool = True,
        batch: BatchPlan = BatchPlan(prompts_per_rollout=4, group_size=50),
        sampling: SamplingParams = SamplingParams(max_new_tokens=300),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            advantage=PrefixTree(),
            loss=Probability(),
            aggregation=TokenMean(),  # one place for each edge: 1 / |U|
            kl=KLPenalty(),
            optimizer=optimizer,
            **kwargs,
        )
        if weight_penalty < 0 or (weight_penalty and policy.lora is None):
            raise ConfigError(
                f"TSPMO: weight_penalty is {weight_penalty}; set it to 0 or above, and to 0 without policy.lora, since "
                "it would pull all weights to 0."
            )
        self.weight_penalty, self.replay = weight_penalty, replay

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        assert batch.advantages is not None
        return super().loss_mask(batch) & (batch.advantages != 0)  # the edges of U

    def auxiliary_loss(self, batch: RolloutBatch, part: slice) -> Tensor | None:
        if not self.weight_penalty:
            return None
        return self.weight_penalty * torch.stack([p.square().sum() for p in self.trained_parameters()]).sum()

    def learned_from(self, batch: RolloutBatch) -> RolloutBatch:
        if not self.replay:
            return batch
        with self.whole_weights():
            replays = self.sample(batch.rows, batch.group_size, self.sampling, forced=self.beginnings(batch))
            replays.rewards = self.score(replays)
        self.count_tokens(replays)
        both = RolloutBatch.concatenate([batch, replays])
        both.advantages = self.advantages(both)
        return both

    def beginnings(self, batch: RolloutBatch) -> list[list[int]]:
        """First tokens of every replay: a part of one of its prompt's completions, of the best or worst by even chance."""
        totals, lengths = (values.view(len(batch.rows), -1) for values in (self.totals(batch), batch.lengths))
        # Where no reward applies any completion will do.
        totals = torch.where(totals.isnan().all(1, keepdim=True), 0.0, totals)
        beginnings: list[list[int]] = []
        for prompt, group in enumerate(totals):
            scored = group[~group.isnan()]
            extreme = scored.max() if torch.rand(()) < 0.5 else scored.min()
            candidates = torch.nonzero(group == extreme).flatten()
            row = int(candidates[int(torch.randint(len(candidates), ()))])
            cut = int(torch.randint(int(lengths[prompt, row]), ()))
            tokens = batch.completion_ids[prompt * batch.group_size + row, :cut].tolist()
            beginnings += [tokens] * batch.group_size
        return beginnings

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        metrics = {"loss_tokens": float(self.loss_mask(batch).sum() / batch.action_mask.sum().clamp(min=1))}
        if self.replay:
            replayed = batch.action_mask[len(batch.action_mask) // 2 :]
            metrics["extra_tokens"] = float(replayed.sum())
        return metrics


PAPER = Paper(
    name="t_spmo",
    title="T-SPMO (LoRA)",
    arxiv="2504.20834",
    idea="only the tokens at which completions diverge carry loss, for one small card",
    classes=("lightning_modules.TSPMO",),
    configs=("t_spmo",),
    page="s_grpo",
    effect="0.63 → 0.87 with loss on 0.5 % of the tokens",
    comparison={"model.batch.prompts_per_rollout": 4, "model.batch.group_size": 16},
    experiment=Experiment(
        rollouts=40,
        arms={
            "t_spmo": {},
            "t_spmo, no replay": {"model.replay": False},
            "grpo": {
                "config": ["s_grpo"],
                "model.share": 1.0,
                "model.batch.prompts_per_rollout": 4,
                "model.batch.group_size": 16,
            },
        },
        columns={"val pass@1": "val/pass1", "tokens with loss": "train/loss_tokens", "edges": "train/edges"},
        expect="Better than the start with a few percent of the tokens.",
    ),
)
