"""AdaptThink: one model that answers at once where that loses no accuracy, and thinks elsewhere.

Zhang et al. (arXiv 2505.13417), eqs. 3 to 6: maximise E[1(y_1 = </think>)] subject to E[R] >= E[R_ref], as a penalty
A(x, y) = 1(y_1 = </think>) delta + R(x, y) - mean R_ref(x), on completions of which half are forced to answer at once:
pi_IS(y_1 = </think>) = 1/2, pi_IS(y_1) = (1/2) of what else the policy would begin with, pi_IS = pi_old from the second token on.

    python main.py fit --config configs/adapt_think.yaml
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.core.effect_watch import EffectWatch
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule, Rows
from lightning_modules.core.posttrain_module import adamw
from lightning_modules.core.reference_rewards import Reference, prompt_key, reference_rewards
from lightning_modules.core.terms import KLPenalty
from objectives import ClippedSurrogate, GroupNorm, SequenceMean, SequenceSurrogate
from objectives.thinking import adapt_think_advantage
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Engine, Mode, RolloutBatch, SamplingParams, needs_thinking
from rollouts.engine import draw, uniforms
from rollouts.first_tokens import FirstTokens, next_token_logprobs
from support.errors import ConfigError
from support.papers import Paper


@dataclass
class Forcing:
    """How the first token of a completion is drawn in training.

    Args:
        share: of each group, answers at once because its first token is </think>; 0 leaves all first tokens to the policy.
        thinking_first_token: what the others begin with: drawn from the policy without </think>, or the fixed `start_word` (the official code).
        start_word: the fixed beginning; the official code's is "Alright".
    """

    share: float = 0.5
    thinking_first_token: Literal["sampled", "fixed"] = "sampled"
    start_word: str = "Alright"

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(
                f"forcing.share is {self.share}; it is the share of a group that answers at once, from 0 to below 1."
            )
        if self.thinking_first_token == "fixed" and not self.start_word:
            raise ConfigError("forcing.thinking_first_token is fixed, but forcing.start_word is empty; name the word.")


class AdaptThink(OnPolicyModule):
    """AdaptThink; the defaults are the paper's and its official code's.

    Args:
        policy: a model whose chat template knows <think> ... </think>.
        rewards: what a completion earns; a completion that does not close its think block exactly once earns 0.
        delta: reward worth giving up for answering at once.
        forcing: how first tokens are drawn in training; validation samples freely.
        reference: how the initial policy's mean reward on every training prompt is measured.
        ratio: of the importance ratio: the |y|-th root of the whole completion's (the official code's), each token's, or the whole (the paper's).
        clip_low, clip_high: range of the ratio around 1.
        batch: 128 prompts x 16 completions, one update. sampling: temperature 0.6.
        kl: none. evaluation, engine, importance_cap, max_grad_norm: as in GRPO.
        optimizer, lr_scheduler: AdamW; the paper's learning rate is 2e-6.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        delta: float = 0.05,
        forcing: Forcing | None = None,
        reference: Reference | None = None,
        ratio: Literal["sequence_mean", "token", "sequence"] = "sequence_mean",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if not rewards:
            raise ConfigError(
                "AdaptThink has no rewards, so NoThinking would always win; list at least one under model.rewards."
            )
        if delta < 0:
            raise ConfigError(f"delta is {delta}; it is a bonus for not thinking, 0 or above.")
        sequence = SequenceSurrogate(clip_low, clip_high, length_root=ratio == "sequence_mean")
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=128, group_size=16),
            sampling or SamplingParams(max_new_tokens=4096, temperature=0.6),
            rewards,
            GroupNorm(),  # not used: the baseline is the initial policy
            ClippedSurrogate(clip_low, clip_high) if ratio == "token" else sequence,
            SequenceMean(),
            kl or KLPenalty(),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
        )
        self.delta, self.forcing, self.reference, self.clip = (
            delta,
            forcing or Forcing(),
            reference or Reference(),
            (clip_low, clip_high),
        )
        self.forced_rows = round(self.forcing.share * self.batch.group_size)
        if self.forcing.share and not 0 < self.forced_rows < self.batch.group_size:
            raise ConfigError(
                f"forcing.share {self.forcing.share} of batch.group_size {self.batch.group_size} is {self.forced_rows} completions; both modes need at least one."
            )
        self.reference_means: dict[str, float] = {}
        self.effect = EffectWatch()
        self.closing: list[Tensor] = []  # pi(</think>) at the first position, of this rollout's prompts
        self.first: dict[str, Tensor] = {}  # sums over this rollout's first tokens

    def configure_model(self) -> None:
        super().configure_model()
        self.form = needs_thinking(self.policy, "AdaptThink")

    # ---- rollout: the importance-sampling policy ----------------------------------------------------------------------------

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        return self.form.prompt_tokens(row["prompt"])

    def rollout(self, rows: Rows) -> RolloutBatch:
        prompts = [self.prompt_tokens(row) for row in rows]
        uniform = uniforms(rows, self.batch.group_size, 1, self.policy.device).view(len(rows), -1)
        with self.policy.whole():
            first = self.first_tokens(next_token_logprobs(self.policy, prompts, self.temperature), uniform)
            given = (self.batch.group_size, self.sampling, first.tokens, self.batch.rollout_micro_batch)
            return first.mark(self.engine.generate(self.policy, prompts, rows, *given))

    def first_tokens(
        self, logprobs: Float[Tensor, "prompts vocabulary"], uniform: Float[Tensor, "prompts group"]
    ) -> FirstTokens:
        """What every completion begins with, and the log-probs under pi_IS.

        Args:
            uniform: numbers in [0, 1) that decide it.
        """
        group, forced, closing = self.batch.group_size, self.forced_rows, list(self.form.closing)
        log_close = logprobs[:, closing[0]]
        self.closing.append(log_close.exp())
        if not forced:
            return FirstTokens([[] for _ in range(len(logprobs) * group)], [[] for _ in range(len(logprobs) * group)])
        share = forced / group
        thinking = math.log(1 - share)
        without = logprobs.clone()
        without[:, closing[0]] = -torch.inf
        without = without.log_softmax(1)  # log pi(y_1) - log(1 - pi(</think>))
        drawn = draw(without.repeat_interleave(group - forced, 0), uniform[:, forced:].flatten(), greedy=False)[0].view(
            len(logprobs), -1
        )
        word = self.policy.tokenizer(self.forcing.start_word, add_special_tokens=False)["input_ids"]
        found = FirstTokens([], [])
        for prompt in range(len(logprobs)):
            found.tokens += [closing] * forced
            found.logprobs += [[math.log(share)] + [0.0] * (len(closing) - 1)] * forced
            if self.forcing.thinking_first_token == "fixed":
                found.tokens += [word] * (group - forced)
                found.logprobs += [[thinking] + [0.0] * (len(word) - 1)] * (group - forced)
            else:
                found.tokens += [[int(token)] for token in drawn[prompt]]
                found.logprobs += [[thinking + float(without[prompt, token])] for token in drawn[prompt]]
        return found

    # ---- advantage: the constraint as a penalty -----------------------------------------------------------------------------

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return super().returns(batch) * self.form.well_formed(batch)

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        try:
            means = [self.reference_means[prompt_key(row)] for row in batch.rows]
        except KeyError:
            row = next(row for row in batch.rows if prompt_key(row) not in self.reference_means)
            raise ConfigError(
                f"AdaptThink has no reference reward of the prompt {row.get('id')!r}; the initial policy is measured on the training rows before the first rollout, "
                "so resume with the data of the first run, or start without the checkpoint."
            ) from None
        reference = torch.tensor(means, device=self.device).repeat_interleave(batch.group_size)
        return adapt_think_advantage(
            self.returns(batch), self.form.modes(batch) == Mode.NO_THINKING, reference, self.delta
        )

    # ---- loss: pi_IS as behaviour -------------------------------------------------------------------------------------------

    def behaviour(
        self, batch: RolloutBatch, rows: Tensor, own: Float[Tensor, "some time"]
    ) -> Float[Tensor, "some time"]:
        assert batch.own_first is not None
        drawn = torch.arange(own.shape[1], device=own.device) < batch.own_first[rows, None]
        return torch.where(drawn, batch.behaviour_logprobs[rows, : own.shape[1]], own)

    # ---- what shows that the method is on -----------------------------------------------------------------------------------

    def token_loss(
        self,
        logprobs: Float[Tensor, "rows time"],
        behaviour: Float[Tensor, "rows time"],
        reference: Float[Tensor, "rows time"] | None,
        advantages: Float[Tensor, "rows time"],
        mask: Tensor,
    ) -> tuple[Float[Tensor, "rows time"], dict[str, Tensor]]:
        loss, sums = super().token_loss(logprobs, behaviour, reference, advantages, mask)
        counted, gain = mask[:, 0], advantages[:, 0]
        ratio = (logprobs[:, 0].detach() - behaviour[:, 0]).exp()
        clipped = ((ratio < 1 - self.clip[0]) & (gain < 0)) | ((ratio > 1 + self.clip[1]) & (gain > 0))
        for name, values in (("ratio", ratio), ("clip_fraction", clipped), ("rows", counted)):
            self.first[name] = self.first.get(name, torch.zeros((), device=self.device)) + (values * counted).sum()
        return loss, sums

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        assert batch.advantages is not None
        self.first = {}
        metrics = super().update(batch)
        modes, right = self.form.modes(batch), self.returns(batch)
        at_once = modes == Mode.NO_THINKING
        metrics |= {
            "forced_fraction": self.forced_rows / self.batch.group_size,
            "p_close_first": float(torch.cat(self.closing).mean()),
            "first_token_ratio": float(self.first["ratio"] / self.first["rows"].clamp(min=1)),
            "first_token_clip_fraction": float(self.first["clip_fraction"] / self.first["rows"].clamp(min=1)),
            "thinking_rate": float((modes == Mode.THINKING).float().mean()),
            "unclosed_rate": float((modes == Mode.UNCLOSED).float().mean()),
            "advantage": float(batch.advantages.mean()),
        }
        for name, rows in (("no_thinking", at_once), ("thinking", ~at_once)):
            metrics[f"reward/{name}"] = float(right[rows].mean()) if bool(rows.any()) else 0.0
        self.closing = []
        why = "no completion was forced to answer at once: forcing.share is 0, so NoThinking is learned only where the policy finds it by itself."
        self.effect.see("forced", self.forced_rows > 0, why)
        why = "no completion that answered at once earned a reward: NoThinking cannot be learned from this model on these prompts. Start from a model that can answer some of them at once."
        self.effect.see("rewarded", bool((right[at_once] > 0).any()), why)
        return metrics

    # ---- the reference ------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if self.reference_means:  # of a resumed run, whose weights are not the initial ones
            return
        if data is None or not hasattr(data, "rows"):
            raise ConfigError(
                "AdaptThink measures the initial policy on the training rows, so it needs a data module such as datamodules.FilePrompts."
            )
        with self.whole_weights():
            self.reference_means = reference_rewards(self, data.rows("train"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference_rewards"] = self.reference_means

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reference_means = dict(checkpoint["reference_rewards"])


PAPER = Paper(
    name="adapt_think",
    title="AdaptThink",
    arxiv="2505.13417",
    idea="answer at once where that loses no accuracy, think elsewhere",
    classes=("lightning_modules.AdaptThink",),
    configs=("adapt_think",),
    effect="0.70 → 0.82 with 47 % fewer tokens; thinks on hard sums only",
)
