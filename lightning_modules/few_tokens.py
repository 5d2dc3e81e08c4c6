"""S-GRPO and T-SPMO: reinforcement learning that learns from few tokens, for LoRA on one small card (arXiv 2504.20834).

S-GRPO keeps the first tokens of every completion and a random part of the rest: J = 1/G sum_i 1/|T_i| sum_{t in T_i} A_i log pi(y_it).
T-SPMO keeps the edges of the prefix tree whose token changed the mean reward: J = 1/|U| sum_{(p, v) in U} pi(v | p) A(v | p) - lambda |theta|^2.

    python main.py fit --config configs/s_grpo.yaml
    python main.py fit --config configs/t_spmo.yaml
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import (
    Advantage,
    ClippedSurrogate,
    GroupNorm,
    PolicyLoss,
    PrefixTree,
    Probability,
    SequenceMean,
    TokenMean,
)
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Experiment, Paper
from support.seeding import derive_seed, run_seed


def adapter_adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW, learning rate 1e-4, no weight decay."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)


def shortened(batch: RolloutBatch, mask: Bool[Tensor, "rows time"]) -> RolloutBatch:
    """The batch without what follows each row's last token that carries loss, since nothing before depends on it; one token of every row stays."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, 0).amax(1, keepdim=True)
    kept = batch.completion_mask & (steps <= last)
    return replace(batch, completion_mask=kept, action_mask=batch.action_mask & kept)


class SGRPO(OnPolicyModule):
    """GRPO on the first tokens of every completion and a random share of the others.

    Args:
        policy: the model; the paper trains LoRA adapters.
        rewards: 1 for the exact answer in the paper.
        cutoff: tokens from the beginning that always carry loss. share: chance of each later token to do so; the paper's 30 to 50 % in all.
        most: most tokens of a completion that carry loss, the earliest of those that were chosen; None sets no bound.
        batch: prompts a rollout, 8 completions each.
        sampling: how completions are drawn.
        advantage: group z-score. loss: with one update a rollout the clipped surrogate has the gradient of A log pi.
        kl, evaluation, engine, importance_cap, lr_scheduler, max_grad_norm, shaping: as in GRPO; no KL.
        optimizer: AdamW at 1e-4.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        cutoff: int = 100,
        share: float = 0.25,
        most: int | None = None,
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adapter_adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        if not rewards:
            raise ConfigError(
                "SGRPO has no rewards, so there is nothing to maximise; list at least one under model.rewards."
            )
        if cutoff < 0 or not 0 <= share <= 1 or cutoff + share == 0 or (most is not None and most < 1):
            raise ConfigError(
                f"SGRPO: needs cutoff >= 0, 0 <= share <= 1 and not both 0, most >= 1; got {cutoff}, {share} and {most}."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=8, group_size=8),
            sampling or SamplingParams(max_new_tokens=300),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(),
            SequenceMean(),
            kl or KLPenalty(),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping,
        )
        self.cutoff, self.share, self.most = cutoff, share, most

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        """The same draw whenever it is asked for in a rollout."""
        mask = super().loss_mask(batch)
        generator = torch.Generator().manual_seed(
            derive_seed("s-grpo", run_seed(), self.global_rank, self.rollouts_done)
        )
        drawn = (torch.rand(mask.shape, generator=generator) < self.share).to(mask.device)
        chosen = mask & (drawn | (mask.cumsum(1) <= self.cutoff))
        return chosen if self.most is None else chosen & (chosen.cumsum(1) <= self.most)

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        mask = self.loss_mask(batch)
        share = float(mask.sum() / batch.action_mask.sum().clamp(min=1))
        return super().update(shortened(batch, mask)) | {"loss_tokens": share}


class TSPMO(OnPolicyModule):
    """The plain probability of single tokens, weighted by what they changed among completions that had begun alike.

    Such tokens stand mostly near the beginning. `replay` therefore cuts one completion of every prompt, of the best or of the worst, at a random
    place, and lets the policy go on from there; what these completions differ in, is learned from beside the rest.

    Args:
        policy: the model; the paper trains LoRA adapters.
        rewards: 1 for the exact answer in the paper.
        weight_penalty: lambda, times the squared norm of the adapters; 0 where all weights are trained.
        replay: go on from cut completions, as many as there are others.
        batch: prompts a rollout, 50 completions each.
        sampling: how completions are drawn.
        evaluation, engine, importance_cap, lr_scheduler, max_grad_norm, shaping: as in GRPO; no KL.
        optimizer: AdamW at 1e-4.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        weight_penalty: float = 0.01,
        replay: bool = True,
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adapter_adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        if not rewards:
            raise ConfigError(
                "TSPMO has no rewards, so there is nothing to maximise; list at least one under model.rewards."
            )
        if weight_penalty < 0 or (weight_penalty and policy.lora is None):
            raise ConfigError(
                f"TSPMO: weight_penalty is {weight_penalty}; it must be 0 or above, and 0 without policy.lora, since it would pull all weights to 0."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=4, group_size=50),
            sampling or SamplingParams(max_new_tokens=300),
            rewards,
            PrefixTree(),
            Probability(),
            TokenMean(),  # one place for each edge: 1 / |U|
            KLPenalty(),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping,
        )
        self.weight_penalty, self.replay = weight_penalty, replay

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        """The edges of U."""
        assert batch.advantages is not None
        return super().loss_mask(batch) & (batch.advantages != 0)

    def auxiliary_loss(self) -> Tensor | None:
        if not self.weight_penalty:
            return None
        return (
            self.weight_penalty
            * torch.stack([p.square().sum() for p in self.policy.parameters() if p.requires_grad]).sum()
        )

    def replayed(self, batch: RolloutBatch) -> RolloutBatch:
        """As many completions again, which begin with a part of one of their prompt's, of the best or the worst by even chance."""
        totals, lengths = (values.view(len(batch.rows), -1) for values in (self.totals(batch), batch.lengths))
        totals = torch.where(
            totals.isnan().all(1, keepdim=True), 0.0, totals
        )  # no reward applies: any completion will do
        forced: list[list[int]] = []
        for prompt, own in enumerate(totals):
            known = own[~own.isnan()]
            extreme = known.max() if torch.rand(()) < 0.5 else known.min()
            among = torch.nonzero(own == extreme).flatten()
            row = int(among[int(torch.randint(len(among), ()))])
            cut = int(torch.randint(int(lengths[prompt, row]), ()))
            forced += [batch.completion_ids[prompt * batch.group_size + row, :cut].tolist()] * batch.group_size
        prompts = [self.prompt_tokens(row) for row in batch.rows]
        given = (self.batch.group_size, self.sampling, forced, self.batch.rollout_micro_batch)
        found = self.engine.generate(self.policy, prompts, batch.rows, *given)
        found.rewards = self.score(found)
        return found

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        metrics = {}
        if self.replay:
            more = self.replayed(batch)
            metrics["extra_tokens"] = float(more.action_mask.sum())
            batch = RolloutBatch.concatenate([batch, more])
            batch.advantages = self.advantages(batch)
        mask = self.loss_mask(batch)
        metrics["loss_tokens"] = float(mask.sum() / batch.action_mask.sum().clamp(min=1))
        if float(self.summed(mask.sum().float())):
            return super().update(shortened(batch, mask)) | metrics
        # No edge anywhere. Steps without gradients move neither weights nor moments, but count.
        optimizer: Any = self.optimizers()
        for _ in range(self.batch.updates):
            optimizer.zero_grad()
            optimizer.step()
        return {"loss": 0.0, "grad_norm": 0.0} | metrics


S_GRPO = Paper(
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
        expect="Better than the start with less than 60 % of the tokens; in the paper full-token GRPO under LoRA does not "
        "improve.",
    ),
)
T_SPMO = Paper(
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
