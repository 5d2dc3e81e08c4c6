"""Supervised fine-tuning: the cold start of every other method.

Minimises the mean negative log-likelihood of the response tokens, without prompts and prefixes:
-(1 / sum_i |y_i|) * sum_i sum_t log pi(y_{i,t} | x_i, y_{i,<t}).

    python main.py fit --config configs/sft.yaml
"""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.core.posttrain_module import PosttrainModule
from policies import PolicyParams
from policies.supervised import summed_response_loss
from rollouts import EmbeddedEngine, SamplingParams
from support.papers import Paper
from support.seeding import isolated_rng, run_seed

#: maximum number of tokens of a predicted completion
PREDICTED = 256


class SFT(PosttrainModule):
    """Supervised fine-tuning on rows with `prompt`, `response` and an optional `prefix`.

    Args:
        policy: the model to train.
        max_length: maximum length of a sequence, in tokens; a longer row is an error, because a truncated response
            would teach the policy to stop early.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    def __init__(self, policy: PolicyParams, *, max_length: int = 1024, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.max_length, self.predicting_engine = max_length, EmbeddedEngine()

    def summed_loss(self, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """(the sum of the losses of the rows' response tokens, the number of these tokens)."""
        return summed_response_loss(self.policy, rows, self.max_length)

    def loss(self, rows: list[dict[str, Any]]) -> Tensor:
        """Mean loss of the rows' response tokens."""
        total, tokens = self.summed_loss(rows)
        return total / tokens

    def training_step(self, rows: list[dict[str, Any]], batch_idx: int) -> Tensor:
        total, tokens = self.summed_loss(rows)
        if self.trainer.world_size > 1:  # gradients are averaged over the processes, whose rows differ in length
            tokens = self.trainer.strategy.reduce(tokens, reduce_op="mean")
        loss = total / tokens
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(rows), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.gather_weights()

    def on_validation_epoch_end(self) -> None:
        self.scatter_weights()

    def validation_step(self, rows: list[dict[str, Any]], batch_idx: int) -> None:
        self.log("val/loss", self.loss(rows), prog_bar=True, batch_size=len(rows), sync_dist=True)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def test_step(self, rows: list[dict[str, Any]], batch_idx: int) -> None:
        self.log("test/loss", self.loss(rows), batch_size=len(rows), sync_dist=True)

    @torch.no_grad()
    def predict_step(self, rows: list[dict[str, Any]], batch_idx: int) -> list[dict[str, Any]]:
        """The greedy completion of every prompt."""
        prompts = [self.policy.encode(row["prompt"]) for row in rows]
        room = PREDICTED if self.policy.context is None else self.policy.context - max(map(len, prompts))
        sampling = SamplingParams(max_new_tokens=max(1, min(PREDICTED, room)), temperature=0.0)
        with isolated_rng("prediction", run_seed(), batch_idx):
            batch = self.predicting_engine.generate(self.policy, prompts, rows, 1, sampling)
        ids = [tokens[mask].tolist() for tokens, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
        texts = self.policy.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"prompt": row["prompt"], "completion": text} for row, text in zip(rows, texts, strict=True)]


PAPER = Paper(
    name="sft",
    title="SFT",
    idea="supervised fine-tuning on demonstrations, the cold start of the other methods",
    classes=("lightning_modules.SFT",),
    configs=("sft",),
    page="",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
