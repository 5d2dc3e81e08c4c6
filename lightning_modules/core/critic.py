"""The critic of an on-policy method: its settings, its values of a rollout, and its part of the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_modules.core.micro_batches import micro_batches
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.optimizer_steps import CRITIC
from lightning_modules.core.part_types import check_part
from lightning_modules.core.policy_update import Sums, ValueTerm
from lightning_modules.core.turn_credit import turn_returns
from objectives import GAE
from objectives.gae import explained_variance, value_loss
from objectives.global_norm import at_last_token
from policies import Policy, PolicyParams, PromptGroups, ValueModel
from policies.sharding import shard_critic
from policies.tokenizer import load_tokenizer
from policies.value_heads import logprobs_and_values, shared_values
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.processes import summed
from support.seeding import isolated_rng, run_seed


@dataclass
class Critic:
    """The model of the values, and how it is trained.

    Args:
        body: own has weights of its own; shared is a head on the policy's body, so that one forward gives log-probs and
            values, and the body also learns from the value loss.
        model: of an own body: a language model, or the folder of a reward model, with full weights or LoRA; None for
            the policy's start and its LoRA settings.
        coefficient: weight of the value loss, which is aggregated as the policy's. For an own body it matters only
            through `max_grad_norm`.
        value_clip: how far a value may move from that of the rollout before it has no gradient; None for no clipping.
        lr: learning rate of the critic, of the head alone if the body is shared. A learning-rate scheduler scales it
            with the policy's.
        warmup_rollouts: number of first rollouts that train the critic alone; of a shared body the head alone.
    """

    body: Literal["own", "shared"] = "own"
    model: PolicyParams | None = None
    coefficient: float = 1.0
    value_clip: float | None = 0.2
    lr: float = 9e-6
    warmup_rollouts: int = 0

    def __post_init__(self) -> None:
        if self.body == "shared" and self.model is not None:
            raise ConfigError(
                f"critic.body is shared, the policy's own, but critic.model is {self.model.model}; set critic.body: "
                "own, or critic.model: null."
            )
        if self.coefficient <= 0 or self.lr < 0 or self.warmup_rollouts < 0:
            raise ConfigError(
                f"critic.coefficient is {self.coefficient}, critic.lr is {self.lr} and critic.warmup_rollouts is "
                f"{self.warmup_rollouts}; set the coefficient above 0 and the others to 0 or above."
            )
        if self.value_clip is not None and self.value_clip <= 0:
            raise ConfigError(
                f"critic.value_clip is {self.value_clip}; set it above 0, or to null for no clipping of values."
            )


@dataclass
class CriticTerm(ValueTerm):
    """The part of one rollout's update that trains the critics.

    Fields:
        names: prefix of each critic's metrics.
        policy: the policy, whose value heads are the critics where there are no `critics`.
        critics: critics of their own.
        clip: range of the values.
    """

    coefficient: float
    policy_frozen: bool
    names: Sequence[str]
    policy: Policy
    critics: Sequence[ValueModel]
    clip: float | None

    def forward(
        self, groups: PromptGroups, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.critics:
            return logprobs_and_values(self.policy, groups, temperature, entropy_gradient)
        logprobs, entropies = self.policy.logprobs(groups, temperature, entropy_gradient)
        return logprobs, entropies, torch.cat([critic(groups) for critic in self.critics], -1)

    def loss(self, values: Tensor, batch: RolloutBatch, rows: Tensor, mask: Tensor) -> tuple[Tensor, Sums]:
        assert batch.values is not None and batch.value_targets is not None
        width, total, sums = mask.shape[1], torch.zeros(mask.shape, device=mask.device), Sums()
        for number, name in enumerate(self.names):
            old, targets = (part[rows, :width, number] for part in (batch.values, batch.value_targets))
            counted = mask & ~targets.isnan()
            now, targets = torch.where(counted, values[..., number], 0.0), torch.where(counted, targets, 0.0)
            loss, clipped = value_loss(now, torch.where(counted, old, 0.0), targets, self.clip)
            total = total + torch.where(counted, loss, 0.0)
            sums[f"{name}value_loss"] = torch.where(counted, loss.detach(), 0.0).sum()
            sums[f"{name}value_clip_fraction"] = (clipped & counted).sum().float()
        return total, sums


class CriticMethod(OnPolicyModule):
    """Base class of methods with one or more critics; their constructor calls `set_critic`.

    One optimiser trains policy and critics, which are parameter groups of their own, with norms of their own.
    """

    has_critic = True
    zero_variance_groups_have_no_gradient = False
    #: prefix of the metrics of each critic, in the order of `token_rewards`
    critic_names: tuple[str, ...] = ("",)
    critic: Critic
    advantage: GAE
    critics: Any  # a ModuleList of ValueModels; missing for a shared body

    def set_critic(self, critic: Critic) -> None:
        """Receive the settings of the critics."""
        check_part(self, "critic", critic, Critic, "Critic(lr=9e-6)")
        self.critic = replace(critic)
        self.value_heads = len(self.critic_names) if critic.body == "shared" else 0
        self.strict_loading = self.strict_loading and self.critic_params.lora is None

    @property
    def critic_params(self) -> PolicyParams:
        """The model of a critic of its own."""
        return self.critic.model or self.policy_params

    # ---- the model ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        is_new = getattr(self, "policy", None) is None
        super().configure_model()
        if not is_new or self.critic.body == "shared":
            return
        self._check_tokens()
        with isolated_rng("critic", run_seed()):
            self.critics = torch.nn.ModuleList(ValueModel(self.critic_params) for _ in self.critic_names)
        if self._trainer is not None and isinstance(strategy := self.trainer.strategy, ModelParallelStrategy):
            dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            for critic in self.critics:
                shard_critic(critic, strategy.device_mesh["data_parallel"], dtype)

    def _check_tokens(self) -> None:
        """Refuse a critic that reads other tokens than the policy writes. Raises ConfigError."""
        model = self.critic_params.model
        if model == self.policy_params.model or load_tokenizer(model).get_vocab() == self.policy.tokenizer.get_vocab():
            return
        raise ConfigError(
            f"critic.model is {model}, whose tokenizer is not that of {self.policy_params.model}: it would read the "
            "policy's tokens as others. Set critic.model to a model of the same family, or to null for the policy's."
        )

    def _own_critics(self) -> Sequence[ValueModel]:
        return tuple(self.critics) if self.critic.body == "own" else ()

    def critic_parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters of the critics: of their own bodies, or the heads on the policy's."""
        modules = self._own_critics() or (self.policy.value_head,)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        of_critic = self.critic_parameters()
        known = set(map(id, of_critic))
        return [p for p in super().trained_parameters() if id(p) not in known] + of_critic

    def parameter_groups(self) -> list[Any]:
        of_critic = self.critic_parameters()
        policy = self.trained_parameters()[: -len(of_critic)]
        return [{"params": policy}, {"params": of_critic, "lr": self.critic.lr, "part": CRITIC}]

    def _rebuilt_from_config(self) -> set[str]:
        names = super()._rebuilt_from_config()
        if self.critic.body == "own" and self.critic_params.lora is not None:
            bodies = [name for name in self.state_dict() if name.startswith("critics.") and ".backbone." in name]
            names |= {name for name in bodies if "lora_" not in name}
        return names

    # ---- a rollout's values ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def values(self, batch: RolloutBatch) -> Float[Tensor, "rows time critics"]:
        """The critics' values of the state before each completion token, computed once; 0 outside the action mask."""
        if batch.values is None:
            rows = batch.completion_ids.shape
            values = torch.zeros(*rows, len(self.critic_names), device=self.policy.device)
            in_shards = isinstance(self.policy, FSDPModule)
            for micro in micro_batches(batch, slice(0, rows[0]), self.update_token_budget, equalise=in_shards):
                groups, critics = batch.prompt_groups(micro.rows), self._own_critics()
                parts = (
                    torch.cat([critic(groups) for critic in critics], -1)
                    if critics
                    else shared_values(self.policy, groups)
                )
                values[micro.rows, : micro.width] = parts
            batch.values = values * batch.action_mask[..., None]
        return batch.values

    def token_rewards(self, batch: RolloutBatch) -> list[Float[Tensor, "rows time"]]:
        """The rewards of tokens that each critic predicts. NaN in a row that no reward applied to."""
        kl = self.token_kl(batch) if self.kl.placement == "token_reward" and self.kl.coefficient else 0.0
        return [self.at_tokens(batch, self.returns(batch)) - self.kl.coefficient * kl]

    def at_tokens(self, batch: RolloutBatch, returns: Float[Tensor, "rows"]) -> Float[Tensor, "rows time"]:
        """Returns at the last token of each completion, or with `shaping.credit: turn` of each turn."""
        if self.shaping.credit != "turn":
            return at_last_token(returns, batch.action_mask)
        assert batch.turns is not None
        by_turn = turn_returns(batch, returns, self.rewards)
        masks = [batch.action_mask & (batch.turns.number == turn) for turn in range(by_turn.shape[1])]
        return torch.stack([at_last_token(by_turn[:, turn], mask) for turn, mask in enumerate(masks)]).sum(0)

    def combined(self, advantages: list[Float[Tensor, "rows time"]]) -> Float[Tensor, "rows time"]:
        """The policy's advantages from those by critic."""
        return advantages[0]

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows time"]:
        """Advantages by GAE; the targets of the critics are stored in the batch."""
        values, mask = self.values(batch), batch.action_mask
        turns = batch.turns.number if self.shaping.credit == "turn" and batch.turns is not None else None
        estimates = [
            self.advantage.estimate(rewards, values[..., number], mask, turns)
            for number, rewards in enumerate(self.token_rewards(batch))
        ]
        batch.value_targets = torch.stack([targets for _, targets in estimates], -1)
        known = mask & ~batch.value_targets.isnan().any(-1)
        return self.advantage.normalised(torch.where(known, self.combined([a for a, _ in estimates]), 0.0), known)

    # ---- the update --------------------------------------------------------------------------------------------------

    def value_term(self) -> CriticTerm:
        settings = self.critic
        warms_up = self.rollouts_done < settings.warmup_rollouts
        return CriticTerm(
            settings.coefficient, warms_up, self.critic_names, self.policy, self._own_critics(), settings.value_clip
        )

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        """Mean value and target before the update, and the explained variance, over the tokens of all processes."""
        assert batch.values is not None and batch.value_targets is not None
        metrics = super().metrics(batch)
        for number, name in enumerate(self.critic_names):
            values, targets = batch.values[..., number], batch.value_targets[..., number]
            known = batch.action_mask & ~targets.isnan()
            sums = torch.stack([values[known].double().sum(), targets[known].double().sum(), known.sum().double()])
            value, target, count = summed(sums).tolist()
            metrics |= {f"{name}value": value / max(count, 1), f"{name}value_target": target / max(count, 1)}
            explained = explained_variance(values, targets, known, summed)
            metrics |= {} if explained is None else {f"{name}explained_variance": explained}
        return metrics
