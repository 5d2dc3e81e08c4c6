"""T-SPMO: single tokens weighted by their effect among completions with the same prefix (arXiv 2504.20834).

Loss falls on U, the edges of the prefix tree whose token changed the mean reward:
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
from rollouts.engine import uniforms
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import summed


class TSPMO(OnPolicyModule):
    """The plain probability of single tokens, weighted by their effect on the mean reward.

    Such tokens are mostly near the beginning. `replay` therefore cuts one of the best or worst completions of every
    prompt at a random place and samples continuations from there. The policy also learns from the tokens where these
    completions diverge.

    Args:
        policy: the model; the paper trains LoRA adapters.
        rewards: rewards of a completion; 1 for the exact answer in the paper.
        weight_penalty: lambda, factor of the adapters' squared norm in the loss; 0 if all weights are trained.
        replay: sample as many continuations of cut completions as ordinary completions.
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
                f"TSPMO: weight_penalty is {weight_penalty}, which must not be negative, and without policy.lora it "
                "would pull all weights to 0. Set model.weight_penalty to 0 or above, and to 0 without policy.lora."
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
        """First tokens of every replay: the beginning of one of the prompt's best or worst completions, at random."""
        totals, lengths = (values.view(len(batch.rows), -1) for values in (self.totals(batch), batch.lengths))
        # If no reward applies, all completions are equal candidates.
        totals = torch.where(totals.isnan().all(1, keepdim=True), 0.0, totals)
        beginnings: list[list[int]] = []
        draws = uniforms(batch.rows, 1, 3, torch.device("cpu")).tolist()
        for prompt, (group, (side, choice, place)) in enumerate(zip(totals, draws, strict=True)):
            scored = group[~group.isnan()]
            extreme = scored.max() if side < 0.5 else scored.min()
            candidates = torch.nonzero(group == extreme).flatten()
            row = int(candidates[int(choice * len(candidates))])
            cut = int(place * int(lengths[prompt, row]))
            tokens = batch.completion_ids[prompt * batch.group_size + row, :cut].tolist()
            beginnings += [tokens] * batch.group_size
        return beginnings

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        replayed = batch.action_mask[len(batch.action_mask) // 2 :]
        masks = (self.loss_mask(batch), batch.action_mask, replayed)
        learned, sampled, extra = summed(torch.stack([mask.sum() for mask in masks])).tolist()
        metrics = {"loss_tokens": learned / max(sampled, 1)}
        return metrics | {"extra_tokens": float(extra)} if self.replay else metrics


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
        claims=(
            Claim(text="pass@1 rises with loss on few tokens", column="val pass@1", sign=1, against="start"),
            Claim(
                text="at least as far as with loss on all tokens",
                column="val pass@1",
                sign=0,
                against="grpo, equal tokens",
                margin=0.02,
            ),
        ),
    ),
)
