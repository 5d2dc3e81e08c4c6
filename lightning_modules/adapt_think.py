"""AdaptThink: one model that answers at once where that loses no accuracy, and thinks elsewhere.

Zhang et al. (arXiv 2505.13417), eqs. 3 to 6: maximise E[1(y_1 = </think>)] subject to E[R] >= E[R_ref], as a penalty
A(x, y) = 1(y_1 = </think>) delta + R(x, y) - mean R_ref(x). Half of the completions are forced to answer at once:
pi_IS(y_1 = </think>) = 1/2, the other first tokens share the other 1/2 in proportion to pi_old, and pi_IS = pi_old from
the second token on.

    python main.py fit --config configs/adapt_think.yaml
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.effect_watch import EffectWatch
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.failure_counts import FailureCounts
from lightning_modules.core.generator import generator
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.policy_update import Sums
from lightning_modules.core.reference_rewards import Reference, prompt_key, reference_rewards
from lightning_modules.core.sampling_module import Rows
from objectives import ClippedSurrogate, NoBaseline, SequenceMean, SequenceSurrogate
from objectives.shapes import PerRow, PerToken
from objectives.thinking import adapt_think_advantage
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Mode, RolloutBatch, SamplingOverrides, SamplingParams, needs_thinking, overridden
from rollouts.engine import draw, uniforms
from rollouts.first_tokens import FirstTokens, ended_by_own_tokens, next_token_logprobs
from support.errors import ConfigError
from support.identity import identity
from support.papers import Paper
from support.processes import means


@dataclass
class Forcing:
    """The distribution of the first tokens in training.

    Args:
        share: fraction of each group that is forced to answer at once, with </think> as first token; 0 samples all
            first tokens from the policy.
        thinking_first_token: first token of the other completions: sampled from the policy without </think> (the
            paper), or the fixed `start_word` (the official code).
        start_word: the fixed first word; the official code's is "Alright".
        no_thinking_tokens: a completion that is forced to answer at once is cut off after this many tokens (the
            official code); None keeps sampling.max_new_tokens.
    """

    share: float = 0.5
    thinking_first_token: Literal["sampled", "fixed"] = "sampled"
    start_word: str = "Alright"
    no_thinking_tokens: int | None = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(
                f"forcing.share is {self.share}, but it is the fraction of a group that answers at once; set it to 0 "
                "or more and below 1."
            )
        if self.thinking_first_token == "fixed" and not self.start_word:
            raise ConfigError(
                "forcing.thinking_first_token is fixed, but there is no word to start with; set forcing.start_word."
            )
        if self.no_thinking_tokens is not None and self.no_thinking_tokens < 1:
            raise ConfigError(
                f"forcing.no_thinking_tokens is {self.no_thinking_tokens}; set it to 1 or more, or to null for "
                "sampling.max_new_tokens."
            )


class AdaptThink(OnPolicyModule):
    """AdaptThink; the defaults are the paper's and its official code's.

    It overrides eight hooks, since importance sampling of the first token touches every arrow: `prompts` (the counts of
    forced tokens begin anew), `prompt_tokens` (the open think block), `rollout` and `behaviour` (the sampling policy),
    `returns` (the penalty), `token_loss` (the official code's), `observe` and `metrics` (telemetry). Its other methods
    measure the initial policy before the first rollout and keep the result in the checkpoint.

    Args:
        policy: a model whose chat template knows <think> ... </think>.
        rewards: rewards of a completion; one that does not close its think block exactly once earns 0.
        delta: reward that may be lost in exchange for answering at once.
        forcing: distribution of the first tokens in training; validation does not force any.
        reference: measurement of the initial policy's mean reward on every training prompt.
        ratio: importance ratio: sequence_mean is the |y|-th root of the completion's ratio (the official code), token
            the ratio of each token, sequence the completion's ratio (the paper).
        clip_low, clip_high: clip range of the ratio below and above 1.
        batch: 128 prompts x 16 completions, one update.
        sampling: temperature 0.6, up to 16,384 tokens.
        evaluation: temperature 0.6 and top-p 0.95.
        optimizer: AdamW at 2e-6 with weight decay 0.01.
        kwargs: no KL; see OnPolicyModule. The advantage is the return itself, aggregated as a mean over sequences.
    """

    zero_variance_groups_have_no_gradient = False  # the baseline is the initial policy, not the group
    zero_advantage_has_no_gradient = True  # `token_loss` adds metrics only

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        delta: float = 0.05,
        forcing: Forcing = Forcing(),
        reference: Reference = Reference(),
        ratio: Literal["sequence_mean", "token", "sequence"] = "sequence_mean",
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        batch: BatchPlan = BatchPlan(prompts_per_rollout=128, group_size=16),
        sampling: SamplingParams = SamplingParams(max_new_tokens=16384, temperature=0.6),
        evaluation: Evaluation = Evaluation(sampling=SamplingOverrides(temperature=0.6, top_p=0.95)),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-6, weight_decay=0.01),
        **kwargs: Any,
    ) -> None:
        if delta < 0:
            raise ConfigError(
                f"delta is {delta}, but it is a bonus for answering at once; set model.delta to 0 or more."
            )
        by_sequence = SequenceSurrogate(clip_low, clip_high, length_root=ratio == "sequence_mean")
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            advantage=NoBaseline(),
            loss=ClippedSurrogate(clip_low, clip_high) if ratio == "token" else by_sequence,
            aggregation=SequenceMean(),
            evaluation=evaluation,
            optimizer=optimizer,
            **kwargs,
        )
        self.delta, self.clip = delta, (clip_low, clip_high)
        self.forcing, self.reference = copy.deepcopy((forcing, reference))
        self.forced_rows = round(self.forcing.share * self.batch.group_size)
        if self.forcing.share and not 0 < self.forced_rows < self.batch.group_size:
            raise ConfigError(
                f"forcing.share {self.forcing.share} of batch.group_size {self.batch.group_size} is {self.forced_rows} "
                "completions, but both modes need at least one; change forcing.share or batch.group_size."
            )
        self.reference_means: dict[str, float] = {}
        self.effect = EffectWatch()
        self.closing: list[Tensor] = []  # pi(</think>) at the first position for this rollout's prompts

    def configure_model(self) -> None:
        super().configure_model()
        self.form = needs_thinking(self.policy, "AdaptThink")

    # ---- rollout: the importance-sampling policy ---------------------------------------------------------------------

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        return self.form.prompt_tokens(row["prompt"])

    def prompts(self, rows: Rows) -> Rows:
        self.closing = []
        return rows

    def rollout(self, rows: Rows) -> RolloutBatch:
        prompts, group_size = [self.prompt_tokens(row) for row in rows], self.batch.group_size
        uniform = uniforms(rows, group_size, 1, self.policy.device).view(len(rows), -1)
        with self.policy.whole():
            first = self.first_tokens(next_token_logprobs(self.policy, prompts, self.temperature), uniform)
        batch = first.mark(self.sample(rows, group_size, self.sampling, forced=first.tokens))
        batch = ended_by_own_tokens(batch, self.policy, self.sampling)
        if self.forced_rows and self.forcing.no_thinking_tokens is not None:
            forced = torch.arange(len(batch.lengths), device=batch.lengths.device) % group_size < self.forced_rows
            batch = batch.cut(torch.where(forced, self.forcing.no_thinking_tokens, self.sampling.max_new_tokens))
        return batch

    def first_tokens(
        self, logprobs: Float[Tensor, "prompts vocabulary"], uniform: Float[Tensor, "prompts group"]
    ) -> FirstTokens:
        """First tokens of every completion, with their log-probs under pi_IS.

        Args:
            logprobs: the policy's log-probs of the first token.
            uniform: random numbers in [0, 1), one per completion.
        """
        group, forced, closing = self.batch.group_size, self.forced_rows, list(self.form.closing)
        log_close = logprobs[:, closing[0]]
        self.closing.append(log_close.exp())
        if not forced:
            return FirstTokens([[] for _ in range(uniform.numel())], [[] for _ in range(uniform.numel())])
        log_forced, log_thinking = math.log(forced / group), math.log(1 - forced / group)
        without = logprobs.clone()
        without[:, closing[0]] = -torch.inf
        without = without.log_softmax(1)  # log pi(y_1) - log(1 - pi(</think>))
        repeated = without.repeat_interleave(group - forced, 0)
        drawn = draw(repeated, uniform[:, forced:].flatten(), greedy=False)[0].view(len(logprobs), -1)
        word = self.policy.tokenizer(self.forcing.start_word, add_special_tokens=False)["input_ids"]
        first = FirstTokens([], [])
        for prompt in range(len(logprobs)):
            first.tokens += [closing] * forced
            first.logprobs += [[log_forced] + [0.0] * (len(closing) - 1)] * forced
            if self.forcing.thinking_first_token == "fixed":
                first.tokens += [word] * (group - forced)
                first.logprobs += [[log_thinking] + [0.0] * (len(word) - 1)] * (group - forced)
            else:
                first.tokens += [[int(token)] for token in drawn[prompt]]
                first.logprobs += [[log_thinking + float(without[prompt, token])] for token in drawn[prompt]]
        return first

    # ---- returns: the constraint as a penalty ------------------------------------------------------------------------

    def accuracy(self, batch: RolloutBatch) -> PerRow:
        """R: the rewards of completions that close their think block exactly once, 0 for others. Pure."""
        return super().returns(batch) * self.form.well_formed(batch)

    def returns(self, batch: RolloutBatch) -> PerRow:
        try:
            means = [self.reference_means[prompt_key(row)] for row in batch.rows]
        except KeyError:
            row = next(row for row in batch.rows if prompt_key(row) not in self.reference_means)
            raise ConfigError(
                f"AdaptThink has no reference reward of the prompt {row.get('id')!r}, because the initial policy is "
                "measured on the training rows before the first rollout. Resume with the data of the first run, or "
                "start without --ckpt_path."
            ) from None
        reference = torch.tensor(means, device=batch.lengths.device).repeat_interleave(batch.group_size)
        at_once = self.form.modes(batch) == Mode.NO_THINKING
        return adapt_think_advantage(self.accuracy(batch), at_once, reference, self.delta)

    # ---- loss: pi_IS as behaviour ------------------------------------------------------------------------------------

    def behaviour(
        self, batch: RolloutBatch, rows: Tensor, sampled: Float[Tensor, "some time"]
    ) -> Float[Tensor, "some time"]:
        assert batch.own_first is not None
        width = sampled.shape[1]
        is_first = torch.arange(width, device=sampled.device) < batch.own_first[rows, None]
        return torch.where(is_first, batch.behaviour_logprobs[rows, :width], sampled)

    def token_loss(
        self, logprobs: PerToken, behaviour: PerToken, reference: PerToken | None, advantages: PerToken, mask: Tensor
    ) -> tuple[PerToken, Sums]:
        loss, sums = super().token_loss(logprobs, behaviour, reference, advantages, mask)
        has_first, gain = mask[:, 0], advantages[:, 0]
        ratio = (logprobs[:, 0].detach() - behaviour[:, 0]).exp()
        below, above = ratio < 1 - self.clip[0], ratio > 1 + self.clip[1]
        clipped = (below & (gain < 0)) | (above & (gain > 0))
        rows = has_first.sum()
        sums["first_token_ratio"] = ((ratio * has_first).sum(), rows)
        sums["first_token_clip_fraction"] = ((clipped & has_first).sum(), rows)
        return loss, sums

    # ---- telemetry ---------------------------------------------------------------------------------------------------

    def observe(self, batch: RolloutBatch) -> None:
        self.effect.see(
            "forced",
            self.forced_rows > 0,
            "no completion was forced to answer at once, so NoThinking is learned only from prompts where the policy "
            "samples it by itself. Raise forcing.share above 0.",
        )
        at_once = self.form.modes(batch) == Mode.NO_THINKING
        self.effect.see(
            "rewarded",
            bool((self.accuracy(batch)[at_once] > 0).any()),
            "no completion that answered at once earned a reward, so this model cannot learn NoThinking on these "
            "prompts. Start from a model that can answer some of them at once.",
        )

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        assert batch.advantages is not None
        modes, accuracy = self.form.modes(batch), self.accuracy(batch)
        at_once = modes == Mode.NO_THINKING
        by_mode = {"reward/no_thinking": accuracy[at_once], "reward/thinking": accuracy[~at_once]}
        metrics = {
            "p_close_first": torch.cat(self.closing),
            "thinking_rate": modes == Mode.THINKING,
            "unclosed_rate": modes == Mode.UNCLOSED,
            "advantage": batch.advantages,
        }
        absent = dict.fromkeys(by_mode, 0.0) | {"forced_fraction": self.forced_rows / self.batch.group_size}
        return absent | means(metrics | by_mode)

    # ---- the reference -----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if self.reference_means:  # from the checkpoint: a resumed run's weights are not the initial ones
            return
        if data is None or not hasattr(data, "rows"):
            raise ConfigError(
                "AdaptThink measures the initial policy on the training rows, but this run's data module has no method "
                "`rows`; use one that has it, such as datamodules.FilePrompts."
            )
        failures = FailureCounts()

        def measure(rows: Rows, samples: int, sampling: SamplingParams) -> Tensor:
            batch = self.sample(rows, samples, sampling)
            batch.rewards = self.score(batch)
            failures.add(batch)
            # Without a KL penalty: the initial policy is the reference, and processes whose weights are in shards would
            # have to compute the reference equally often, whereas their numbers of prompts differ.
            return self.totals(batch) * self.form.well_formed(batch)

        sampling = overridden(self.sampling, self.reference.sampling)
        with self.whole_weights():
            self.reference_means = reference_rewards(
                data.rows("train"),
                measure,
                reference=self.reference,
                sampling=sampling,
                generator=generator(self, sampling),
                rewards=[identity(reward) for reward in self.rewards],
            )
        failures.metrics(self.all_rewards, "the measurement of the initial policy")

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
