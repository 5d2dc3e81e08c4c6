"""Distillation from the distributions of a teacher, which may be a mixture of an aligned and a reference model.

Training-time realignment (TrRa, arXiv 2506.12704): with p_T = softmax(lambda h_aligned + (1 - lambda) h_reference) the
student, which starts from the reference, minimises a divergence from p_T at every token of given responses, or of
responses that it samples itself (on-policy distillation; GKD, arXiv 2306.13649, mixes both).

    python main.py fit --config configs/distill.yaml
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from lightning_modules.core.part_types import check_part
from lightning_modules.sft import SFT
from objectives.divergences import Divergence, mixed_logits
from policies import Policy, PolicyParams, PromptGroups
from policies.distributions import Distributions, compared, distributions, reference_distributions
from policies.prompt_encoding import encode_content
from policies.supervised import check_row_length, encode_response
from rollouts import EmbeddedEngine, Engine, SamplingParams
from support.errors import ConfigError
from support.papers import Paper
from support.seeding import derive_seed, isolated_rng, run_seed

Rows = list[dict[str, Any]]
#: column with the token ids of a sampled response
SAMPLED = "sampled_ids"


@dataclass
class Teacher:
    """A teacher with the distribution softmax(weight * h_aligned + (1 - weight) * h_reference).

    Args:
        aligned: model that has what the student shall learn.
        reference: model that lacks it; the student's own start if None.
        weight: lambda. 1 is the aligned model alone, 0 the reference; above 1 the difference is exaggerated.
    """

    aligned: str
    reference: str | None = None
    weight: float = 1.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ConfigError(f"Teacher: weight is {self.weight}; set model.teacher.weight to a finite number.")


class Distill(SFT):
    """Distillation on rows with `prompt`, `response` and an optional `prefix`, as in SFT.

    Args:
        policy: the student.
        teacher: the models that it learns from. They are copies on every process, beside the student.
        divergence: reverse is the paper's form, forward that of its code and of classical distillation.
        on_policy: probability with which a step uses responses of the student instead of the given ones; 1 needs
            prompts only.
        sampling: how the student samples them. engine: what samples them; the embedded engine if None.
        max_length: maximum length of a prompt with a given response, in tokens; a longer row is an error.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    no_reference = ("another model.teacher", "Set it as it was")

    def __init__(
        self,
        policy: PolicyParams,
        *,
        teacher: Teacher,
        divergence: Divergence = Divergence(),
        on_policy: float = 0.0,
        sampling: SamplingParams = SamplingParams(max_new_tokens=512),
        engine: Engine | None = None,
        max_length: int = 8192,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, max_length=max_length, **kwargs)
        check_part(self, "teacher", teacher, Teacher, "Teacher('assets/tiny_reasoner')")
        check_part(self, "divergence", divergence, Divergence, "Divergence('forward')")
        if not 0 <= on_policy <= 1:
            raise ConfigError(f"model.on_policy is {on_policy}; it is a probability, so set it from 0 to 1.")
        self.teacher, self.divergence = copy.deepcopy(teacher), copy.deepcopy(divergence)
        self.on_policy, self.sampling, self.engine = on_policy, sampling, engine or EmbeddedEngine()
        self.with_reference = teacher.reference is None and teacher.weight != 1
        self._teachers: list[Policy] = []  # in a list, so that no checkpoint holds them

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                "trainer.strategy shards the weights, which Distill does not support; set trainer.strategy: ddp."
            )
        super().configure_model()

    # ---- the teacher -------------------------------------------------------------------------------------------------

    def _loaded_teachers(self) -> list[Policy]:
        """The aligned model, unless its weight is 0, and the reference, unless its weight is 0 or it is the start."""
        if not self._teachers:
            weight, reference = self.teacher.weight, self.teacher.reference
            names = [] if weight == 0 else [self.teacher.aligned]
            names += [reference] if reference is not None and weight != 1 else []
            for name in names:
                params = replace(PolicyParams(name), dtype=self.policy_params.dtype, packing=self.policy_params.packing)
                one = Policy(replace(params, compute=self.policy.compute))
                if one.tokenizer.get_vocab() != self.policy.tokenizer.get_vocab():
                    raise ConfigError(
                        f"the tokenizer of the teacher {name} has other tokens than that of "
                        f"{self.policy_params.model}, so their distributions cannot be compared. Use models of one "
                        "family, or lightning_modules.SFT on the teacher's responses."
                    )
                self._teachers.append(one.requires_grad_(False).eval())
        return [one.to(self.device) for one in self._teachers]

    def _teacher_logits(self, groups: PromptGroups) -> tuple[list[Distributions], list[float]]:
        """(the distributions that are mixed, their weights)."""
        weight, models = self.teacher.weight, self._loaded_teachers()
        with torch.no_grad():
            parts = [distributions(model, groups) for model in models]
        if self.with_reference:
            parts.append(reference_distributions(self.policy, groups))
        return parts, [one for one in (weight, 1 - weight) if one != 0]

    # ---- responses ---------------------------------------------------------------------------------------------------

    def groups(self, rows: Rows) -> PromptGroups:
        """Prompts with their given or sampled responses.

        Raises:
            ConfigError: for a row that lacks a response or is too long.
        """
        contexts, responses = [], []
        for row in rows:
            context = self.policy.encode(row["prompt"])
            if SAMPLED not in row:
                if not isinstance(row.get("response"), str):
                    raise ConfigError(
                        f"Distill needs a `response` in every row, but row {row.get('id')!r} has {sorted(row)}. Map "
                        "its column in data.columns, or set model.on_policy to 1."
                    )
                context = context + encode_content(self.policy.tokenizer, row.get("prefix") or "")
                check_row_length(
                    self.policy, row, len(context) + len(encode_response(self.policy, row["response"])), self.max_length
                )
            contexts.append(context)
            responses.append(row[SAMPLED] if SAMPLED in row else encode_response(self.policy, row["response"]))
        return PromptGroups.of(contexts, responses, self.policy.pad_token_id, self.device)

    def sampled(self, rows: Rows, *key: int | str) -> Rows:
        """The rows with responses of the student, which depend on the seed, the key and the prompts only."""
        prompts = [self.policy.encode(row["prompt"]) for row in rows]
        self.policy.check(prompts)
        with isolated_rng("distillation", run_seed(), *key):
            batch = self.engine.generate(self.policy, prompts, rows, 1, self.sampling)
        ids = [tokens[mask].tolist() for tokens, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
        return [row | {SAMPLED: response} for row, response in zip(rows, ids, strict=True)]

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def summed_loss(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.on_policy == 1 and any(SAMPLED not in row and "response" not in row for row in rows):
            rows = self.sampled(rows, "evaluation")
        groups = self.groups(rows)
        parts, weights = self._teacher_logits(groups)

        def divergence(student: Tensor, *teachers: Tensor) -> Tensor:
            mixed = teachers[0] if len(teachers) == 1 else mixed_logits(teachers[0], teachers[1], weights[0])
            return self.divergence(student, mixed)

        values = compared(divergence, distributions(self.policy, groups), *parts)
        return values.sum(), values.new_tensor(float(len(values)))

    def training_step(self, rows: Rows, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        if derive_seed("on policy", run_seed(), step) % 10**6 < self.on_policy * 10**6:  # the same on all processes
            rows = self.sampled(rows, step)
            lengths = [float(len(row[SAMPLED])) for row in rows]
            self.log("train/length", sum(lengths) / len(lengths), batch_size=len(rows), sync_dist=True)
        return super().training_step(rows, batch_idx)


PAPER = Paper(
    name="distill",
    title="TrRa",
    arxiv="2506.12704",
    idea="distillation from a mixture of the logits of an aligned and a reference model, whose weight sets the degree",
    classes=("lightning_modules.Distill", "objectives.Divergence"),
    configs=("distill",),
    effect="41.5 → 26.6, 22.6 and 21.2 tokens with lambda 0.5, 1 and 2; pass@1 0.78 → 0.86, 0.89 and 0.82",
    not_compared="it learns from a teacher, so a budget of generated tokens says nothing about it",
)
