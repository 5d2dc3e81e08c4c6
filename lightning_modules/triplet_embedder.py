"""An embedder that learns from triplets: T-VEC (arXiv 2504.16460), with full weights or LoRA.

Decoders pool their last token, if asked with attention in both directions, and put an instruction before queries;
encoders pool the mean. The losses are in objectives/embedding_losses.py.

    python main.py fit --config configs/t_vec.yaml
"""

import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_modules.core.part_types import check_part
from lightning_modules.core.posttrain_module import PosttrainModule
from objectives.embedding_losses import EmbeddingLoss, TripletMargin, cosine_distance
from objectives.retrieval import alignment_and_uniformity, recall, same_concept, triplet_scores
from policies import PolicyParams, load_tokenizer
from policies.embedder import Embedder, fertility, split_words, word_tokens
from policies.encoder import Pooling
from support.errors import ConfigError
from support.papers import Paper
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]
PARTS = ("anchor", "positive", "negative")


class TripletEmbedder(PosttrainModule):
    """Learns unit vectors of texts from rows with `anchor`, `positive` and `negative`.

    Logs the loss, the fraction of active triplets and both mean distances; of held-out rows, by `domain`, the triplet
    accuracy at margins, the mean gap, recall at k, alignment and uniformity.

    Args:
        policy: the backbone, with `lora` or full weights.
        pooling: last for decoders, mean or first for encoders.
        bidirectional: let a decoder attend in both directions.
        instruction: text before every query (anchor); passages have none.
        loss: TripletMargin, the paper's, or MultipleNegatives.
        mine_every: optimiser steps between two minings of hard negatives: each anchor gets the most similar positive of
            another concept. 0 keeps the given negatives.
        domain_tokens: number of words of the training texts that become tokens, the most frequent ones that the
            tokenizer splits; or these words.
        max_length: longest text in tokens; the rest is cut off.
        kwargs: optimizer and lr_scheduler, as in every module.
    """

    def __init__(
        self,
        policy: PolicyParams,
        *,
        pooling: Pooling = "last",
        bidirectional: bool = False,
        instruction: str = "",
        loss: EmbeddingLoss = TripletMargin(),
        mine_every: int = 0,
        domain_tokens: int | list[str] = 0,
        max_length: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        check_part(self, "loss", loss, EmbeddingLoss, "objectives.TripletMargin(margin=0.3)")
        count = domain_tokens if isinstance(domain_tokens, int) else len(domain_tokens)
        if mine_every < 0 or count < 0 or max_length < 1:
            raise ConfigError(
                f"model.mine_every is {mine_every}, model.domain_tokens {domain_tokens} and model.max_length "
                f"{max_length}; the first two must be 0 or more, the length at least 1."
            )
        self.pooling, self.bidirectional, self.instruction = pooling, bidirectional, instruction
        self.loss, self.mine_every, self.domain_tokens = copy.deepcopy(loss), mine_every, domain_tokens
        self.max_length = max_length
        self.domain_words: list[str] | None = None if isinstance(domain_tokens, int) else list(domain_tokens)
        self._mined: dict[str, str] = {}  # id of a training row -> its negative
        self._held_out: Rows = []
        self._vectors: list[Tensor] = []  # of held-out batches, (3, rows, width)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The module of a checkpoint, as in Lightning, with the checkpoint's domain tokens."""
        saved = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        words = {"domain_tokens": saved.get("domain_words") or 0}
        return super().load_from_checkpoint(checkpoint_path, *args, **(words | kwargs))

    def configure_model(self) -> None:
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ConfigError(
                "trainer.strategy shards the weights, which TripletEmbedder does not support; set trainer.strategy: "
                "ddp."
            )
        if getattr(self, "policy", None) is not None:
            return
        if self.domain_words is None:
            self.domain_words = self._find_words()
        with isolated_rng("initialisation", run_seed()):
            self.policy = Embedder(
                self.policy_params, self.pooling, self.bidirectional, self.instruction, self.domain_words
            )

    def _train_rows(self, setting: str) -> Rows:
        rows: Rows = getattr(getattr(self.trainer, "datamodule", None), "train_data", [])
        if not rows:
            raise ConfigError(
                f"model.{setting} reads the training rows before training, but the data do not name them. Use a data "
                f"module such as datamodules.Triplets, or set model.{setting} to 0."
            )
        return rows

    def _find_words(self) -> list[str]:
        """The words that become tokens; prints the tokens per word before and after."""
        if not isinstance(self.domain_tokens, int) or self.domain_tokens == 0:
            return []
        texts = [row[part] for row in self._train_rows("domain_tokens") for part in PARTS]
        tokenizer = load_tokenizer(self.policy_params.model, needs_end=False)
        words = split_words(tokenizer, texts, self.domain_tokens)
        before = fertility(tokenizer, texts)
        tokenizer.add_tokens(word_tokens(words))
        rank_zero_info(
            f"{len(words)} domain tokens, such as {words[:3]}: {before:.2f} tokens per word before, "
            f"{fertility(tokenizer, texts):.2f} after"
        )
        return words

    def export(self, folder: str | Path) -> None:
        """Write a folder that transformers and sentence-transformers load."""
        self.policy.save(folder, self.max_length)
        self.seen_prompts().save(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["domain_words"], checkpoint["mined"] = self.domain_words, self._mined

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        words = checkpoint.get("domain_words")
        if getattr(self, "policy", None) is not None and words is not None and words != self.domain_words:
            raise ConfigError(
                "the checkpoint's run added other domain tokens than this one; resume with its data and its "
                "model.domain_tokens."
            )
        self.domain_words, self._mined = words, dict(checkpoint.get("mined", {}))
        super().on_load_checkpoint(checkpoint)

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def triplet_vectors(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the rows' anchors, positives and negatives."""
        for row in rows:
            if missing := [part for part in PARTS if not isinstance(row.get(part), str)]:
                raise ConfigError(
                    f"TripletEmbedder needs a text as {missing[0]!r} in every row, but row {row.get('id')!r} has "
                    f"{sorted(row)}. Use datamodules.Triplets, or map the column in data.columns."
                )
        passages = [row["positive"] for row in rows] + [row["negative"] for row in rows]
        anchors = self.policy.vectors([row["anchor"] for row in rows], self.max_length, queries=True)
        positives, negatives = self.policy.vectors(passages, self.max_length).chunk(2)
        return anchors, positives, negatives

    def training_step(self, rows: Rows, batch_idx: int) -> Tensor:
        if self.mine_every and self.trainer.fit_loop.epoch_loop.total_batch_idx % self.mine_every == 0:
            self._mined = self.mine(self._train_rows("mine_every"))
        if self._mined:
            rows = [row | {"negative": self._mined.get(str(row["id"]), row["negative"])} for row in rows]
        vectors = torch.stack(self.triplet_vectors(rows))
        if self.trainer.world_size > 1 and self.loss.compares_rows:  # (processes, 3, rows, width)
            everywhere: Any = self.all_gather(vectors, sync_grads=True)
            vectors = everywhere.transpose(0, 1).flatten(1, 2)
        anchors, positives, negatives = vectors
        loss, active = self.loss(anchors, positives, negatives)
        metrics = {
            "loss": loss.detach(),
            "active": active.detach(),
            "distance/positive": cosine_distance(anchors, positives).mean().detach(),
            "distance/negative": cosine_distance(anchors, negatives).mean().detach(),
        }
        self.log_dict(
            {f"train/{name}": value for name, value in metrics.items()},
            prog_bar=True,
            batch_size=len(rows),
            sync_dist=True,
        )
        return loss

    def mine(self, rows: Rows) -> dict[str, str]:
        """The hardest negative of every row: the positive most similar to its anchor among other concepts' ones."""
        positives = [row["positive"] for row in rows]
        concepts = [str(row.get("concept", row["positive"])) for row in rows]
        queries = self.policy.embed([row["anchor"] for row in rows], self.max_length, queries=True)
        passages = self.policy.embed(positives, self.max_length)
        mined = {}
        for place, row in enumerate(rows):
            similar = passages @ queries[place]
            for other in similar.argsort(descending=True).tolist():
                if concepts[other] != concepts[place] and positives[other] != row["positive"]:
                    mined[str(row["id"])] = positives[other]
                    break
        return mined

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._held_out, self._vectors = [], []

    def _collect(self, rows: Rows) -> None:
        self._vectors.append(torch.stack(self.triplet_vectors(rows)))
        self._held_out += rows

    def _log_scores(self, stage: str) -> None:
        vectors = torch.cat(self._vectors, 1).float().cpu()
        domains = [str(row.get("domain", "")) for row in self._held_out]
        first = domains[0]
        for domain in dict.fromkeys(domains):
            places = [place for place, name in enumerate(domains) if name == domain]
            anchors, positives, negatives = vectors[:, places]
            concepts = [str(self._held_out[place].get("concept", place)) for place in places]
            scores = triplet_scores(anchors, positives, negatives)
            scores |= recall(anchors, positives, same_concept(concepts, concepts))
            scores |= alignment_and_uniformity(anchors, positives) if len(places) > 1 else {}
            for name, value in scores.items():
                suffix = "" if domain == first else f"/{domain}"
                self.log(f"{stage}/{name}{suffix}", value, prog_bar=name == "accuracy@0")
        loss, _ = self.loss(*vectors[:, [place for place, name in enumerate(domains) if name == first]])
        self.log(f"{stage}/loss", loss)

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        self._collect(rows)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    @torch.no_grad()
    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """Similarities of every anchor with its positive and its negative."""
        anchors, positives, negatives = self.triplet_vectors(rows)
        return [
            {"id": row.get("id"), "positive": first, "negative": second}
            for row, first, second in zip(
                rows, (anchors * positives).sum(1).tolist(), (anchors * negatives).sum(1).tolist(), strict=True
            )
        ]


PAPER = Paper(
    name="t_vec",
    title="T-VEC",
    arxiv="2504.16460",
    idea="an embedder learns a domain's words from triplets with hard negatives",
    classes=("lightning_modules.TripletEmbedder", "objectives.TripletMargin", "objectives.MultipleNegatives"),
    configs=("t_vec",),
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
